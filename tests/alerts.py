"""Every alert of docs/alerts.yaml, seen firing of its cause and resolved without it, on a RabbitMQ and a Prometheus.

``python -m tests.alerts --minute 60`` takes 40 minutes, with the rules as they are; ``--minute 1`` makes a minute of the
rules a second. It prints a table: what was done, which alert fired after how many seconds, and how many seconds after the
thing was mended it was resolved. It ends with 1 where one did not fire, or one did of services at rest.

`tests/alerting.py` has the services.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from rabbitevents import Bus
from rabbitevents_outbox import Outbox, Tables
from tests import alerting
from tests.bed.prometheus import Alert, Prometheus, scaled
from tests.bed.proxy import Proxy
from tests.bed.rabbitmq import RabbitNode
from tests.serving import Service

yaml: Any = import_module("yaml")  # it has no types

RULES: Final = Path(__file__).parent.parent / "docs" / "alerts.yaml"

LONGEST: Final = 45
"""Minutes of the rules within which each alert must fire, and be resolved."""

SLACK: Final = 60.0
"""Seconds more that a busy machine may take."""

KEEPER: Final = "keeper"
"""The user of the warehouse, and his password."""

OUTBOX: Final = Tables().outbox.name

Labels = dict[str, str]


@dataclass(frozen=True)
class Seen:
    """What came of a cause: seconds until the alert fired, and from the mending until it was resolved."""

    alert: str
    cause: str
    labels: Labels
    fired: float
    resolved: float


class Watch:
    """Looks at the alerts that fire, all the while."""

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus = prometheus
        self._changed = asyncio.Condition()
        self.firing: list[Alert] = []
        self.ever: set[str] = set()
        """The names of those that have fired."""

    async def look(self) -> None:
        """Look until cancelled."""
        while True:
            self.firing = [alert for alert in await self._prometheus.aalerts() if alert.state == "firing"]
            self.ever.update(alert.name for alert in self.firing)
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(0.1)

    def fires(self, name: str, labels: Labels) -> bool:
        """Say whether an alert fires, with these labels among its own; one that is to be "" it must not have."""
        return any(
            alert.name == name and all(alert.labels.get(label, "") == value for label, value in labels.items())
            for alert in self.firing
        )

    async def until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until what fires is so."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            firing = [(alert.name, dict(alert.labels)) for alert in self.firing]
            raise AssertionError(f"{what}: not within {seconds:.0f} s; what fires is {firing}") from None


@dataclass(frozen=True)
class Scene:
    """Where causes are brought about: two services, their broker, and what lies between it and the warehouse."""

    folder: Path
    node: RabbitNode
    url: str
    proxy: Proxy
    warehouse: Service
    watch: Watch
    minute: float

    async def tried(
        self, cause: str, at_work: AbstractAsyncContextManager[None], *expected: tuple[str, Labels]
    ) -> list[Seen]:
        """Bring a cause about until its alerts fire, mend it, and wait until they are resolved.

        The labels are among an alert's own; those of the library without what they begin with, ``rabbitevents_``.
        """
        now = asyncio.get_running_loop().time
        alerts = [(name, {_in_full(label): value for label, value in labels.items()}) for name, labels in expected]
        began = now()
        async with at_work:
            fired = await asyncio.gather(*(self._until(name, labels, fires=True) for name, labels in alerts))
        mended = now()
        resolved = await asyncio.gather(*(self._until(name, labels, fires=False) for name, labels in alerts))
        return [
            Seen(name, cause, labels, round(at_first - began, 1), round(at_last - mended, 1))
            for (name, labels), at_first, at_last in zip(alerts, fired, resolved, strict=True)
        ]

    async def _until(self, name: str, labels: Labels, *, fires: bool) -> float:
        """Return when an alert fires, or does no more."""
        what = f"{name} {labels} {'fires' if fires else 'is resolved'}"
        await self.watch.until(lambda: self.watch.fires(name, labels) is fires, what, LONGEST * self.minute + SLACK)
        return asyncio.get_running_loop().time()

    # --- causes: entered they are there, left they are not ---

    @asynccontextmanager
    async def broken(self, what: str, *payloads: object) -> AsyncGenerator[None]:
        """Let a thing be broken (see `tests.alerting`), while events come that need it."""
        (self.folder / what).touch()
        async with self.published(*payloads):
            yield
        (self.folder / what).unlink()

    @asynccontextmanager
    async def published(self, *payloads: object) -> AsyncGenerator[None]:
        """Publish events as somebody else."""
        async with Bus(self.url, name="customers") as bus:
            await bus.publish_many(payloads)
        yield

    @asynccontextmanager
    async def without_queue(self) -> AsyncGenerator[None]:
        """Delete a queue that its service may not declare again."""
        await self._permit(configure="")
        await self.node.adelete_queue("warehouse.shelve", self.url)
        yield
        await self._permit()

    async def _permit(self, **rights: str) -> None:
        await asyncio.to_thread(partial(self.node.set_permissions, self.url, **rights, user=KEEPER))

    @asynccontextmanager
    async def flapping(self) -> AsyncGenerator[None]:
        """Cut the warehouse's connections, again and again."""

        async def cut() -> None:
            while True:
                await asyncio.sleep(min(0.5 * self.minute, 10))
                self.proxy.cut()

        cutting = asyncio.create_task(cut())
        yield
        cutting.cancel()

    @asynccontextmanager
    async def unreachable(self) -> AsyncGenerator[None]:
        """Let the warehouse have no connection, and something to send."""
        await self.proxy.refuse()
        self.proxy.cut()
        async with alerting.database(self.folder) as engine, AsyncSession(engine) as session, session.begin():
            await Outbox(engine, relay=False, name="clerk").publish(session, alerting.BoxMoved("1"))
        yield
        await self.proxy.accept()

    @asynccontextmanager
    async def gone(self) -> AsyncGenerator[None]:
        """Let there be no warehouse."""
        await self.warehouse.stop()
        yield
        await self.warehouse.start()

    @asynccontextmanager
    async def short_of_memory(self) -> AsyncGenerator[None]:
        """Raise the broker's memory alarm while the shop publishes."""
        async with self.broken("ticking", alerting.ClockStarted("1")):
            await self.node.aset_memory_alarm(True)
            try:
                yield
            finally:
                await self.node.aset_memory_alarm(False)


def _in_full(label: str) -> str:
    return label if label == "job" else f"rabbitevents_{label}"


async def of_the_shop(scene: Scene) -> list[Seen]:
    """Bring about what can be wrong in a handler, side by side; at last, what keeps everybody from publishing."""
    dead: Labels = {"queue": "shop.deliver.dead"}
    rows, payments = [alerting.RowAdded(f"{n}") for n in range(300)], [alerting.PaymentDue(f"{n}") for n in range(30)]
    seen = await asyncio.gather(
        scene.tried(
            "a handler raises `Fatal`",
            scene.broken("dead", alerting.LetterWritten("1")),
            ("RabbiteventsDeadLettersGrowing", dead),
        ),
        scene.tried(
            "a handler fails that no plugin helps",
            scene.broken("held", *(alerting.ParcelSent(f"{n}") for n in range(3))),
            ("RabbiteventsHeld", {"subscription": "shop.pack"}),
        ),
        scene.tried(
            "a handler hangs, and 300 events come",
            scene.broken("slow", *rows),
            ("RabbiteventsLagGrowing", {"queue": "shop.count"}),
        ),
        scene.tried(
            "what a handler needs is away: 30 events, tried once a second",
            scene.broken("storm", *payments),
            ("RabbiteventsRetryStorm", {"subscription": "shop.charge"}),
        ),
        scene.tried(
            "one event that nobody is bound for",
            scene.published(alerting.QuestionAsked("1")),
            ("RabbiteventsUnroutable", {"type": "question.answered"}),
        ),
    )
    blocked = await scene.tried(
        "the broker is short of memory", scene.short_of_memory(), ("RabbiteventsBlocked", {"job": "shop"})
    )
    return [*(each for some in seen for each in some), *blocked]


async def of_the_warehouse(scene: Scene) -> list[Seen]:
    """Bring about what can be wrong around a service: one after the other, as each would be another's cause."""
    here: Labels = {"bus": "warehouse"}
    return [
        *await scene.tried(
            "a handler blocks the loop for 0.4 s of 1.4",
            scene.broken("late", alerting.SumAsked("1")),
            ("RabbiteventsEventLoopLag", here),
        ),
        *await scene.tried(
            "a queue is deleted, and may not be declared", scene.without_queue(), ("RabbiteventsNoConsumer", here)
        ),
        *await scene.tried(
            "the connection is cut again and again",
            scene.flapping(),
            ("RabbiteventsReconnects", {"connection": "consume"}),
        ),
        *await scene.tried(
            "the broker cannot be reached, and a row is written",
            scene.unreachable(),
            ("RabbiteventsReconnects", here),
            ("RabbiteventsOutboxLag", {"job": "warehouse", "outbox": OUTBOX}),
        ),
        *await scene.tried(
            "the service is stopped",
            scene.gone(),
            ("RabbiteventsNoConsumer", {"job": "warehouse", "bus": "", "queue": ""}),
        ),
    ]


async def see(node: RabbitNode, url: str, folder: Path, minute: float) -> tuple[list[Seen], set[str]]:
    """See every alert firing and resolved; return that, and the names of those that fired of services at rest."""
    its_url = await asyncio.to_thread(node.add_user, url, KEEPER, KEEPER)
    await asyncio.to_thread(partial(node.set_permissions, url, user=KEEPER))
    async with alerting.database(folder) as engine:
        await Tables().create(engine)
    rules = scaled(yaml.safe_load(RULES.read_text()), minute)
    interval = str(max(1.0, minute / 4))
    async with (
        Proxy.before(url) as proxy,
        Service(folder, "tests.alerting:shop", 2, URL=url, INTERVAL=interval) as shop,
        Service(folder, "tests.alerting:warehouse", 1, URL=proxy.url_for(its_url), INTERVAL=interval) as warehouse,
    ):
        jobs = {"shop": shop.port, "warehouse": warehouse.port}
        with Prometheus(jobs, every=max(0.5, minute / 4), rules=rules) as prometheus:
            watch = Watch(prometheus)
            looking = asyncio.create_task(watch.look())
            try:
                await _until_scraped(prometheus)
                # A start may last longer than a minute of the rules does here.
                await watch.until(lambda: not watch.firing, "quiet", LONGEST * minute + SLACK)
                watch.ever.clear()
                await asyncio.sleep(3 * minute)  # what fires of services at rest fires by now
                at_rest = set(watch.ever)
                scene = Scene(folder, node, url, proxy, warehouse, watch, minute)
                seen = await asyncio.gather(of_the_shop(scene), of_the_warehouse(scene))
            finally:
                looking.cancel()
    return [*seen[0], *seen[1]], at_rest


async def _until_scraped(prometheus: Prometheus, seconds: float = 120) -> None:
    """Wait until both services consume, and their queues were looked at."""
    async with asyncio.timeout(seconds):
        while True:
            there = await prometheus.aquery("rabbitevents_consumers_running == rabbitevents_consumers_expected")
            looked = await prometheus.aquery("count by (job) (rabbitevents_queue_consumers > 0)")
            if len(there) == 3 and len(looked) == 2:
                return
            await asyncio.sleep(0.2)


def table(seen: Sequence[Seen]) -> str:
    """Write down what was seen, for people."""
    lines = ["| cause | alert | fires after | resolved after |", "|---|---|---|---|"]
    lines += [f"| {each.cause} | `{each.alert}` | {each.fired:.1f} s | {each.resolved:.1f} s |" for each in seen]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.alerts")
    parser.add_argument("--minute", type=float, default=1.0, help="how many seconds a minute of the rules takes (1)")
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args(words)
    root = os.environ.get("RABBITEVENTS_TEST_ROOT")
    with RabbitNode(root=Path(root) if root is not None else None) as node, tempfile.TemporaryDirectory() as folder:
        seen, at_rest = asyncio.run(see(node, node.add_vhost(), Path(folder), told.minute))
    print(json.dumps([asdict(each) for each in seen]) if told.json else table(seen))
    if at_rest:
        print(f"fired without a cause: {sorted(at_rest)}", file=sys.stderr)
    return 1 if at_rest else 0


if __name__ == "__main__":
    sys.exit(main())

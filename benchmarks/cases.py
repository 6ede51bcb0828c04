"""What is measured: each case is a list of trials, one for each contender, which run in turn."""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.field import BY_NAME, CONTENDERS, HERE, OURS, REFERENCE, ROOT, Contender
from benchmarks.stage import Stage, Work, run
from benchmarks.workload import document

Figure = dict[str, Any]
"""What one role of one contender measured: its case, role and contender, and the figures."""
Trial = Callable[[Stage, float], Iterable[Figure]]
"""Measures on a stage, for about so many seconds each role."""

MAIN = frozenset({OURS, REFERENCE, "aio-pika", "librabbitmq", "watermill", "spring", "amqp091", "java"})
"""Who is in the cases that vary one thing."""
PYTHON = str(HERE / "python" / "venv" / "bin" / "python")


@dataclass(frozen=True)
class Case:
    """One thing that is compared."""

    name: str
    title: str
    trials: Sequence[tuple[str, Trial]]
    """Contenders' names, and what each does."""
    once: bool = False
    """Whether one round is enough, as it takes minutes."""


def fit(size: int) -> tuple[int, int]:
    """Return how many items and how long a note make an order of that many bytes."""
    for items in (3, 2, 1, 0):
        without = len(json.dumps(document(0, items, 0), separators=(",", ":")))
        if without <= size:
            return items, size - without
    raise ValueError(f"no order is as short as {size} bytes")


# --- contenders' roles ---------------------------------------------------------------------------------------------

Step = tuple[str, bool]
"""A role, and whether what it measures is a figure of the case."""


def _amount(contender: Contender, role: str, seconds: float, size: int) -> int:
    """Return how many events are about so many seconds' work."""
    pace = 1_000 if role == "publish_one" else contender.pace
    if role == "consume_slow":
        pace = min(pace, 10_000)
    return max(200, int(min(pace, 60_000_000 / size) * seconds))


def _steps(case: str, contender: Contender, steps: Sequence[Step], size: int = 0, kind: str = "quorum") -> Trial:
    """Let a contender do one step after the other in a place of its own; what is published is there for the next step."""
    items, note = fit(size) if size else (3, 37)

    def trial(stage: Stage, seconds: float) -> Iterable[Figure]:
        events = _amount(contender, steps[-1][0], seconds, size or 400)
        warm_up = events if contender.language == "java" else events // 4  # which compiles while it runs
        with stage.place(contender, kind) as place:
            for role, counts in steps:
                work = Work(role, events, warm_up, items=items, note=note)
                feeds = role not in contender.roles
                result = place.run(BY_NAME[contender.feeder] if feeds else contender, work)
                if counts and not feeds:
                    yield _figure(case, contender, role, result)

    return trial


def _figure(case: str, contender: Contender, role: str, result: Figure) -> Figure:
    found = {"case": case, "contender": contender.name, "role": role}
    if "seconds" in result:
        found |= {"events": result["events"], "rate": result["events"] / result["seconds"]}
        found["cpu_us"] = result["cpu_seconds"] / result["events"] * 1e6
    quantiles = {name: result[name] for name in ("p50_ms", "p99_ms", "p999_ms") if name in result}
    return found | quantiles | {"peak_mb": result["peak_mb"]}


def _roles(
    name: str,
    title: str,
    steps: Sequence[Step],
    who: Callable[[Contender], bool] = lambda _: True,
    size: int = 0,
    kind: str = "quorum",
) -> Case:
    """Return a case of all contenders that can do its last step."""
    able = [each for each in CONTENDERS if who(each) and steps[-1][0] in each.roles]
    return Case(name, title, [(each.name, _steps(name, each, steps, size, kind)) for each in able])


def _plain(contender: Contender) -> bool:
    return not contender.chain


def _main(contender: Contender) -> bool:
    return contender.name in MAIN


def _in_a_chain(contender: Contender) -> bool:
    return bool(contender.chain) or contender.name == REFERENCE


FLOW: Sequence[Step] = (("publish_in_flight", True), ("consume", True))


def _latency(rate: int) -> Case:
    name = f"latency-{rate}"

    def trial_of(contender: Contender) -> Trial:
        def trial(stage: Stage, seconds: float) -> Iterable[Figure]:
            with stage.place(contender) as place:
                work = Work("latency", int(rate * seconds), int(rate * max(1.0, seconds / 2)), rate=rate)
                yield _figure(name, contender, "latency", place.run(contender, work))

        return trial

    able = [each for each in CONTENDERS if _plain(each) and "latency" in each.roles]
    title = f"latency at {rate:,} events a second, from before the publish until the handler runs, one process"
    return Case(name, title, [(each.name, trial_of(each)) for each in able])


BACKLOG = 1_000_000
FEW = 1_000


def _backlog(contender: Contender) -> Trial:
    """Fill the queue a part at a time, and consume it all; before that, the same with few events: the peak when idle."""

    def trial(stage: Stage, _: float) -> Iterable[Figure]:
        with stage.place(contender) as place:
            few = Work("publish_in_flight", FEW - 10, 10)
            place.run(contender, few)
            idle = place.run(contender, replace(few, role="consume"))["peak_mb"]
            for first in range(0, BACKLOG, 50_000):
                place.run(contender, Work("publish_in_flight", 49_000, 1_000, first=first))
            result = place.run(contender, Work("consume", BACKLOG - 10_000, 10_000))
            yield _figure("backlog", contender, "consume", result) | {"idle_mb": idle}

    return trial


# --- this library alone --------------------------------------------------------------------------------------------


def _own(case: str, what: str, role: str, *numbers: int) -> Trial:
    def trial(stage: Stage, _: float) -> Iterable[Figure]:
        with stage.empty() as url:
            words = [PYTHON, "-m", "benchmarks.own", what, url, *map(str, numbers)]
            yield {"case": case, "contender": OURS, "role": role} | run(words, BY_NAME[OURS].environment(), 300)

    return trial


def _alone(name: str, title: str, what: str, roles: dict[str, tuple[int, ...]]) -> Case:
    return Case(name, title, [(OURS, _own(name, what, role, *numbers)) for role, numbers in roles.items()])


IMPORTS = ("rabbitevents", "aio_pika", "faststream.rabbit", "pass")


def _import(module: str) -> Trial:
    """Import in a new interpreter, and take its CPU time: the interpreter's own stands beside it, as ``pass``.

    All is compiled before, as what pip installs is.
    """
    code = module if module == "pass" else f"import {module}"

    def trial(stage: Stage, seconds: float) -> Iterable[Figure]:
        command = [PYTHON, "-c", code]
        with TemporaryDirectory() as compiled:
            environment = {**BY_NAME[OURS].environment(), "PYTHONPYCACHEPREFIX": compiled}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            importing = partial(subprocess.run, command, cwd=ROOT, env=environment, check=True)
            importing()
            yield from (
                {"case": "import", "contender": OURS, "role": module, "cpu_ms": _spent(importing) * 1e3}
                for _ in range(5)
            )

    return trial


def _spent(child: Callable[[], object]) -> float:
    """Return the seconds of CPU time that child processes took meanwhile."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


CASES: tuple[Case, ...] = (
    _roles("flow", "published with 500 in flight, then consumed, prefetch 200, no-op", FLOW, _plain),
    _roles("publish", "published one at a time", (("publish_one", True),), _plain),
    _roles(
        "chain", "consumed with plugins, 100 workers", (("publish_in_flight", False), ("consume", True)), _in_a_chain
    ),
    _latency(1_000),
    Case("import", "import, CPU time of a new interpreter", [(OURS, _import(module)) for module in IMPORTS]),
    _alone(
        "start",
        "start with so many handlers, a queue each",
        "start",
        {f"{number} handlers": (number,) for number in (20, 200)},
    ),
    _alone(
        "types",
        "an event that is published and handled, of so many types",
        "cost",
        {f"{number:,} types": (number, 1) for number in (1, 100, 1_000)},
    ),
    _alone(
        "subscriptions",
        "an event that is published and handled, of as many types as subscriptions",
        "cost",
        {f"{number} subscriptions": (number, number) for number in (1, 20, 100, 200)},
    ),
    _roles("many", "published 500 at once, and the next when all are confirmed", (("publish_batches", True),), _plain),
    _roles(
        "slow",
        "consumed, a handler of 5 ms, 100 at a time: 20,000 a second at most",
        (("publish_in_flight", False), ("consume_slow", True)),
        _plain,
    ),
    _latency(100),
    _latency(5_000),
    _roles("body-300", "events of 300 bytes", FLOW, _main, 300),
    _roles("body-4k", "events of 4 kB", FLOW, _main, 4_096),
    _roles("body-256k", "events of 256 kB", FLOW, _main, 262_144),
    _roles("classic", "a classic queue", FLOW, _main, kind="classic"),
    Case(
        "backlog",
        "consumed, a backlog of 1,000,000",
        [(name, _backlog(BY_NAME[name])) for name in (OURS, "librabbitmq", "amqp091")],
        once=True,
    ),
)

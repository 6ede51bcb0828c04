"""What the commands are told: where to look, which letters are meant, and the bus that leads to them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import reduce, wraps
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from rabbitevents import Bus, ConfigurationError, Limits
from rabbitevents.cli import BusReference, load_bus, say
from rabbitevents.partitions import undivided
from rabbitevents_deadletter.labels import DEAD, LOST, dead_queue_of
from rabbitevents_deadletter.workbench import HOLD, DeadLetters, Selection
from rabbitevents_deadletter.workbench.selection import age

EVERYTHING: Final = Limits(body=512 * 1024 * 1024, headers=131_000)
"""What a broker may hold: the largest ``max_message_size`` that RabbitMQ can be told, and headers that fill a frame."""

NAMES_ONLY: Final = Limits(body=0)
"""No body is kept: for counting, however large they are."""

PATIENCE: Final = 10.0
"""Seconds that a broker which is away is looked for."""

URL: Final = "AMQP_URL"
"""The environment variable with the broker's URL: what the command line may read, and the library never does."""

FILE: Final = click.Path(dir_okay=False, path_type=Path)
"""A file's name."""


class Target(msgspec.Struct, frozen=True):
    """What a command was told of where to look: MODULE:BUS, or a URL and names of queues."""

    reference: str | None
    url: str | None
    queues: tuple[str, ...]
    hold: int = HOLD

    @property
    def is_blind(self) -> bool:
        """Whether nobody said which queues, and AMQP cannot tell."""
        return self.reference is None and not self.queues

    @asynccontextmanager
    async def opened(self, limits: Limits = EVERYTHING, *, lost: bool = False) -> AsyncGenerator[list[DeadLetters]]:
        """Connect, and yield the dead letters of each queue that is meant; ``lost``: of all services' too.

        Raises `ConfigurationError`, and `click.UsageError` where nobody said which queues.
        """
        if self.is_blind and not lost:
            raise click.UsageError("with --url, say which queues: --queue NAME (as often as there are)")
        told: dict[str, Any] = {"declare": "none", "limits": limits, "start_timeout": PATIENCE}
        known = queues = list(self.queues)
        renamed: dict[str, str] = {}
        if self.reference is None:
            bus = Bus(self.url or "", name="dlq", **told)
        else:
            loaded = load_bus(self.reference)
            known = list(dict.fromkeys(undivided(each.name) for each in loaded.subscriptions))
            renamed = {each.name: each.was for each in loaded.subscriptions if each.was}
            queues = [_of_the_bus(name, [*known, *renamed.values()]) for name in self.queues] or known
            bus = loaded.sibling(routers=(), plugins=(), **told)
        async with bus:
            if not self.queues:
                queues = await _with_former(bus, queues, renamed)
            there = [each for name in queues for each in await self._there(bus, name)]
            if known and not there:
                raise ConfigurationError(
                    f"{bus.address} has none of this bus's dead letter queues: it has not run there yet"
                )
            if lost and not self.queues and await bus.depth(LOST) is not None:
                there.append(LOST)
            yield [DeadLetters(bus, queue, hold=self.hold) for queue in dict.fromkeys(there)]

    async def _there(self, bus: Bus, name: str) -> list[str]:
        """Return the queue that is meant by ``name``, its own or that of its dead letters, if those are there."""
        for queue in (name, name.removesuffix(DEAD) if self.reference is None else name):
            if await bus.depth(dead_queue_of(queue)) is not None:
                return [queue]
        dead = dead_queue_of(name.removesuffix(DEAD))[:80]
        if self.queues:
            why = " (in this virtual host)" if self.reference is None else ": this bus has not run there yet"
            raise ConfigurationError(f"there is no queue {dead!r} at {bus.address}{why}")
        say.print(f"there is no queue {dead!r} yet")
        return []


async def _with_former(bus: Bus, queues: list[str], renamed: Mapping[str, str]) -> list[str]:
    """Return queues, and of those that were renamed each name under which there is a place for dead letters."""
    found: list[str] = []
    for name in queues:
        names = (renamed[name], name) if name in renamed else ()
        found += [each for each in names if await bus.depth(dead_queue_of(each)) is not None] or [name]
    return found


def _of_the_bus(name: str, known: list[str]) -> str:
    for queue in (*known, LOST):
        if name in (queue, dead_queue_of(queue)):
            return queue
    there = ", ".join(map(dead_queue_of, known)) or "none at all"
    raise ConfigurationError(f"the bus has no queue {name[:80]!r}; its dead letter queues are {there}")


# --- arguments and options -----------------------------------------------------------------------------------------


def begin(said: str) -> datetime:
    """Read when to begin: an hour of the day such as ``02:30``, the next time it is that late here, or a whole time."""
    now = datetime.now().astimezone()
    try:
        if len(said) > len("02:30"):
            return datetime.fromisoformat(said).astimezone()
        hour = datetime.strptime(said, "%H:%M").time()
        days = (datetime.combine(now + timedelta(days=n), hour).astimezone() for n in (0, 1))
        return next(at for at in days if at > now)
    except ValueError:
        raise ConfigurationError(f"{said[:40]!r} is no time: write 02:30, or 2026-05-01T02:30") from None


LIMIT: Final = click.option("--limit", metavar="N", type=click.IntRange(1), help="At most N, of all queues together.")

_MANY: Final[dict[str, Any]] = {"metavar": "NAME", "multiple": True}
_HELD: Final = click.IntRange(1, HOLD)
_SHARED: Final = (
    click.argument("reference", metavar="[MODULE:BUS]", required=False, type=BusReference()),
    click.option("--url", metavar="URL", help=f"Look at this broker, without a bus of yours ({URL}); needs --queue."),
    click.option(
        "--queue", "-q", "queues", **_MANY, help="Only this one, by its name or its dead letters'; or several."
    ),
    click.option("--hold", metavar="N", type=_HELD, default=HOLD, help=f"Keep at most N in memory at a time ({HOLD})."),
    click.option("--id", "ids", metavar="ID", multiple=True, help="The letters of this event, or of several."),
    click.option("--type", "types", **_MANY, help="Events of this type; * stands for any text: 'order.*'."),
    click.option(
        "--error",
        "errors",
        **_MANY,
        help="Died of this: a class, without its module too; or delivery_limit.",
    ),
    click.option("--older-than", metavar="AGE", type=age, help="Failed longer ago than 90s, 10m, 2h, 7d."),
    click.option("--newer-than", metavar="AGE", type=age, help="Failed more recently than that."),
)


def letters(command: Callable[..., int]) -> Callable[..., int]:
    """Have a command take where to look, a `Target` named ``where``, and which letters are meant, a ``selection``."""

    @wraps(command)
    def called(*, reference: str | None, url: str | None, queues: tuple[str, ...], hold: int, **others: Any) -> int:
        if reference is None and url is None:
            url = os.environ.get(URL) or None
        if (reference is None) == (url is None):
            raise click.UsageError(f"say where to look: MODULE:BUS, or --url URL (or {URL}) and --queue NAME")
        selection = Selection(**{name: others.pop(name) for name in Selection.__struct_fields__})
        return command(where=Target(reference, url, queues, hold), selection=selection, **others)

    return reduce(lambda function, option: option(function), reversed(_SHARED), called)

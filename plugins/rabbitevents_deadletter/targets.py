"""What the commands are told: where to look, which letters are meant, and the bus that leads to them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from rabbitevents import Bus, ConfigurationError, Limits
from rabbitevents.cli import BusReference, load_bus, say
from rabbitevents_deadletter.labels import DEAD, LOST, dead_queue_of
from rabbitevents_deadletter.selection import Selection, age
from rabbitevents_deadletter.workbench import HOLD, DeadLetters

T = TypeVar("T")

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

    @classmethod
    def told(cls, reference: str | None, url: str | None, queues: tuple[str, ...], hold: int) -> Target:
        """Take what was said, and the environment's URL where nothing was. Raises `click.UsageError`."""
        if reference is None and url is None:
            url = os.environ.get(URL) or None
        if (reference is None) == (url is None):
            raise click.UsageError(f"say where to look: MODULE:BUS, or --url URL (or {URL}) and --queue NAME")
        return cls(reference, url, queues, hold)

    @property
    def is_blind(self) -> bool:
        """Whether nobody said which queues, and AMQP cannot tell."""
        return self.reference is None and not self.queues

    @asynccontextmanager
    async def opened(self, limits: Limits = EVERYTHING, *, lost: bool = False) -> AsyncGenerator[list[DeadLetters]]:
        """Connect, and yield the dead letters of each queue that is meant; ``lost``: of all services' too.

        Raises `ConfigurationError`.
        """
        if self.is_blind and not lost:
            raise click.UsageError("with --url, say which queues: --queue NAME (as often as there are)")
        if self.reference is not None:
            loaded = load_bus(self.reference)
            known: Sequence[str] = [each.queue for each in loaded.subscriptions]
            bus = loaded.sibling(routers=(), plugins=(), declare="none", limits=limits, start_timeout=PATIENCE)
            meant = [_named(name, known) for name in self.queues]
        else:
            known, meant = (), []
            bus = Bus(self.url or "", name="dlq", declare="none", limits=limits, start_timeout=PATIENCE)
        async with bus:
            if self.reference is None:
                there = [await _at(bus, name) for name in self.queues]
            else:
                there = await _of(bus, meant or known, named=bool(meant))
            if lost and not self.queues and await bus.depth(LOST) is not None:
                there.append(LOST)
            yield [DeadLetters(bus, queue, hold=self.hold) for queue in dict.fromkeys(there)]


async def _of(bus: Bus, meant: Sequence[str], *, named: bool) -> list[str]:
    """Return those queues of a bus that have a dead letter queue."""
    there: list[str] = []
    for queue in dict.fromkeys(meant):
        dead = dead_queue_of(queue)
        if await bus.depth(dead) is not None:
            there.append(queue)
        elif named:
            raise ConfigurationError(f"there is no queue {dead!r} at {bus.address}: this bus has not run there yet")
        else:
            say.print(f"there is no queue {dead!r} yet")
    if not there:
        raise ConfigurationError(f"{bus.address} has none of this bus's dead letter queues: it has not run there yet")
    return there


def _named(name: str, known: Sequence[str]) -> str:
    found = next((queue for queue in (*known, LOST) if name in (queue, dead_queue_of(queue))), None)
    if found is None:
        there = ", ".join(map(dead_queue_of, known)) or "none at all"
        raise ConfigurationError(f"the bus has no queue {name[:80]!r}; its dead letter queues are {there}")
    return found


async def _at(bus: Bus, name: str) -> str:
    """Return the queue at a broker whose dead letters are meant by ``name``, the one or the other's."""
    if await bus.depth(dead_queue_of(name)) is not None:
        return name
    if name.endswith(DEAD) and await bus.depth(name) is not None:
        return name.removesuffix(DEAD)
    wanted = name if name.endswith(DEAD) else dead_queue_of(name)
    raise ConfigurationError(f"there is no queue {wanted[:80]!r} at {bus.address} (in this virtual host)")


class Commands(click.Group):
    """A group that knows what is meant by a bus without a command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant. Raises `click.UsageError`."""
        name = args[0]
        if ":" in name and not name.startswith("-"):
            raise click.UsageError(f"say what to do first: {ctx.command_path} list {name[:60]}", ctx)
        return super().resolve_command(ctx, args)


# --- arguments and options -----------------------------------------------------------------------------------------


def target(command: Callable[..., T]) -> Callable[..., T]:
    """Have a command take MODULE:BUS, or --url and --queue; it gets them as a `Target` named ``where``."""

    @click.argument("reference", metavar="[MODULE:BUS]", required=False, type=BusReference())
    @click.option("--url", metavar="URL", help=f"Look at this broker, without a bus of yours ({URL}); needs --queue.")
    @click.option(
        "--queue",
        "-q",
        "queues",
        metavar="NAME",
        multiple=True,
        help="Only this queue: its own name, or that of its dead letters. As often as you like.",
    )
    @click.option(
        "--hold",
        metavar="N",
        type=click.IntRange(1, HOLD),
        default=HOLD,
        help=f"Keep at most N messages in memory at a time ({HOLD}).",
    )
    @wraps(command)
    def called(*, reference: str | None, url: str | None, queues: tuple[str, ...], hold: int, **others: Any) -> T:
        return command(where=Target.told(reference, url, queues, hold), **others)

    return called


def _age(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    try:
        return None if value is None else age(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def selection(command: Callable[..., T]) -> Callable[..., T]:
    """Have a command take filters; it gets them as a `Selection` named ``selection``."""

    @click.option("--id", "ids", metavar="ID", multiple=True, help="The letters of this event. As often as you like.")
    @click.option(
        "--type", "types", metavar="NAME", multiple=True, help="Events of this type; * stands for any text: 'order.*'."
    )
    @click.option(
        "--error",
        "errors",
        metavar="NAME",
        multiple=True,
        help="Failed with this exception class, with or without its module; or the broker's reason: delivery_limit.",
    )
    @click.option("--older-than", metavar="AGE", callback=_age, help="Failed longer ago than 90s, 10m, 2h, 7d.")
    @click.option("--newer-than", metavar="AGE", callback=_age, help="Failed more recently than that.")
    @wraps(command)
    def called(*, ids: Any, types: Any, errors: Any, older_than: Any, newer_than: Any, **others: Any) -> T:
        meant = Selection(ids=ids, types=types, errors=errors, older_than=older_than, newer_than=newer_than)
        return command(selection=meant, **others)

    return called


def limit(default: int | None, what: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Have a command take a number of letters, over all queues."""
    shown = f" ({default})" if default is not None else ""
    return click.option(
        "--limit", metavar="N", type=click.IntRange(min=1), default=default, help=f"{what} at most N{shown}."
    )


def begin(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """Read when to begin: an hour of the day such as ``02:30``, the next time it is that late here, or a whole time."""
    if value is None:
        return None
    now = datetime.now().astimezone()
    try:
        if len(value) <= len("02:30"):
            hour = datetime.strptime(value, "%H:%M").time()
            at = datetime.combine(now, hour).astimezone()
            return at if at > now else datetime.combine(now + timedelta(days=1), hour).astimezone()
        return datetime.fromisoformat(value).astimezone()
    except ValueError:
        raise click.BadParameter(f"{value[:40]!r} is no time: write 02:30, or 2026-05-01T02:30", ctx, param) from None

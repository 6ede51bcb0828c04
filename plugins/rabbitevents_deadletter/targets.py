"""Which dead letter queues a command is about, and the bus that leads to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import click
import msgspec

from rabbitevents import Bus, ConfigurationError, Limits
from rabbitevents.cli import load_bus, say
from rabbitevents_deadletter.labels import DEAD
from rabbitevents_deadletter.workbench import HOLD, DeadLetters

EVERYTHING: Final = Limits(body=512 * 1024 * 1024, headers=131_000)
"""What a broker may hold: the largest ``max_message_size`` that RabbitMQ can be told, and headers that fill a frame."""

NAMES_ONLY: Final = Limits(body=0)
"""No body is kept: for counting, however large they are."""

PATIENCE: Final = 10.0
"""Seconds that a broker which is away is looked for."""


class Target(msgspec.Struct, frozen=True):
    """What a command was told of where to look: MODULE:BUS, or a URL and names of queues."""

    reference: str | None
    url: str | None
    queues: tuple[str, ...]
    hold: int = HOLD

    def check(self) -> None:
        """Raise `click.UsageError` for what is too little, or too much."""
        if (self.reference is None) == (self.url is None):
            raise click.UsageError("say where to look: MODULE:BUS, or --url URL and --queue NAME")
        if self.url is not None and not self.queues:
            raise click.UsageError("with --url, say which queues: --queue NAME (as often as there are)")

    @asynccontextmanager
    async def opened(self, limits: Limits = EVERYTHING) -> AsyncGenerator[list[DeadLetters]]:
        """Connect, and yield the dead letters of each queue that is meant. Raises `ConfigurationError`."""
        if self.reference is not None:
            loaded = load_bus(self.reference)
            known = tuple(each.queue for each in loaded.subscriptions)
            bus = loaded.sibling(routers=(), plugins=(), declare="none", limits=limits, start_timeout=PATIENCE)
        else:
            known = None
            bus = Bus(self.url or "", name="dlq", declare="none", limits=limits, start_timeout=PATIENCE)
        async with bus:
            queues = await _at(bus, self.queues) if known is None else await _of(bus, known, self.queues)
            yield [DeadLetters(bus, queue, hold=self.hold) for queue in queues]


async def _of(bus: Bus, known: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the queues of a bus that are meant by ``names``, or all that have a dead letter queue."""
    meant = [_named(name, known) for name in names]
    there: list[str] = []
    for queue in dict.fromkeys(meant or known):
        if await bus.depth(queue + DEAD) is not None:
            there.append(queue)
        elif meant:
            raise ConfigurationError(
                f"there is no queue {queue + DEAD!r} at {bus.address}: this bus has not run there yet"
            )
        else:
            say.print(f"there is no queue {queue + DEAD!r} yet")
    if not there:
        raise ConfigurationError(f"{bus.address} has none of this bus's dead letter queues: it has not run there yet")
    return there


def _named(name: str, known: Sequence[str]) -> str:
    found = next((queue for queue in known if name in (queue, queue + DEAD)), None)
    if found is None:
        there = ", ".join(queue + DEAD for queue in known) or "none at all"
        raise ConfigurationError(f"the bus has no queue {name[:80]!r}; its dead letter queues are {there}")
    return found


async def _at(bus: Bus, names: Sequence[str]) -> list[str]:
    """Return the queues at a broker whose dead letters are meant by ``names``, each the one or the other's name."""
    found: list[str] = []
    for name in dict.fromkeys(names):
        if await bus.depth(name + DEAD) is not None:
            found.append(name)
        elif name.endswith(DEAD) and await bus.depth(name) is not None:
            found.append(name.removesuffix(DEAD))
        else:
            wanted = name if name.endswith(DEAD) else name + DEAD
            raise ConfigurationError(f"there is no queue {wanted[:80]!r} at {bus.address} (in this virtual host)")
    return list(dict.fromkeys(found))

"""The waiting queues: how an event comes back later, with nothing but TTL and dead-lettering.

One fanout exchange and one quorum queue per waiting time, shared by all services: ``delay.<ms>``. What waits is
dead-lettered, at least once, to the exchange that leads on: `topology.DELAY_DUE` for a copy that returns to one
queue (its routing key is that queue), ``<exchange>.due`` for a delayed publish (in a family of its own,
``<exchange>.delay.<ms>``). Both have an alternate exchange, so that what nobody waits for any more wedges nobody.

All events in one queue wait equally long, so the head is always the first that falls due: never early, and late by
what the wait was rounded up. `tier` rounds up by at most 10 % or half a second.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from datetime import timedelta

import msgspec

from rabbitevents.brokers import Broker
from rabbitevents.errors import (
    BrokerError,
    ConfigurationError,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
    TopologyError,
)
from rabbitevents.message import Message
from rabbitevents.topology import (
    DEAD_LETTER_LIMIT,
    DELAY_DUE,
    Binding,
    Exchange,
    Queue,
    Topology,
    due_exchange,
    quorum,
    way_out,
)

STEP = 500
"""Up to `STEPS_END`, tiers stand this many milliseconds apart; beyond, each is 10 % longer than the one before."""

STEPS_END = 5_000
LONGEST = timedelta(days=30)

_DECLARE_PAUSE = 0.25
"""Seconds before a waiting queue is declared again that could not be."""


def tier(after: timedelta) -> int:
    """Return the shortest waiting time that there is a queue for and that is not below ``after``, in milliseconds.

    Raises `ConfigurationError` above `LONGEST`.
    """
    if after > LONGEST:
        raise ConfigurationError(f"an event can wait at most {LONGEST.days} days at the broker, not {after}")
    wanted = math.ceil(after / timedelta(milliseconds=1))
    if wanted <= STEPS_END:
        return max(1, math.ceil(wanted / STEP)) * STEP
    ms = STEPS_END
    while ms < wanted:
        ms = ms * 11 // 10
    return ms


def tiers(shortest: timedelta, longest: timedelta) -> Iterator[int]:
    """Yield the waiting times that there are queues for from the one to the other, in milliseconds. Raises as `tier` does."""
    ms, last = tier(shortest), tier(longest)
    while ms < last:
        yield ms
        ms = tier(timedelta(milliseconds=ms + 1))
    yield last


def room_name(ms: int) -> str:
    """Return the name of the queue in which a copy for one queue waits so long."""
    return f"delay.{ms}"


def waiting_room(name: str, leads_to: str, ms: int) -> Topology:
    """Return what is declared for one waiting time: where it leads first, or what falls due would wait on for minutes."""
    arguments = quorum(
        message_ttl=ms,
        dead_letter_exchange=leads_to,
        dead_letter_strategy="at-least-once",
        overflow="reject-publish",
        delivery_limit=DEAD_LETTER_LIMIT,
    )
    here = Topology((Exchange(name, "fanout"), Queue(name, arguments), Binding(name, name, "")))
    return way_out(leads_to) + here


class Delays:
    """Publishes messages that wait first, and declares the waiting queues when they are first needed."""

    def __init__(self, broker: Broker, exchange: str, *, passive: bool) -> None:
        self._broker = broker
        self._exchange = exchange
        self._passive = passive
        self._declared: set[str] = set()
        self._declaring: dict[str, asyncio.Task[None]] = {}
        self._wanted_until: dict[str, float] = {}
        self._why: dict[str, str] = {}

    async def publish(self, message: Message, deadline: float) -> bool:
        """Have ``message`` come out after its ``after``. Raises what `Broker.publish` raises.

        A waiting queue that the broker will not have declared is a `RefusedError`, caused by the `TopologyError`.
        """
        if message.after is None or message.after <= timedelta():
            return await self._broker.publish(message, deadline)
        ms = tier(message.after)
        name, leads_to = self._family(message, ms)
        waiting = msgspec.structs.replace(message.waiting(), exchange=name, after=None)
        room = waiting_room(name, leads_to, ms)
        await self._prepare(name, room, message, deadline)
        try:
            if await self._broker.publish(waiting, deadline):
                return True
        except (OutcomeUnknownError, RefusedError):
            self._declared.discard(name)  # a waiting queue that was deleted answers so: it is declared again
            raise
        self._declared.discard(name)
        await self._prepare(name, room, message, deadline)
        return await self._broker.publish(waiting, deadline)

    def _family(self, message: Message, ms: int) -> tuple[str, str]:
        if message.exchange == "":
            return room_name(ms), DELAY_DUE
        if message.exchange == self._exchange:
            return f"{self._exchange}.delay.{ms}", due_exchange(self._exchange)
        raise ConfigurationError(
            f"only a copy to a queue, or one to {self._exchange!r}, can wait; not one to {message.exchange!r}"
        )

    async def _prepare(self, name: str, room: Topology, message: Message, deadline: float) -> None:
        """Have the waiting queue declared, once for all who need it. Raises `NotSentError` at the deadline.

        Callers wait for one task that none of them cancels: a declaration that is broken off would cost its channel.
        """
        if name in self._declared:
            return
        loop = asyncio.get_running_loop()
        self._wanted_until[name] = max(deadline, self._wanted_until.get(name, deadline))
        declaring = self._declaring.get(name)
        if declaring is None or declaring.done():
            declaring = self._declaring[name] = loop.create_task(self._declare(name, room))
            declaring.add_done_callback(_look)
        await asyncio.wait({declaring}, timeout=max(0.0, deadline - loop.time()))
        if not declaring.done() or declaring.cancelled():
            raise NotSentError(message, f"its waiting queue could not be declared in time: {self._why.get(name, '')}")
        if isinstance(error := declaring.exception(), TopologyError):  # rights that were taken can be given back
            raise RefusedError(message, f"its waiting queue may not be declared: {error}") from error
        declaring.result()
        if name not in self._declared:
            raise NotSentError(message, f"its waiting queue could not be declared: {self._why.get(name, '')}")

    async def _declare(self, name: str, room: Topology) -> None:
        """Declare a waiting queue; try again as long as somebody waits for it."""
        now = asyncio.get_running_loop().time
        while now() < self._wanted_until[name]:
            try:
                errors = await self._broker.declare(room, passive=self._passive)
            except BrokerError as error:
                self._why[name] = str(error)
                await asyncio.sleep(_DECLARE_PAUSE)
                continue
            for refused in errors.values():
                if not refused.stands:
                    raise refused
            self._declared.add(name)
            return

    def close(self) -> None:
        """Declare nothing more."""
        for declaring in self._declaring.values():
            declaring.cancel()


def _look(task: asyncio.Task[None]) -> None:
    """Look at the outcome, which nobody may wait for any more."""
    if not task.cancelled():
        task.exception()

"""The embedded broker's queues: RabbitMQ's quorum queue semantics, in one process.

In order, returned messages at their old place; prefetch; redelivered flag and delivery count; delivery limit; TTL at
the head; max-length; dead-lettering (https://www.rabbitmq.com/docs/dlx).
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count, islice

import msgspec

from rabbitevents.brokers import Deliver, Trusted, Verdict
from rabbitevents.brokers.embedded.clock import Clock
from rabbitevents.brokers.embedded.copies import further_keys, without
from rabbitevents.brokers.embedded.deaths import after_death, death
from rabbitevents.message import Delivery
from rabbitevents.properties import Properties
from rabbitevents.topology import Argument, Arguments

_sequence = count()


class Stored(msgspec.Struct, eq=False):
    """A message in a queue. ``count`` is how often it was returned, ``place`` where it stands in the order of arrival."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties
    expires: float | None = None
    count: int = 0
    place: int = 0

    def __repr__(self) -> str:
        return f"<Stored {self.properties.message_id}>"

    def after_death(self, queue: str, reason: str, date: int) -> Stored:
        """Return it as it leaves ``queue`` for a dead letter exchange: ``x-death`` says so, and it expires no more."""
        old = self.properties
        keys = [self.routing_key, *further_keys(old.headers, "CC")]
        noted = death(queue, reason, exchange=self.exchange, routing_keys=keys, date=date, expiration=old.expiration)
        properties = msgspec.structs.replace(old, headers=after_death(old.headers, noted), expiration=None)
        return Stored(self.exchange, self.routing_key, self.body, properties)

    def without_copies(self) -> Stored:
        """Return it without ``CC``: a dead letter that goes by a key of its queue's goes by no other."""
        properties = msgspec.structs.replace(self.properties, headers=without(self.properties.headers, "CC"))
        return Stored(self.exchange, self.routing_key, self.body, properties)


DeadLetter = Callable[[Stored, str, str | None], bool]
"""Publishes a dead letter to an exchange, with a routing key or (None) its own; False when no queue took it."""


class Reader:
    """One consumer of a queue: its window, and what it has not settled, by delivery tag."""

    def __init__(
        self, queue: MemoryQueue, generation: int, prefetch: int, deliver: Deliver, trusted: Trusted | None
    ) -> None:
        self.queue = queue
        self.generation = generation
        self.unsettled: dict[int, Stored] = {}
        self.cancelled: bool = False
        self.closed: bool = False
        self._window = 1 if trusted is not None else prefetch
        self._width = self._prefetch = prefetch
        self._deliver = deliver
        self._trusted = trusted
        self._tag = 0
        self._cleared: set[int] = set()
        """Those that do not count while the window is narrow."""
        self._batch: list[Delivery] = []

    @property
    def open(self) -> bool:
        """Whether the channel stands, and what it brought can still be settled."""
        return not self.closed

    @property
    def has_room(self) -> bool:
        """Whether it takes one more delivery."""
        taken = len(self.unsettled)
        return (
            not self.cancelled
            and not self.closed
            and taken - len(self._cleared) < self._window
            and taken < self._prefetch
        )

    def cancel(self) -> None:
        """Take nothing more; what is taken can still be settled."""
        self.cancelled = True

    def resume(self) -> None:
        """Take deliveries again, with a window as wide as at first: a new consumer's, that is."""
        if self.cancelled:
            self._window = self._prefetch = self._width + len(self.unsettled)
            if self._trusted is not None:
                self._window = 1
                self._cleared.update(self.unsettled)
        self.cancelled = False
        self.queue.dispatch()

    def take(self, stored: Stored) -> None:
        """Deliver, together with what else comes in this turn of the loop."""
        self._tag += 1
        self.unsettled[self._tag] = stored
        headers = stored.properties.headers
        if stored.count:
            headers = {**headers, "x-delivery-count": stored.count}
        delivery = Delivery(
            self.queue.name,
            self._tag,
            self.generation,
            stored.count > 0,
            stored.exchange,
            stored.routing_key,
            stored.body,
            msgspec.structs.replace(stored.properties, headers=headers),
            channel=self,
        )
        if not self._batch:
            asyncio.get_running_loop().call_soon(self._flush)
        self._batch.append(delivery)
        if self._trusted is not None and self._trusted(delivery):
            self._window = self._prefetch

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if batch and not self.closed:
            self._deliver(batch)

    def settle(self, tag: int, verdict: Verdict) -> bool:
        """Settle one delivery; False for one that is settled already, or whose channel is gone."""
        self._cleared.discard(tag)
        stored = self.unsettled.pop(tag, None)
        if stored is None or self.closed:
            return False
        if verdict is Verdict.REQUEUE:
            self.queue.give_back(stored)
        elif verdict is Verdict.REJECT:
            self.queue.bury(stored, "rejected")
        self.queue.dispatch()
        return True

    def clear(self, tag: int) -> None:
        """Let one more come while this one, which is suspected no longer, stays unsettled."""
        if self._window < self._prefetch and tag in self.unsettled:
            self._cleared.add(tag)
            self.queue.dispatch()

    def close(self) -> None:
        """End the channel: what is unsettled goes back to the queue."""
        if self.closed:
            return
        self.closed = True
        self._batch = []
        unsettled, self.unsettled = self.unsettled, {}
        for stored in unsettled.values():
            self.queue.give_back(stored)
        self.queue.remove(self)
        self.queue.dispatch()


class MemoryQueue:
    """A queue: what waits in it, who reads from it, and what its arguments say."""

    def __init__(self, name: str, arguments: Arguments, clock: Clock, dead_letter: DeadLetter) -> None:
        self.name = name
        self.arguments: dict[str, Argument] = dict(arguments)
        self.stuck: list[tuple[Stored, str]] = []
        """Dead letters that no queue was bound for: kept, as at-least-once dead-lettering keeps them."""
        self._clock = clock
        self._dead_letter = dead_letter
        self._ready: list[tuple[int, Stored]] = []
        self._readers: deque[Reader] = deque()

    # --- in ---

    @property
    def ready(self) -> int:
        """How many messages wait."""
        return len(self._ready)

    @property
    def unsettled(self) -> int:
        """How many messages are delivered and not settled."""
        return sum(len(reader.unsettled) for reader in self._readers)

    @property
    def readers(self) -> int:
        """How many consumers read from it; one that was cancelled counts as long as it holds something, as on RabbitMQ."""
        return sum(not reader.cancelled or bool(reader.unsettled) for reader in self._readers)

    @property
    def full(self) -> bool:
        """Whether it refuses to take more."""
        limit = self.arguments.get("x-max-length")
        rejects = self.arguments.get("x-overflow") == "reject-publish"
        return isinstance(limit, int) and rejects and self.ready + self.unsettled >= limit

    def put(self, stored: Stored) -> None:
        """Take a message in, at the end."""
        stored.expires, stored.place = self._expiry(stored), next(_sequence)
        self._insert(stored)
        limit = self.arguments.get("x-max-length")
        if isinstance(limit, int) and self.arguments.get("x-overflow") != "reject-publish":
            while self.ready > max(0, limit):
                self.bury(self._take(), "maxlen")
        if stored.expires is not None:
            self._clock.call_at(stored.expires, self.expire)
        self.dispatch()

    def _expiry(self, stored: Stored) -> float | None:
        waits = [self.arguments.get("x-message-ttl"), stored.properties.expiration]
        limits = [int(ms) for ms in waits if ms is not None]  # both were looked at when they were declared or published
        return self._clock.time() + min(limits) / 1000 if limits else None

    def _insert(self, stored: Stored) -> None:
        heapq.heappush(self._ready, (stored.place, stored))

    def _take(self) -> Stored:
        return heapq.heappop(self._ready)[1]

    def give_back(self, stored: Stored) -> None:
        """Put a message back in its place, counted; beyond the delivery limit it is dead-lettered."""
        stored.count += 1
        limit = self.arguments.get("x-delivery-limit")
        if isinstance(limit, int) and stored.count > limit:
            self.bury(stored, "delivery_limit")
        else:
            self._insert(stored)

    # --- out ---

    def read(self, reader: Reader) -> None:
        """Let a consumer read."""
        self._readers.append(reader)
        self.dispatch()

    def remove(self, reader: Reader) -> None:
        """Let a consumer read no more."""
        if reader in self._readers:
            self._readers.remove(reader)

    def dispatch(self) -> None:
        """Deliver what waits to those who have room, in turn."""
        self.expire()
        while self._ready:
            reader = next((r for r in self._readers_in_turn() if r.has_room), None)
            if reader is None:
                return
            if not self._one_reads:
                self._readers.remove(reader)
                self._readers.append(reader)
            reader.take(self._take())

    @property
    def _one_reads(self) -> bool:
        return self.arguments.get("x-single-active-consumer") is True

    def _readers_in_turn(self) -> Iterable[Reader]:
        """Return who may be given the next one: all, or the one that has been here longest."""
        if not self._one_reads:
            return self._readers
        return islice((reader for reader in self._readers if not reader.cancelled), 1)

    def expire(self) -> None:
        """Dead-letter what has waited too long; only at the head, as RabbitMQ does."""
        now = self._clock.time()
        while self._ready and (expires := self._ready[0][1].expires) is not None and expires <= now:
            self.bury(self._take(), "expired")

    def bury(self, stored: Stored, reason: str) -> None:
        """Dead-letter, if there is a dead letter exchange; else the message is gone."""
        if "x-dead-letter-exchange" in self.arguments and not self._lead_on(stored, reason):
            self.stuck.append((stored, reason))

    def _lead_on(self, stored: Stored, reason: str) -> bool:
        exchange, key = str(self.arguments["x-dead-letter-exchange"]), self.arguments.get("x-dead-letter-routing-key")
        letter = stored.after_death(self.name, reason, self._clock.date())
        if key is not None:
            key, letter = str(key), letter.without_copies()
        led = self._dead_letter(letter, exchange, key)
        return led or self.arguments.get("x-dead-letter-strategy") != "at-least-once"

    def retry_stuck(self) -> None:
        """Try dead letters again that no queue was bound for."""
        stuck, self.stuck = self.stuck, []
        self.stuck += [(stored, reason) for stored, reason in stuck if not self._lead_on(stored, reason)]

    def clear(self) -> None:
        """Be deleted: with what waits, without dead letters, and with nobody reading any more."""
        self.arguments.clear()
        for reader in list(self._readers):
            reader.close()
        self._ready.clear()
        self.stuck.clear()

"""The embedded broker's topology: what is declared, and where a message goes by it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import msgspec

from rabbitevents.brokers.embedded.bindings import Bindings
from rabbitevents.brokers.embedded.clock import Clock
from rabbitevents.brokers.embedded.copies import further_keys, without
from rabbitevents.brokers.embedded.deaths import is_cycle
from rabbitevents.brokers.embedded.declaring import STANDARD, refusal
from rabbitevents.brokers.embedded.queues import MemoryQueue, Stored
from rabbitevents.errors import TopologyError
from rabbitevents.message import Message
from rabbitevents.properties import NO_HEADERS, Headers
from rabbitevents.topology import HASH, Arguments, Binding, Exchange, Queue, missing


class Routes:
    """Exchanges, queues and bindings, and the ways through them."""

    def __init__(self) -> None:
        self.clock: Clock = Clock()
        self.exchanges: dict[str, Exchange] = {each.name: each for each in STANDARD}
        self.queues: dict[str, MemoryQueue] = {}
        self.bindings: Bindings = Bindings()
        self.inner: Bindings = Bindings()
        """What leads from exchanges to exchanges."""

    # --- declaring ---

    def declare(self, item: Exchange | Queue | Binding, *, passive: bool) -> TopologyError | None:
        """Declare one thing; return what is the matter if it is otherwise there, or not there at all."""
        return next(iter(self.declare_all([item], passive=passive).values()), None)

    def declare_all(self, items: Iterable[Exchange | Queue | Binding], *, passive: bool) -> dict[str, TopologyError]:
        """Declare things in order, or with ``passive`` only look; return what is refused, by name."""
        refused: dict[str, TopologyError] = {}
        before = len(self.bindings) + len(self.inner)
        for item in items:
            error = self._declare(item, passive=passive)
            if error is not None:
                refused.setdefault(error.name, error)
        if len(self.bindings) + len(self.inner) > before:
            self._retry_stuck()
        return refused

    def _declare(self, item: Exchange | Queue | Binding, *, passive: bool) -> TopologyError | None:
        if isinstance(item, Binding):
            return None if passive else self._bind(item)
        error = refusal(self._there(item), item, passive=passive)
        if error is None and not passive:
            if isinstance(item, Exchange):
                if item.kind is not None:
                    self.exchanges.setdefault(item.name, item)
            elif item.name not in self.queues:
                self.queues[item.name] = self.make_queue(item.name, item.arguments)
        return error

    def _there(self, item: Exchange | Queue) -> Exchange | Queue | None:
        if isinstance(item, Exchange):
            return self.exchanges.get(item.name)
        queue = self.queues.get(item.name)
        return None if queue is None else Queue(queue.name, queue.arguments)

    def make_queue(self, name: str, arguments: Arguments) -> MemoryQueue:
        """Make a queue."""
        return MemoryQueue(name, arguments, self.clock, self._dead_letter)

    def _bind(self, binding: Binding) -> TopologyError | None:
        exchange = self.exchanges.get(binding.exchange)
        if not binding.exchange:
            return TopologyError("nothing can be bound to the default exchange", name=binding.queue, code=403)
        what, there = ("exchange", self.exchanges) if binding.to_exchange else ("queue", self.queues)
        if exchange is None or binding.queue not in there:
            why = missing(binding.exchange) if exchange is None else f"{what} {binding.queue!r} does not exist"
            return TopologyError(f"nothing can be bound: {why}", name=binding.queue, code=404)
        (self.inner if binding.to_exchange else self.bindings).add(binding, exchange)
        return None

    def forget_queue(self, name: str) -> None:
        """Delete a queue and its bindings. Raises KeyError for one that is not there."""
        self.queues.pop(name).clear()
        self.bindings.remove_queue(name)

    # --- the ways ---

    def store(self, queue: MemoryQueue, message: Message) -> None:
        """Put a published message into a queue."""
        properties = message.properties
        if "BCC" in properties.headers:
            properties = msgspec.structs.replace(properties, headers=without(properties.headers, "BCC"))
        queue.put(Stored(message.exchange, message.routing_key, message.body, properties))

    def route(self, exchange: str, routing_keys: Iterable[str], headers: Headers = NO_HEADERS) -> list[MemoryQueue]:
        """Return the queues that a message goes to, each once; where an exchange leads nowhere, those of its alternate one.

        No exchange is gone through twice.
        """
        keys, seen = list(routing_keys), set[str]()
        return [self.queues[name] for name in dict.fromkeys(self._lead(exchange, keys, headers, seen))]

    def _lead(self, exchange: str, keys: list[str], headers: Headers, seen: set[str]) -> Iterator[str]:
        if not exchange:
            yield from (key for key in keys if key in self.queues)
            return
        if exchange in seen:
            return
        seen.add(exchange)
        here = self.exchanges[exchange]
        leads = False
        for name in self._straight(here, keys, headers):
            leads = True
            yield name
        if len(self.inner):
            for key in keys:
                for inner in self.inner.lead(here, key):
                    leads = True
                    yield from self._lead(inner, keys, headers, seen)
        alternate = here.arguments.get("alternate-exchange")
        if not leads and isinstance(alternate, str) and alternate in self.exchanges:
            yield from self._lead(alternate, keys, headers, seen)

    def _straight(self, exchange: Exchange, keys: list[str], headers: Headers) -> Iterator[str]:
        """Yield the queues that are bound to an exchange, and that a message goes to from there."""
        if exchange.kind == HASH:
            if queues := self.bindings.all_of(exchange.name):
                entity = str(headers.get(str(exchange.arguments.get("hash-header", "")), ""))
                yield queues[zlib.crc32(entity.encode()) % len(queues)]
            return
        for key in keys:
            yield from self.bindings.lead(exchange, key)

    def _dead_letter(self, stored: Stored, exchange: str, routing_key: str | None) -> bool:
        """Publish a dead letter with ``routing_key``, or with those that it had; False when no queue took it."""
        if exchange and exchange not in self.exchanges:
            return False
        keys = (
            [routing_key]
            if routing_key is not None
            else [stored.routing_key, *further_keys(stored.properties.headers, "CC")]
        )
        routed = self.route(exchange, keys, stored.properties.headers)
        queues = [queue for queue in routed if not is_cycle(stored.properties.headers, queue.name)]
        for queue in queues:
            queue.put(Stored(exchange, keys[0], stored.body, stored.properties))
        return bool(queues)

    def _retry_stuck(self) -> None:
        """Try dead letters again that no queue was bound for: there are new bindings."""
        for queue in self.queues.values():
            queue.retry_stuck()

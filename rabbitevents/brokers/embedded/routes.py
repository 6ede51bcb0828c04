"""The embedded broker's topology: what is declared, and where a message goes by it."""

from __future__ import annotations

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
from rabbitevents.topology import Arguments, Binding, Exchange, Queue, missing


class Routes:
    """Exchanges, queues and bindings, and the ways through them."""

    def __init__(self) -> None:
        self.clock: Clock = Clock()
        self.exchanges: dict[str, Exchange] = {each.name: each for each in STANDARD}
        self.queues: dict[str, MemoryQueue] = {}
        self.bindings: Bindings = Bindings()

    # --- declaring ---

    def declare(self, item: Exchange | Queue | Binding, *, passive: bool) -> TopologyError | None:
        """Declare one thing; return what is the matter if it is otherwise there, or not there at all."""
        return next(iter(self.declare_all([item], passive=passive).values()), None)

    def declare_all(self, items: Iterable[Exchange | Queue | Binding], *, passive: bool) -> dict[str, TopologyError]:
        """Declare things in order, or with ``passive`` only look; return what is refused, by name."""
        refused: dict[str, TopologyError] = {}
        before = len(self.bindings)
        for item in items:
            error = self._declare(item, passive=passive)
            if error is not None:
                refused.setdefault(error.name, error)
        if len(self.bindings) > before:
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
        if exchange is None or binding.queue not in self.queues:
            why = missing(binding.exchange) if exchange is None else f"queue {binding.queue!r} does not exist"
            return TopologyError(f"nothing can be bound: {why}", name=binding.queue, code=404)
        self.bindings.add(binding, exchange)
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

    def route(self, exchange: str, routing_keys: Iterable[str]) -> list[MemoryQueue]:
        """Return the queues that a message goes to, each once; those of the alternate exchange if there are none.

        Alternate exchanges that lead round in a circle lead nowhere.
        """
        keys, seen = list(routing_keys), set[str]()
        while exchange not in seen:
            seen.add(exchange)
            names = dict.fromkeys(self._lead(exchange, keys))
            if names:
                return [self.queues[name] for name in names]
            there = self.exchanges.get(exchange)
            alternate = there.arguments.get("alternate-exchange") if there is not None else None
            exchange = alternate if isinstance(alternate, str) and alternate in self.exchanges else exchange
        return []

    def _lead(self, exchange: str, keys: list[str]) -> Iterator[str]:
        if not exchange:
            yield from (key for key in keys if key in self.queues)
            return
        for key in keys:
            yield from self.bindings.lead(self.exchanges[exchange], key)

    def _dead_letter(self, stored: Stored, exchange: str, routing_key: str | None) -> bool:
        """Publish a dead letter with ``routing_key``, or with those that it had; False when no queue took it."""
        if exchange and exchange not in self.exchanges:
            return False
        keys = (
            [routing_key]
            if routing_key is not None
            else [stored.routing_key, *further_keys(stored.properties.headers, "CC")]
        )
        routed = self.route(exchange, keys)
        queues = [queue for queue in routed if not is_cycle(stored.properties.headers, queue.name)]
        for queue in queues:
            queue.put(Stored(exchange, keys[0], stored.body, stored.properties))
        return bool(queues)

    def _retry_stuck(self) -> None:
        """Try dead letters again that no queue was bound for: there are new bindings."""
        for queue in self.queues.values():
            queue.retry_stuck()

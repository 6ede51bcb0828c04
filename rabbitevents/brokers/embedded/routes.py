"""The embedded broker's topology: what is declared, and where a message goes by it."""

from __future__ import annotations

from rabbitevents.brokers.embedded.clock import Clock
from rabbitevents.brokers.embedded.queues import MemoryQueue, Stored
from rabbitevents.errors import TopologyError
from rabbitevents.message import Message
from rabbitevents.routing import matches
from rabbitevents.topology import Arguments, Binding, Exchange, Queue


class Routes:
    """Exchanges, queues and bindings, and the ways through them."""

    def __init__(self) -> None:
        self.clock: Clock = Clock()
        self.exchanges: dict[str, Exchange] = {}
        self.queues: dict[str, MemoryQueue] = {}
        self.bindings: list[Binding] = []

    def declare(self, item: Exchange | Queue | Binding, *, passive: bool) -> TopologyError | None:
        """Declare one thing; return what is the matter if it is otherwise there, or not there at all."""
        match item:
            case Exchange():
                there = self.exchanges.get(item.name)
                if there is None and not passive:
                    self.exchanges[item.name] = there = item
                return _compared(f"exchange {item.name!r}", item.name, there, item, passive)
            case Queue():
                queue = self.queues.get(item.name)
                if queue is None and not passive:
                    queue = self.queues[item.name] = self.make_queue(item.name, item.arguments)
                current = None if queue is None else Queue(item.name, queue.arguments)
                return _compared(f"queue {item.name!r}", item.name, current, item, passive)
            case Binding():
                return None if passive else self._bind(item)

    def make_queue(self, name: str, arguments: Arguments) -> MemoryQueue:
        """Make a queue."""
        return MemoryQueue(name, arguments, self.clock, self._dead_letter)

    def _bind(self, binding: Binding) -> TopologyError | None:
        if binding.exchange not in self.exchanges or binding.queue not in self.queues:
            missing = binding.exchange if binding.exchange not in self.exchanges else binding.queue
            return TopologyError(f"{missing!r} does not exist: nothing can be bound", name=binding.queue, code=404)
        if binding not in self.bindings:
            self.bindings.append(binding)
            for queue in self.queues.values():
                queue.retry_stuck()
        return None

    def store(self, queue: MemoryQueue, message: Message) -> None:
        """Put a published message into a queue."""
        queue.put(Stored(message.exchange, message.routing_key, message.body, message.properties))

    def route(self, exchange: str, routing_key: str) -> list[MemoryQueue]:
        """Return the queues that a message goes to, each once; those of the alternate exchange if there are none."""
        if exchange == "":
            return [self.queues[routing_key]] if routing_key in self.queues else []
        there = self.exchanges[exchange]
        bound = [binding for binding in self.bindings if binding.exchange == exchange]
        names = dict.fromkeys(b.queue for b in bound if _leads(there, b.routing_key, routing_key))
        alternate = there.arguments.get("alternate-exchange")
        if not names and isinstance(alternate, str) and alternate in self.exchanges:
            return self.route(alternate, routing_key)
        return [self.queues[name] for name in names]

    def _dead_letter(self, stored: Stored, exchange: str, routing_key: str) -> bool:
        if exchange and exchange not in self.exchanges:
            return False
        queues = self.route(exchange, routing_key)
        for queue in queues:
            if not stored.would_cycle(queue.name):
                queue.put(Stored(exchange, routing_key, stored.body, stored.properties))
        return bool(queues)


def _leads(exchange: Exchange, binding_key: str, routing_key: str) -> bool:
    """Say whether a binding of ``exchange`` takes a message with ``routing_key``."""
    if exchange.kind == "topic":
        return matches(binding_key, routing_key)
    return exchange.kind == "fanout" or binding_key == routing_key


def _compared(
    what: str, name: str, there: Exchange | Queue | None, wanted: Exchange | Queue, passive: bool
) -> TopologyError | None:
    if there is None:
        return TopologyError(f"{what} does not exist: have it declared, or let this bus declare", name=name, code=404)
    if there == wanted or passive:
        return None
    return TopologyError(
        f"{what} exists with other arguments: it is {there}, and this bus wants {wanted}", name=name, code=406
    )

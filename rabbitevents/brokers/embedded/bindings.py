"""What leads from exchanges to queues or to other exchanges, by routing key: exact keys in a dictionary, patterns one by one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from rabbitevents.topics import matches
from rabbitevents.topology import Binding, Exchange

_Places = defaultdict[str, Counter[str]]
"""The queues that a key or a pattern leads to, and by how many bindings each."""


class Bindings:
    """The bindings of all exchanges to queues, or to exchanges, each once. An exact key costs the same however many there are."""

    def __init__(self) -> None:
        self._all: dict[Binding, tuple[_Places, str]] = {}
        """Each binding, and the place where its queue stands."""
        self._exact: defaultdict[str, _Places] = defaultdict(_places)
        self._patterns: defaultdict[str, _Places] = defaultdict(_places)

    def __iter__(self) -> Iterator[Binding]:
        return iter(list(self._all))

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, binding: object) -> bool:
        return binding in self._all

    def add(self, binding: Binding, exchange: Exchange) -> bool:
        """Bind a queue to ``exchange``; False if it is so bound already."""
        if binding in self._all:
            return False
        is_pattern = exchange.kind == "topic" and not {"*", "#"}.isdisjoint(binding.routing_key.split("."))
        places = (self._patterns if is_pattern else self._exact)[exchange.name]
        key = "" if exchange.kind == "fanout" else binding.routing_key
        places[key][binding.queue] += 1
        self._all[binding] = places, key
        return True

    def remove(self, binding: Binding) -> None:
        """Unbind a queue. Raises KeyError if it is not so bound."""
        places, key = self._all.pop(binding)
        queues = places[key]
        queues[binding.queue] -= 1
        if not queues[binding.queue]:
            del queues[binding.queue]
        if not queues:
            del places[key]

    def remove_queue(self, queue: str) -> None:
        """Unbind a queue from everything."""
        for binding in [each for each in self._all if each.queue == queue]:
            self.remove(binding)

    def all_of(self, exchange: str) -> list[str]:
        """Return the names of all queues that are bound to an exchange, whatever the key, in the alphabet's order."""
        return sorted({queue for queues in self._exact[exchange].values() for queue in queues})

    def lead(self, exchange: Exchange, routing_key: str) -> Iterator[str]:
        """Yield the names of the queues that ``routing_key`` leads to from ``exchange``; one may come twice."""
        key = "" if exchange.kind == "fanout" else routing_key
        exact = self._exact.get(exchange.name)
        if exact is not None and key in exact:
            yield from exact[key]
        patterns = self._patterns.get(exchange.name)
        if patterns is not None:
            for pattern, queues in patterns.items():
                if matches(pattern, routing_key):
                    yield from queues


def _places() -> _Places:
    return defaultdict(Counter)

"""What spans are called, and the attributes that all spans of one destination share.

Source: OpenTelemetry's semantic conventions for messaging spans, and for RabbitMQ, 1.44: a destination is
``{exchange}:{routing key}`` for who publishes and ``{exchange}:{routing key}:{queue}`` for who consumes, without what is
empty, and the queue only where it differs from the routing key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeVar

from rabbitevents import Subscription
from rabbitevents_tracing.attributes import LONGEST, shown

SYSTEM: Final = "rabbitmq"

_KEPT = 1024

K = TypeVar("K")

Attributes = Mapping[str, str | int]


class Destination(NamedTuple):
    """A destination as spans show it: ``shown`` stands in their names."""

    shown: str
    attributes: Attributes

    def named(self, operation: str) -> str:
        """Return the name of a span of this operation."""
        return f"{operation} {self.shown}"


class Destinations:
    """Knows each destination that it was asked for, as long as those are not too many."""

    def __init__(self) -> None:
        self._patterns: dict[str, tuple[str, ...]] = {}
        self._aliases: dict[str, str] = {}
        """The exchange behind another one: events that had to wait are the same as those that did not."""
        self._servers: dict[str, Mapping[str, str | int]] = {}
        self._published: dict[tuple[str, str], Destination] = {}
        self._consumed: dict[tuple[str, str, str], Destination] = {}

    def bind(self, exchange: str, subscriptions: Iterable[Subscription]) -> None:
        """Learn by what the queues are bound, and from where delayed events come."""
        self._aliases = {f"{exchange}.due": exchange}
        self._patterns = {subscription.queue: subscription.routing_keys for subscription in subscriptions}
        self._consumed.clear()

    def connected(self, connection: str, server: Mapping[str, str | int]) -> None:
        """Learn where the broker is that a connection ("publish" or "consume") leads to."""
        self._servers[connection] = server
        self._published.clear()
        self._consumed.clear()

    def published(self, exchange: str, routing_key: str) -> Destination:
        """Return where a message goes."""
        found = self._published.get((exchange, routing_key))
        if found is None:
            _make_room(self._published)
            name = shown(_joined(exchange, routing_key), 2 * LONGEST) or "amq.default"
            attributes = self._attributes("publish", "send", "publish", name, shown(routing_key))
            found = self._published[exchange, routing_key] = Destination(name, attributes)
        return found

    def consumed(self, exchange: str, routing_key: str, queue: str) -> Destination:
        """Return where a delivery comes from, by the names under which its event was published first.

        A span is named after the binding's pattern where there is one: routing keys may be as many as there are events.
        """
        key = exchange, routing_key, queue
        found = self._consumed.get(key)
        if found is None:
            _make_room(self._consumed)
            exchange, routing_key = shown(self._aliases.get(exchange, exchange)), shown(routing_key)
            name = _joined(exchange, routing_key, queue)
            template = self._template(exchange, routing_key, queue)
            attributes = self._attributes("process", "process", "consume", name, routing_key)
            if template is not None:
                attributes["messaging.destination.template"] = template
            found = self._consumed[key] = Destination(template or name, attributes)
        return found

    def _template(self, exchange: str, routing_key: str, queue: str) -> str | None:
        patterns = self._patterns.get(queue, ())
        if routing_key in patterns or routing_key == queue:
            return None
        pattern = next((p for p in patterns if fits(p, routing_key)), "#")
        return _joined(exchange, pattern, queue)

    def _attributes(
        self, name: str, kind: str, connection: str, destination: str, routing_key: str
    ) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            "messaging.destination.name": destination,
            **self._servers.get(connection, {}),
        }
        if routing_key:
            attributes["messaging.rabbitmq.destination.routing_key"] = routing_key
        return attributes


def _make_room(kept: dict[K, Destination]) -> None:
    if len(kept) >= _KEPT:
        kept.clear()


def _joined(*parts: str) -> str:
    """Join what is not empty, each name once where two in a row are the same."""
    kept = [part for part in parts if part]
    return ":".join(part for place, part in enumerate(kept) if place == 0 or part != kept[place - 1])


def fits(pattern: str, routing_key: str) -> bool:
    """Say whether a routing key falls under a topic pattern (AMQP 0-9-1, 3.1.3.3)."""
    return _fits(pattern.split("."), routing_key.split("."))


def _fits(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_fits(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _fits(pattern[1:], words[1:])

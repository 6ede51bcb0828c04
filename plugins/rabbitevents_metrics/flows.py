"""Where events go to and come from, as metrics name it: no more names than there are in the code.

Source: OpenTelemetry's semantic conventions for messaging metrics, and for RabbitMQ, 1.44.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rabbitevents import DecodeError, Delivery, Message, Subscription
from rabbitevents.texts import name_of
from rabbitevents_metrics.instruments import CONSUMED, PROCESSING, SENDING, SENT, Count, Instruments, Labels

MOST: Final = 200
"""Event types that a bus publishes, and classes of errors, that have a name of their own in metrics."""

OTHER: Final = "_OTHER"
"""What stands for a name that nobody expected, as in the conventions' ``error.type``."""

_ORIGIN: Final = b"origin-routing-key"
"""The header of a copy that says what its event was routed by, as bytes: see the wire contract."""


class Names:
    """A bounded set of names: those that are expected, the first few others, and `OTHER` for the rest.

    What comes over the wire must not make label sets without end.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()

    def expect(self, *names: str) -> None:
        """Know these names from now on."""
        self._known.update(names)

    def learned(self, name: str) -> str:
        """Return ``name`` if it is known, or is one of the first."""
        if name not in self._known:
            if len(self._known) >= MOST:
                return OTHER
            self._known.add(name)
        return name


class Flow:
    """Events of one type on one way, in or out: how many there were, and how long each took."""

    __slots__ = ("_duration", "_errors", "_instruments", "_labels", "_messages", "acknowledged", "passed")

    def __init__(
        self, instruments: Instruments, errors: Names, messages: str, duration: str, labels: Labels, settled: Labels
    ) -> None:
        self._instruments = instruments
        self._errors = errors
        self._messages = messages
        self._duration = instruments.histograms[duration]
        self._labels = labels
        self.passed: Count = instruments.count(messages, labels)
        self.acknowledged: Count = instruments.count("rabbitevents.settled", settled) if settled else Count({})

    def took(self, seconds: float, *, is_message: bool = True) -> None:
        """Record one that succeeded, and that it was a message of its own."""
        self._duration.record(seconds, self._labels)
        self.passed.number += is_message

    def failed(self, seconds: float, error: BaseException, *, is_message: bool = True) -> None:
        """Record one that failed."""
        labels = {**self._labels, "error.type": self._errors.learned(name_of(error))}
        self._duration.record(seconds, labels)
        if is_message:
            self._instruments.count(self._messages, labels).number += 1


class Flows:
    """The flows of one bus."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._servers: dict[str, Mapping[str, str | int]] = {}
        self._exchange = ""
        self._bound: dict[str, tuple[str, ...]] = {}
        self.names: dict[str, str] = {}
        """The subscription of each queue."""
        self._in: dict[tuple[str, str], Flow] = {}
        self._out: dict[tuple[str, str], Flow] = {}
        self._errors = Names()
        self.types: Names = Names()

    def bind(self, exchange: str, subscriptions: Sequence[Subscription]) -> None:
        """Learn what the bus consumes: those types have names."""
        self._exchange = exchange
        self._bound = {subscription.queue: subscription.routing_keys for subscription in subscriptions}
        self.names = {subscription.queue: subscription.name for subscription in subscriptions}
        for subscription in subscriptions:
            self.types.expect(*subscription.routing_keys)
        self._forget()

    def connected(self, connection: str, server: Mapping[str, str | int]) -> None:
        """Learn where the broker is that a connection leads to."""
        self._servers[connection] = server
        self._forget()

    def _forget(self) -> None:
        self._in.clear()
        self._out.clear()

    def out(self, message: Message) -> Flow:
        """Return the flow of what is published."""
        key = self.types.learned(message.routing_key)
        found = self._out.get((message.exchange, key))
        if found is None:
            labels = self._labels("publish", "send", "publish", (message.exchange, key))
            found = Flow(self._instruments, self._errors, SENT, SENDING, labels, {})
            self._out[message.exchange, key] = found
        return found

    def into(self, delivery: Delivery) -> Flow:
        """Return the flow of what was delivered; those whose type the code does not name, one together."""
        key = _routed_by(delivery)
        found = self._in.get((delivery.queue, key))
        return found if found is not None else self._new_flow(delivery.queue, key)

    def _new_flow(self, queue: str, key: str) -> Flow:
        keys = self._bound.get(queue, ())
        if key not in keys or _is_pattern(key):
            patterns = [each for each in keys if _is_pattern(each)]
            key = patterns[0] if len(patterns) == 1 else OTHER
            found = self._in.get((queue, key))
            if found is not None:
                return found
        labels = self._labels("process", "process", "consume", (self._exchange, key, queue))
        if _is_pattern(key):
            labels["messaging.destination.template"] = labels.pop("messaging.destination.name")
        settled = {"rabbitevents.subscription": self.names.get(queue, queue), "rabbitevents.outcome": "ack"}
        flow = self._in[queue, key] = Flow(self._instruments, self._errors, CONSUMED, PROCESSING, labels, settled)
        return flow

    def _labels(self, name: str, kind: str, connection: str, parts: tuple[str, ...]) -> dict[str, str | int]:
        return {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            "messaging.destination.name": ":".join(part for part in parts if part) or "amq.default",
            **self._servers.get(connection, {}),
        }


def _routed_by(delivery: Delivery) -> str:
    """Return what an event was routed by first; of one that is no copy that needs no reading, which takes 4 us."""
    raw = delivery.raw
    if isinstance(raw, bytes) and _ORIGIN not in raw:
        return delivery.via_routing_key
    try:
        return delivery.routing_key
    except DecodeError:
        return OTHER


def _is_pattern(key: str) -> bool:
    return "*" in key or "#" in key

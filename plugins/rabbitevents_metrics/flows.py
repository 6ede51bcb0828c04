"""Where events go to and come from, as metrics name it: no more names than there are in the code.

Source: OpenTelemetry's semantic conventions for messaging metrics, and for RabbitMQ, 1.44.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.metrics import Histogram

from rabbitevents import DecodeError, Delivery, Message, Subscription
from rabbitevents_metrics.instruments import Instruments
from rabbitevents_metrics.tally import OTHER, Attributes, Count, Names, Tally

MOST_TYPES: Final = 200
"""Event types that a bus publishes, and classes of errors, that have a name of their own in metrics."""


class Flow:
    """Events of one type on one way, in or out: how many there were, and how long each took."""

    __slots__ = ("_attributes", "_duration", "_errors", "acknowledged", "passed")

    def __init__(
        self,
        attributes: Attributes,
        passed: Count,
        duration: Histogram,
        errors: Names,
        acknowledged: Count | None = None,
    ) -> None:
        self._attributes = attributes
        self._duration = duration
        self._errors = errors
        self.passed: Count = passed
        self.acknowledged: Count | None = acknowledged

    def took(self, seconds: float) -> None:
        """Record one that succeeded."""
        self._duration.record(seconds, self._attributes)

    def failed(self, seconds: float, error: BaseException) -> None:
        """Record one that failed."""
        name = self._errors.learned(error_type(error))
        self._duration.record(seconds, {**self._attributes, "error.type": name})


class Flows:
    """The flows of one bus."""

    def __init__(self, instruments: Instruments, tally: Tally) -> None:
        self._instruments = instruments
        self._tally = tally
        self._servers: dict[str, dict[str, str | int]] = {}
        self._exchange = ""
        self._bound: dict[str, tuple[str, ...]] = {}
        self.names: dict[str, str] = {}
        """The subscription of each queue."""
        self._in: dict[tuple[str, str], Flow] = {}
        self._out: dict[tuple[str, str], Flow] = {}
        self._errors = Names(MOST_TYPES)
        self.types: Names = Names(MOST_TYPES)

    def bind(self, exchange: str, subscriptions: Sequence[Subscription]) -> None:
        """Learn what the bus consumes: those types have names."""
        self._exchange = exchange
        self._bound = {subscription.queue: subscription.routing_keys for subscription in subscriptions}
        self.names = {subscription.queue: subscription.name for subscription in subscriptions}
        for subscription in subscriptions:
            self.types.expect(*subscription.routing_keys)
        self._forget()

    def connected(self, connection: str, address: str) -> None:
        """Learn where the broker is that a connection leads to."""
        parts = urlsplit(address)
        there = {"server.address": parts.hostname, "server.port": parts.port}
        self._servers[connection] = {name: value for name, value in there.items() if value}
        self._forget()

    def _forget(self) -> None:
        self._in.clear()
        self._out.clear()

    def out(self, message: Message) -> Flow:
        """Return the flow of what is published."""
        key = self.types.learned(message.routing_key)
        found = self._out.get((message.exchange, key))
        if found is None:
            attributes = self._attributes("publish", "send", "publish", (message.exchange, key))
            passed = self._tally.of(self._instruments.events.sent, attributes)
            found = Flow(attributes, passed, self._instruments.events.sending, self._errors)
            self._out[message.exchange, key] = found
        return found

    def into(self, delivery: Delivery) -> Flow:
        """Return the flow of what was delivered; those whose type the code does not name, one together."""
        try:
            key = delivery.routing_key
        except DecodeError:
            key = OTHER
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
        attributes = self._attributes("process", "process", "consume", (self._exchange, key, queue))
        if _is_pattern(key):
            attributes["messaging.destination.template"] = attributes.pop("messaging.destination.name")
        passed = self._tally.of(self._instruments.events.consumed, attributes)
        settled = {"rabbitevents.subscription": self.names.get(queue, queue), "rabbitevents.outcome": "ack"}
        acknowledged = self._tally.of(self._instruments.counts.settled, settled)
        flow = Flow(attributes, passed, self._instruments.events.processing, self._errors, acknowledged)
        self._in[queue, key] = flow
        return flow

    def _attributes(self, name: str, kind: str, connection: str, parts: tuple[str, ...]) -> dict[str, str | int]:
        return {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            "messaging.destination.name": ":".join(part for part in parts if part) or "amq.default",
            **self._servers.get(connection, {}),
        }


def _is_pattern(key: str) -> bool:
    return "*" in key or "#" in key


def error_type(error: BaseException) -> str:
    """Name an error by its class, with the module it is from."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"

"""What is measured: every instrument, by its name, with its unit.

Source: OpenTelemetry's semantic conventions for messaging metrics, 1.44, for those that begin with ``messaging.``.
Making them again from one meter gives the same ones: the buses of a process share them.
"""

from __future__ import annotations

from typing import Final, Protocol

from opentelemetry.metrics import Counter, Histogram, Meter
from opentelemetry.util.types import Attributes

BOUNDARIES: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The buckets of durations, in seconds, that the conventions recommend."""

LAG_BOUNDARIES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Gauge(Protocol):
    """A value that is set; OpenTelemetry's own class for it has no public name."""

    def set(self, amount: float, attributes: Attributes | None = None) -> None:
        """Set the value for these attributes."""
        ...


class Instruments:
    """All instruments of one meter."""

    def __init__(self, meter: Meter) -> None:
        self.events: Events = Events(meter)
        self.counts: Counts = Counts(meter)
        self.state: State = State(meter)


class Events:
    """What every event passes."""

    def __init__(self, meter: Meter) -> None:
        self.sent: Counter = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Events that were sent to the broker."
        )
        self.consumed: Counter = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Events that were delivered, each attempt counted."
        )
        self.sending: Histogram = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "How long publishing took, until the broker confirmed.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self.processing: Histogram = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "How long an attempt took.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )


class Counts:
    """What happened besides."""

    def __init__(self, meter: Meter) -> None:
        def count(name: str, of: str, description: str) -> Counter:
            return meter.create_counter(f"rabbitevents.{name}", f"{{{of}}}", description)

        self.settled: Counter = count("settled", "delivery", "Deliveries that were settled, by outcome.")
        self.retries: Counter = count("retries", "delivery", "Failures that are tried again, by attempt.")
        self.postponed: Counter = count(
            "postponed", "delivery", "Failures that are handled later, which is no attempt."
        )
        self.discarded: Counter = count("discarded", "delivery", "Failures that are taken as done, by reason.")
        self.dead_letters: Counter = count("dead_letters", "delivery", "Deliveries given up on, by reason.")
        self.holds: Counter = count("holds", "delivery", "Failures that no plugin took care of, and that are held.")
        self.duplicates: Counter = count("duplicates", "delivery", "Deliveries that had been handled before.")
        self.stale: Counter = count("stale", "delivery", "Deliveries dropped, as their channel was gone.")
        self.unroutable: Counter = count("unroutable", "message", "Events that no queue was bound for.")
        self.reconnects: Counter = count("reconnects", "connection", "Connections made again.")
        self.consumers_lost: Counter = count("consumers.lost", "consumer", "Consumers lost, but not their connection.")
        self.looks_failed: Counter = count("queue.looks.failed", "look", "Looks at a queue's depth that failed.")


class State:
    """How it is at this moment."""

    def __init__(self, meter: Meter) -> None:
        def gauge(name: str, of: str, description: str) -> Gauge:
            return meter.create_gauge(f"rabbitevents.{name}", f"{{{of}}}", description)

        self.publishes: Gauge = gauge("publishes", "message", "Events being published.")
        self.queued: Gauge = gauge("deliveries.queued", "delivery", "Deliveries that wait for a worker.")
        self.running: Gauge = gauge("deliveries.running", "delivery", "Deliveries that are being handled.")
        self.held: Gauge = gauge("deliveries.held", "delivery", "Deliveries that are held.")
        self.expected: Gauge = gauge("consumers.expected", "consumer", "Consumers there should be.")
        self.consumers: Gauge = gauge("consumers.running", "consumer", "Consumers there are.")
        self.depth: Gauge = gauge("queue.depth", "message", "Events that are ready in a queue.")
        self.readers: Gauge = gauge("queue.consumers", "consumer", "A queue's consumers, anybody's.")
        self.lag: Histogram = meter.create_histogram(
            "rabbitevents.event_loop.lag",
            "s",
            "How late the event loop was.",
            explicit_bucket_boundaries_advisory=LAG_BOUNDARIES,
        )

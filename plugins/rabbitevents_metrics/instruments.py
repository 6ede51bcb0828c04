"""What is measured: every instrument, by its name, with its unit.

Source: OpenTelemetry's semantic conventions for messaging metrics, 1.44, for those that begin with ``messaging.``.

Counters and gauges are observed: whoever collects reads plain numbers at that moment, in whatever thread. An event adds
one to a number, which costs 0.1 us; ``Counter.add`` costs 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation

Labels = Mapping[str, str | int | bool]

SENT: Final = "messaging.client.sent.messages"
CONSUMED: Final = "messaging.client.consumed.messages"
SENDING: Final = "messaging.client.operation.duration"
PROCESSING: Final = "messaging.process.duration"
LAG: Final = "rabbitevents.event_loop.lag"

COUNTERS: Final = {
    SENT: ("{message}", "Events that were to be sent to the broker."),
    CONSUMED: ("{message}", "Events that were delivered, however often a delivery was tried here."),
    "rabbitevents.settled": ("{delivery}", "Deliveries that were settled, by outcome."),
    "rabbitevents.retries": ("{delivery}", "Failures that are tried again, by attempt."),
    "rabbitevents.postponed": ("{delivery}", "Failures that are handled later, which is no attempt."),
    "rabbitevents.discarded": ("{delivery}", "Failures that are taken as done, by reason."),
    "rabbitevents.kill_switch.trips": ("{trip}", "Times that a kill switch stopped a subscription."),
    "rabbitevents.dead_letters": ("{delivery}", "Deliveries given up on, by reason."),
    "rabbitevents.holds": ("{delivery}", "Failures that no plugin took care of, and that are held."),
    "rabbitevents.duplicates": ("{delivery}", "Deliveries that had been handled before."),
    "rabbitevents.stale": ("{delivery}", "Deliveries dropped, as their channel was gone."),
    "rabbitevents.unroutable": ("{message}", "Events that no queue was bound for."),
    "rabbitevents.reconnects": ("{connection}", "Connections made again."),
    "rabbitevents.consumers.lost": ("{consumer}", "Consumers lost, but not their connection."),
    "rabbitevents.queue.looks.failed": ("{look}", "Looks at a queue's depth that failed."),
}

GAUGES: Final = {
    "rabbitevents.publishes": ("{message}", "Events being published."),
    "rabbitevents.deliveries.queued": ("{delivery}", "Deliveries that wait for a worker."),
    "rabbitevents.deliveries.running": ("{delivery}", "Deliveries that are being handled."),
    "rabbitevents.deliveries.held": ("{delivery}", "Deliveries that are held."),
    "rabbitevents.connections.down": ("{connection}", "Connections that are lost and not back yet."),
    "rabbitevents.connections.blocked": ("{connection}", "Connections that the broker takes no events from."),
    "rabbitevents.consumers.expected": ("{consumer}", "Consumers there should be."),
    "rabbitevents.consumers.running": ("{consumer}", "Consumers there are."),
    "rabbitevents.outbox.pending": ("{message}", "Events in an outbox that are to be sent."),
    "rabbitevents.outbox.lag": ("s", "How long the oldest of them has waited."),
    "rabbitevents.outbox.dead": ("{message}", "Events in an outbox that were given up on."),
    "rabbitevents.projection.behind": ("{event}", "Positions of the store that a projection has not reached."),
    "rabbitevents.projection.stopped": ("{projection}", "Whether an event has stopped a projection: 1 or 0."),
    "rabbitevents.queue.depth": ("{message}", "Events that are ready in a queue."),
    "rabbitevents.queue.consumers": ("{consumer}", "A queue's consumers, anybody's."),
}

_BOUNDARIES: Final[Sequence[float]] = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The buckets of durations, in seconds, that the conventions recommend."""

HISTOGRAMS: Final[Mapping[str, tuple[Sequence[float], str]]] = {
    SENDING: (_BOUNDARIES, "How long publishing took, until the broker confirmed."),
    PROCESSING: (_BOUNDARIES, "How long an attempt took."),
    LAG: ((0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10), "How late the event loop was."),
}

Gauging = Callable[[str], Iterable[Observation]]
"""Says what a gauge, by its name, is at this moment. It is called in the thread of whoever collects."""


class Count:
    """How often one thing has happened."""

    __slots__ = ("labels", "number")

    def __init__(self, labels: Labels) -> None:
        self.labels: Labels = labels
        self.number: int = 0


class Instruments:
    """All instruments of one meter, and what the counters read. The buses of a process share them."""

    def __init__(self, meter: Meter) -> None:
        self.gauging: list[Gauging] = []
        """Those of the buses that run."""
        self._counts: dict[str, dict[tuple[tuple[str, object], ...], Count]] = {name: {} for name in COUNTERS}
        for name, (unit, description) in COUNTERS.items():
            meter.create_observable_counter(name, [partial(self._counted, name)], unit, description)
        for name, (unit, description) in GAUGES.items():
            meter.create_observable_gauge(name, [partial(self._gauged, name)], unit, description)
        self.histograms: Mapping[str, Histogram] = {
            name: meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=boundaries)
            for name, (boundaries, description) in HISTOGRAMS.items()
        }

    def count(self, name: str, labels: Labels) -> Count:
        """Return what counts a thing with these labels."""
        counts, place = self._counts[name], tuple(labels.items())
        found = counts.get(place)
        return found if found is not None else counts.setdefault(place, Count(labels))

    def _counted(self, name: str, _: CallbackOptions) -> list[Observation]:
        return [Observation(count.number, count.labels) for count in tuple(self._counts[name].values())]

    def _gauged(self, name: str, _: CallbackOptions) -> list[Observation]:
        return [observation for gauging in tuple(self.gauging) for observation in gauging(name)]


_KNOWN: WeakKeyDictionary[object, Instruments] = WeakKeyDictionary()


def instruments(provider: MeterProvider | None, version: str, schema: str) -> Instruments:
    """Return the instruments of a provider, the global one's for None: a meter calls the first of one name only."""
    key = Instruments if provider is None or provider is metrics.get_meter_provider() else provider
    found = _KNOWN.get(key)
    if found is None:
        found = _KNOWN[key] = Instruments(metrics.get_meter("rabbitevents", version, provider, schema))
    return found

"""The five services of the demonstration as one bus, measured: ``rabbitevents run tests.measured_shop:bus --workers 2``.

``URL`` says where the broker is, ``REDIS`` where it is remembered what was handled. What each worker did is in its ledger
in the working folder, which `books` reads.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from attrs import frozen
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from redis.asyncio import from_url
from tenacity import stop_after_attempt

from rabbitevents import Bus, Delivery
from rabbitevents.demo.books import Folder
from rabbitevents.demo.ledger import GivenUp, Handled, Ledger, Published, Record, Retried
from rabbitevents.demo.provider import UnreliableProvider
from rabbitevents.demo.recorder import Recorder
from rabbitevents.demo.services import ATTEMPTS, SERVICES, WAIT, listeners
from rabbitevents.demo.shop.payment import PaymentProvider
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency, RedisStore
from rabbitevents_metrics import Metrics
from rabbitevents_retry import Retry

FAIL: Final = 0.3
"""The rate at which payments fail."""

CUSTOMERS: Final = "customers"
"""Who places orders, and is not measured."""

_records: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def bus() -> Bus:
    """Return the bus of one worker."""
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    worker = f"worker-{os.environ.get('RABBITEVENTS_WORKER', '1')}"
    plugins = [
        DeadLetter(),
        Retry(stop=stop_after_attempt(ATTEMPTS), wait=WAIT),
        Metrics(interval=1),
        Idempotency(RedisStore(from_url(os.environ["REDIS"]))),
        Recorder("shop", Ledger(Path(f"{worker}.ledger"))),
    ]
    made = Bus(os.environ["URL"], *(each.router for each in SERVICES.values()), name="shop", plugins=plugins)
    for name, service in SERVICES.items():
        made.provide(service.state, service.state(Folder(Path(worker, name))))
    made.provide(PaymentProvider, factory=_provider)
    return made


def _provider(delivery: Delivery) -> PaymentProvider:
    return UnreliableProvider(FAIL, 1, delivery.attempt)


Series = Mapping[str, str]
Numbers = dict[frozenset[tuple[str, str]], float]
"""What there is of each thing, by its labels; what there is nothing of is left out."""


def summed(found: Iterable[tuple[Series, float]]) -> Numbers:
    """Add up."""
    numbers: defaultdict[frozenset[tuple[str, str]], float] = defaultdict(float)
    for labels, number in found:
        numbers[frozenset(labels.items())] += number
    return {labels: number for labels, number in numbers.items() if number}


@frozen
class Books:
    """What all ledgers say: the records of a run, added up as a metric of that name should be."""

    records: tuple[Record, ...]

    def of(self, metric: str) -> Numbers:
        """Return what the books say about a metric; nothing, where nothing of the kind may have happened."""
        known: Mapping[str, Callable[[], Iterable[tuple[Series, int]]]] = {
            "messaging_client_sent_messages_total": self._sent,
            "messaging_client_consumed_messages_total": self._deliveries,
            "messaging_process_duration_seconds_count": self._failures,
            "rabbitevents_settled_total": self._settled,
            "rabbitevents_retries_total": self._retries,
            "rabbitevents_dead_letters_total": self._given_up,
            "rabbitevents_duplicates_total": self._duplicates,
            "rabbitevents_unroutable_total": self._unroutable,
            "rabbitevents_queue_depth": self._dead,
        }
        return summed(known[metric]() if metric in known else ())

    @property
    def types(self) -> dict[str, str]:
        """The type of each event."""
        return {each.event: each.type for each in self.records if isinstance(each, Published)}

    def _published(self) -> Iterator[Published]:
        return (each for each in self.records if isinstance(each, Published))

    def _retried(self) -> Iterator[Retried]:
        return (each for each in self.records if isinstance(each, Retried))

    def _gave_up(self) -> Iterator[GivenUp]:
        return (each for each in self.records if isinstance(each, GivenUp))

    def _into(self, each: Handled | Retried | GivenUp) -> dict[str, str]:
        return {"messaging_destination_name": f"events:{self.types[each.event]}:{each.queue}"}

    def _sent(self) -> Iterator[tuple[Series, int]]:
        for each in self._published():
            if each.service != CUSTOMERS:
                yield {"messaging_destination_name": f"events:{each.type}"}, 1

    def _deliveries(self) -> Iterator[tuple[Series, int]]:
        """One in each queue for each event that was confirmed, and one for each copy that came back."""
        for each in self._published():
            for queue in listeners(each.type):
                yield {"messaging_destination_name": f"events:{each.type}:{queue}"}, 1
        for again in self._retried():
            if not again.inline:
                yield self._into(again), 1

    def _failures(self) -> Iterator[tuple[Series, int]]:
        failures: tuple[Retried | GivenUp, ...] = (*self._retried(), *self._gave_up())
        for each in failures:
            yield {**self._into(each), "error_type": each.error}, 1

    def _forwarded(self) -> int:
        return sum(not each.inline for each in self._retried()) + sum(1 for _ in self._gave_up())

    def _settled(self) -> Iterator[tuple[Series, int]]:
        deliveries = sum(number for _, number in self._deliveries())
        yield {"rabbitevents_outcome": "forward"}, self._forwarded()
        yield {"rabbitevents_outcome": "ack"}, deliveries - self._forwarded()

    def _retries(self) -> Iterator[tuple[Series, int]]:
        for each in self._retried():
            yield {"rabbitevents_subscription": each.queue, "rabbitevents_attempt": str(each.attempt)}, 1

    def _given_up(self) -> Iterator[tuple[Series, int]]:
        for each in self._gave_up():
            yield {"rabbitevents_subscription": each.queue, "rabbitevents_reason": each.error}, 1

    def _dead(self) -> Iterator[tuple[Series, int]]:
        for each in self._gave_up():
            yield {"rabbitevents_queue": f"{each.queue}.dead"}, 1

    def _duplicates(self) -> Iterator[tuple[Series, int]]:
        """What was delivered, and neither handled nor failed: it was absorbed."""
        for labels, number in self._deliveries():
            yield {"rabbitevents_subscription": labels["messaging_destination_name"].rpartition(":")[2]}, number
        for each in self.records:
            if isinstance(each, (Handled, GivenUp)) or (isinstance(each, Retried) and not each.inline):
                yield {"rabbitevents_subscription": each.queue}, -1

    def _unroutable(self) -> Iterator[tuple[Series, int]]:
        for each in self._published():
            if each.service != CUSTOMERS and not listeners(each.type):
                yield {"rabbitevents_type": each.type}, 1


def books(folder: Path) -> Books:
    """Read all ledgers in a folder."""
    lines = (line for path in sorted(folder.glob("*.ledger")) for line in path.read_bytes().splitlines(keepends=True))
    return Books(tuple(_records.decode(line) for line in lines if line.endswith(b"\n")))

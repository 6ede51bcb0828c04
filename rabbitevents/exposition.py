"""A process's metrics as Prometheus reads them, and those of several processes as one page.

What is measured is what stands in ``prometheus_client``'s own registry, where OpenTelemetry's ``PrometheusMetricReader``
puts itself. It is optional, and so this room is imported where a page is asked for, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

__all__ = ["CONTENT_TYPE_LATEST", "exposition", "union"]

WORKER: Final = "worker"
"""The label that says whose a sample is. One of that name that a sample has already becomes ``exported_worker``, which is
Prometheus's own way."""

ANSWERED: Final = "rabbitevents_worker_answered"
"""The one metric that the union has of itself."""


def exposition() -> bytes:
    """Write down what this process measures. It waits for what collectors wait for, and raises what they raise."""
    return generate_latest(REGISTRY)


def union(pages: Mapping[int, bytes]) -> bytes:
    """Write one page of those of several workers, by their numbers; an empty one did not come. Raises ValueError."""
    return generate_latest(_Union(pages))


class _Union(Collector):
    """The families of all pages, each once, with the samples of all workers: what a registry is to an exposition."""

    def __init__(self, pages: Mapping[int, bytes]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        """Yield each family."""
        answered = GaugeMetricFamily(ANSWERED, "Whether a worker said in time what it measured.", labels=[WORKER])
        families: dict[str, Metric] = {}
        for number, page in self._pages.items():
            answered.add_metric([str(number)], float(bool(page)))
            for family in text_string_to_metric_families(page.decode()):
                samples = [_labelled(sample, str(number)) for sample in family.samples]
                family.samples = [*families[family.name].samples, *samples] if family.name in families else samples
                families[family.name] = family
        yield answered
        yield from families.values()


def _labelled(sample: Sample, worker: str) -> Sample:
    labels = {f"exported_{name}" if name == WORKER else name: value for name, value in sample.labels.items()}
    return sample._replace(labels={WORKER: worker, **labels})

"""By what Jaeger knows machines, and when it warns of their clocks: what the pages say of that."""

from __future__ import annotations

from itertools import count
from time import time_ns

import pytest
from opentelemetry import trace

from tests.jaeger.server import Jaeger
from tests.jaeger.test_long_waits import exporting

MS = 1_000_000
SERVICES = count(1)
NOTHING = {"host.name": "", "ip": ""}


@pytest.mark.parametrize(
    ("publisher", "consumer", "page", "v3"),
    [
        ({"ip": "", "host.name": "a"}, {"ip": "", "host.name": "a"}, True, False),
        ({"ip": "a", "host.name": "a"}, {"ip": "a", "host.name": "a"}, False, False),
        ({"ip": "a", "host.name": "a"}, {"ip": "b", "host.name": "b"}, True, True),
        ({"ip": "x", "host.id": "x", "host.name": "a"}, {"ip": "x", "host.id": "x", "host.name": "b"}, False, False),
        (NOTHING, NOTHING, True, True),
    ],
)
def test_jaeger_warns_of_clocks_where_an_attempt_on_another_machine_begins_after_its_publish_has_ended(
    jaeger: Jaeger, publisher: dict[str, str], consumer: dict[str, str], page: bool, v3: bool
) -> None:
    service = f"machines-{next(SERVICES)}"
    there, here = exporting(jaeger, service, **publisher), exporting(jaeger, service, **consumer)
    begun = time_ns() - 1000 * MS

    publish = there.get_tracer("test").start_span("publish", start_time=begun)
    publish.end(begun + 10 * MS)
    context = trace.set_span_in_context(publish)
    here.get_tracer("test").start_span("process", context, start_time=begun + 500 * MS).end(begun + 505 * MS)

    ((first, second),) = jaeger.find(service)
    assert any("clock skew" in warning for warning in second.warnings) == page
    assert bool(jaeger.warnings_of_v3(first.trace)) == v3
    assert second.start - first.start == pytest.approx(0.5, abs=1e-5)  # it warns, and moves nothing

"""Which files are slow: they begin first, so that none is left alone at the end, when the other test processes are done.

Most of that time is waiting, for a broker that is killed or an outage that has to last; so there are more test processes
than processors. A file that is not here is taken for a quick one, and a figure need not be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pytest

SECONDS: Final[Mapping[str, int]] = {
    "test_site.py": 115,
    "test_demo_store.py": 100,
    "test_projections.py": 100,
    "test_demo_paying.py": 95,
    "test_django.py": 95,
    "test_projections_rebuilt.py": 95,
    "test_cli_hanging.py": 90,
    "test_wheel.py": 90,
    "test_docs.py": 90,
    "test_outbox_trouble.py": 90,
    "test_pitfalls.py": 90,
    "test_partitions.py": 85,
    "test_operating_cluster.py": 85,
    "test_topology_migrate.py": 85,
    "test_idempotency_outages.py": 80,
    "test_doctor.py": 80,
    "test_idempotency_processes.py": 75,
    "test_renaming.py": 70,
    "test_delays.py": 60,
    "test_recovery.py": 60,
    "test_idempotency_refusals.py": 55,
    "test_conformance.py": 55,
    "test_dlq_together.py": 55,
    "test_dlq_killed.py": 50,
    "test_retry_processes.py": 45,
    "test_soak.py": 45,
    "test_outbox.py": 45,
    "test_broker_killed.py": 40,
    "test_supervision.py": 40,
    "test_effective.py": 40,
    "test_process.py": 40,
    "test_service_page.py": 40,
    "test_topology_plan.py": 40,
    "test_process_races.py": 35,
    "test_health.py": 35,
    "test_bed.py": 35,
    "test_demo.py": 35,
    "test_snippets.py": 35,
    "test_topology_moves.py": 35,
    "test_chaos.py": 30,
    "test_cli_workers.py": 30,
    "test_demo_processes.py": 30,
    "test_sync.py": 30,
    "test_processes.py": 30,
    "test_process_timeouts.py": 30,
    "test_cli_run.py": 25,
    "test_tracing_collector.py": 25,
    "test_codec.py": 25,
    "test_alerts.py": 25,
    "test_committed.py": 25,
    "test_dlq_hostile.py": 25,
    "test_eventstore.py": 25,
    "test_ordered.py": 25,
    "test_outbox_notify.py": 25,
    "test_retry_rabbitmq.py": 25,
}
"""Seconds that a file takes in `make test`, about, on a machine with two cores."""


def slow_first(items: list[pytest.Item]) -> None:
    """Put the tests of slow files first; within a file, and among the others, the order stays."""
    items.sort(key=lambda item: -SECONDS.get(item.path.name, 0))

"""Which files are slow: they begin first, so that none is left alone at the end, when the other test processes are done.

Most of that time is waiting, for a broker that is killed or an outage that has to last; so there are more test processes
than processors. A file that is not here is taken for a quick one, and a figure need not be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pytest

SECONDS: Final[Mapping[str, int]] = {
    "test_process_races.py": 180,
    "test_cli_hanging.py": 130,
    "test_idempotency_outages.py": 90,
    "test_idempotency_refusals.py": 80,
    "test_chaos.py": 75,
    "test_delays.py": 65,
    "test_cli_workers.py": 60,
    "test_broker_killed.py": 60,
    "test_conformance.py": 60,
    "test_recovery.py": 60,
    "test_retry_processes.py": 60,
    "test_idempotency_processes.py": 60,
    "test_supervision.py": 50,
    "test_dlq_killed.py": 50,
    "test_soak.py": 45,
    "test_health.py": 45,
    "test_site.py": 35,
    "test_wheel.py": 35,
    "test_demo_processes.py": 35,
    "test_dlq_together.py": 35,
    "test_docs.py": 30,
    "test_sync.py": 30,
    "test_flapping.py": 30,
    "test_tracing_collector.py": 30,
    "test_cli_run.py": 30,
    "test_bed.py": 25,
    "test_demo.py": 25,
    "test_types.py": 25,
    "test_codec.py": 25,
}
"""Seconds that a file takes by itself, on a machine with two cores that does nothing else."""


def slow_first(items: list[pytest.Item]) -> None:
    """Put the tests of slow files first; within a file, and among the others, the order stays."""
    items.sort(key=lambda item: -SECONDS.get(item.path.name, 0))

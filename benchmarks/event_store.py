"""Event stores side by side, on one PostgreSQL: ``python benchmarks/event_store.py``.

    python -m venv peers && peers/bin/pip install 'eventsourcing[postgres]' 'psycopg[binary]'
    python benchmarks/event_store.py --peers peers/bin/python

rabbitevents and eventsourcing, with their defaults. Who cannot be imported is left out, and it is said who. The server is
started here and belongs to nobody else, with ``fsync=on`` and ``synchronous_commit=on``. Every phase of every contender runs
in a process and a database of its own; in each round another contender begins. Printed are medians, and from which to which
round; the last line is all of it as JSON. ``--quick`` takes less than a minute on two free cores, and shows that it runs, not
who is fast. ``--scale 20`` rebuilds 1,000,000 events.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from benchmarks.beside import Comparison, Figure, Phase, arguments, compare, postgres  # noqa: E402
from benchmarks.field import OURS  # noqa: E402

CONTENDERS = {OURS: "benchmarks.stores.rabbitevents_", "eventsourcing": "benchmarks.stores.eventsourcing_"}
CPU = Figure("CPU us", "cpu_us", ",.1f")
RATES = (Figure("events/s", "rate"), CPU)
REBUILT = (*RATES, Figure("grown MB", "grown_mb", ".1f"))
WAITS = (Figure("p50 ms", "p50_ms", ",.1f"), Figure("p99 ms", "p99_ms", ",.1f"))
DELAYS = (*WAITS, CPU)
PHASES = (
    Phase("appended by 1 writer", ("--phase", "append", "--writers", "1"), RATES, 2_000, 300),
    Phase("appended by 8 writers", ("--phase", "append", "--writers", "8"), RATES, 8_000, 800),
    Phase("appended by 20 writers", ("--phase", "append", "--writers", "20"), RATES, 8_000, 1_000),
    Phase("read", ("--phase", "read"), RATES, 50_000, 5_000),
    Phase("rebuilt by a projection", ("--phase", "rebuild"), REBUILT, 50_000, 1_000, ways="ways"),
    Phase("append to projection", ("--phase", "latency"), DELAYS, 1_000, 200, ways="ways"),
    Phase("decided on 10,000 events", ("--phase", "decide"), WAITS, 100, 20, ways="pasts"),
)


class EventStores(Comparison):
    """Event stores, each run in a database of its own."""

    contenders = CONTENDERS
    phases = PHASES
    fewest = 20
    patience = 7200

    @contextmanager
    def place(self) -> Generator[tuple[str, ...]]:
        yield "--postgres", self.postgres.url("", database=self.postgres.database())


if __name__ == "__main__":
    told = arguments(EventStores, __doc__)
    with postgres() as server:
        compare(EventStores(told.peers, server), told)

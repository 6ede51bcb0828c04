"""Outboxes and inboxes side by side, on one PostgreSQL and one RabbitMQ: ``python benchmarks/outbox.py``.

    python -m venv peers && peers/bin/pip install faststream-outbox 'faststream[rabbit]' orjson 'sqlalchemy[asyncio]' asyncpg
    python benchmarks/outbox.py --peers peers/bin/python

rabbitevents, faststream-outbox (with its defaults, and tuned for a high rate), and a table by hand. Who cannot be imported
is left out, and it is said who. Both servers are started here and belong to nobody else; PostgreSQL with ``fsync=on`` and
``synchronous_commit=on``, for all of them. Every phase of every contender runs in a process, a database and a virtual host
of its own; in each round another contender begins. Printed are medians, and from which to which round; the last line is
all of it as JSON. ``--quick`` takes less than a minute on two free cores, and shows that it runs, not who is fast.
"""

import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from benchmarks.beside import Comparison, Figure, Phase, Result, arguments, compare, postgres  # noqa: E402
from benchmarks.field import OURS  # noqa: E402
from tests.bed.postgres import PostgresServer  # noqa: E402
from tests.bed.rabbitmq import RabbitNode  # noqa: E402

CONTENDERS = {
    OURS: "benchmarks.outboxes.rabbitevents_",
    "faststream-outbox": "benchmarks.outboxes.faststream_",
    "faststream-outbox, tuned": "benchmarks.outboxes.faststream_tuned",
    "by hand": "benchmarks.outboxes.by_hand",
}
RATES = (Figure("events/s", "rate"), Figure("CPU us", "cpu_us", ".1f"))
DELAYS = (Figure("p50 ms", "p50_ms", ".1f"), Figure("p99 ms", "p99_ms", ".1f"))
HANDLED = (*RATES, Figure("added by the mark: CPU us", "added_us", over="cpu_us"))
RELAYED = (*RATES, Figure("inversions", "inversions"))
PUBLISHED = (
    Figure("added CPU us", "cpu_us"),
    Figure("added ms", "ms", ".2f"),
    Figure("without: CPU us", "without_cpu_us"),
    Figure("without: ms", "without_ms", ".2f"),
    Figure("8 writers: tx/s", "rate"),
    Figure("without: tx/s", "without_rate"),
)
PHASES = (
    Phase("relayed, 1,000 entities", ("--phase", "relay", "--entities", "1000"), RELAYED, 6_000, 1_000),
    Phase("relayed, one entity", ("--phase", "relay", "--entities", "1"), RELAYED, 2_000, 200),
    Phase("commit to handler, one process", ("--phase", "latency"), DELAYS, 1_000, 200),
    Phase("commit to handler, writer apart", ("--phase", "latency", "--apart"), DELAYS, 1_000, 200),
    Phase("one event in a transaction", ("--phase", "publish"), PUBLISHED, 1_000, 100),
    Phase("handled, a row written for each event", ("--phase", "inbox"), HANDLED, 3_000, 300, ways="inboxes"),
)


class Outboxes(Comparison):
    """Outboxes and inboxes, each run in a database and a virtual host of its own."""

    contenders = CONTENDERS
    phases = PHASES
    not_quick = frozenset({"faststream-outbox"})  # with its defaults it is the slowest

    def __init__(self, peers: str, postgres: PostgresServer, node: RabbitNode) -> None:
        super().__init__(peers, postgres)
        self.node = node

    @contextmanager
    def place(self) -> Generator[tuple[str, ...]]:
        url = self.node.add_vhost()
        try:
            yield "--postgres", self.postgres.url(database=self.postgres.database()), "--amqp", url
        finally:
            self.node.delete_vhost(url)

    def servers(self) -> Result:
        return {"rabbitmq": self.node.version, **super().servers()}

    def notes(self, contenders: Mapping[str, Result]) -> list[str]:
        lines = ["", "| | an entity's order | how the relay is woken | inbox |", "|---|---|---|---|"]
        for name, said in contenders.items():
            lines.append(f"| {name} | {said['order']} | {said['woken']} | {(said['inboxes'] or ['none'])[-1]} |")
        return lines


if __name__ == "__main__":
    told = arguments(Outboxes, __doc__)
    with postgres() as server, RabbitNode() as node:
        compare(Outboxes(told.peers, server, node), told)

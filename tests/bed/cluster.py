"""A cluster of RabbitMQ nodes: every quorum queue has a replica on each of three, and leaders are spread."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bed.rabbitmq import RabbitNode

_SPREAD = {"queue_leader_locator": "balanced"}  # a leader is not where the client is
_QUICK = (
    "[{rabbit, [{quorum_tick_interval, 500}]}]"  # what quorum queues say of themselves is half a second old at most
)


@contextmanager
def cluster(size: int, root: Path | None = None, *, management: bool = False) -> Generator[list[RabbitNode]]:
    """Start `size` nodes that are one cluster (some 5 s each); a size of 1 is a node as any other.

    With `management` each has an HTTP API, which shows the queues of all of them.
    """
    with ExitStack() as stack:
        config, advanced = _SPREAD if size > 1 else {}, _QUICK if management else "[]"

        def started(beside: RabbitNode | None = None) -> RabbitNode:
            node = RabbitNode(config=config, advanced=advanced, root=root, management=management, beside=beside)
            return stack.enter_context(node)

        first = started()
        others = [started(first) for _ in range(size - 1)]
        for other in others:
            for words in (("stop_app",), ("reset",), ("join_cluster", first.layout.name), ("start_app",)):
                other.ctl(*words)
        yield [first, *others]

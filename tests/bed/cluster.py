"""A cluster of RabbitMQ nodes: every quorum queue has a replica on each of three, and leaders are spread."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bed.rabbitmq import RabbitNode

_SPREAD = {"queue_leader_locator": "balanced"}  # a leader is not where the client is


@contextmanager
def cluster(size: int, root: Path | None = None) -> Generator[list[RabbitNode]]:
    """Start `size` nodes that are one cluster (some 5 s each); a size of 1 is a node as any other."""
    with ExitStack() as stack:
        config = _SPREAD if size > 1 else {}
        first = stack.enter_context(RabbitNode(config=config, root=root))
        others = [stack.enter_context(RabbitNode(config=config, root=root, beside=first)) for _ in range(size - 1)]
        for other in others:
            for words in (("stop_app",), ("reset",), ("join_cluster", first.layout.name), ("start_app",)):
                other.ctl(*words)
        yield [first, *others]

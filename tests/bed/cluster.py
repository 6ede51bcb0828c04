"""A cluster of RabbitMQ nodes: every quorum queue has a replica on each of three, and leaders are spread."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bed.network import Host
from tests.bed.rabbitmq import RabbitNode

_SPREAD = {"queue_leader_locator": "balanced"}  # a leader is not where the client is
_QUICK = "[{rabbit, [{quorum_tick_interval, 500}]}]"
"""What quorum queues say of themselves is half a second old at most."""

_APART = {
    **_SPREAD,
    "loopback_users.guest": "false",
    "net_ticktime": "8",
    "cluster_partition_handling": "pause_minority",
}
"""What nodes on hosts of their own are told: a node that is silent is gone after 8 s or so, and not after a minute; and
those that are few stand still, as is recommended for three."""


@contextmanager
def cluster(
    size: int,
    root: Path | str | None = None,
    *,
    hosts: Sequence[Host] = (),
    advanced: str | None = None,
    management: bool = False,
) -> Generator[list[RabbitNode]]:
    """Start `size` nodes that are one cluster (some 5 s each); a size of 1 is a node as any other.

    With `hosts`, each is on one of them; else all are here. With `management` each has an HTTP API, which shows the queues
    of all of them.
    """
    with ExitStack() as stack:
        config = (_APART if hosts else _SPREAD) if size > 1 else {}
        members: list[RabbitNode] = []
        for number in range(size):
            node = RabbitNode(
                config=config,
                advanced=advanced or (_QUICK if management else "[]"),
                root=root,
                management=management,
                beside=members[0] if members else None,
                host=hosts[number] if hosts else None,
            )
            members.append(stack.enter_context(node))
        for other in members[1:]:
            for words in (("stop_app",), ("reset",), ("join_cluster", members[0].layout.name), ("start_app",)):
                other.ctl(*words)
        yield members

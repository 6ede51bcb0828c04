"""Consumer tags that say who consumes: RabbitMQ shows them to all who may see its management API.

``rabbitevents-1 <8 hex> <host>:<pid> <8 hex>``: 1 is what the process knows (`GENERATION`), then what it declares for
the queue (`mark`), where it runs, and what makes the tag a fresh one, since RabbitMQ 4.3 answers a tag that was cancelled
with 530.
"""

from __future__ import annotations

import os
import re
import socket
from hashlib import blake2s
from typing import Final
from uuid import uuid4

import msgspec

from rabbitevents.topology import Binding, Topology

GENERATION: Final = 1
"""What consumers know that this version makes: to leave a queue alone that is being made anew."""

_LONGEST_HOST: Final = 100
"""Characters of a host's name; a tag has 255 bytes at most."""

_TAG: Final = re.compile(r"^rabbitevents-(?P<generation>\d+) (?P<mark>[0-9a-f]{8}) (?P<where>\S+:\d+) [0-9a-f]+$")


class Who(msgspec.Struct, frozen=True):
    """Who consumes: what it knows, what it declares for the queue, and where it runs."""

    generation: int
    mark: str
    where: str


def mark(topology: Topology, queue: str, becomes: str = "") -> str:
    """Return eight signs for what is declared for a queue, its arguments and its bindings: others, where that is other.

    Code that knows of another name which the queue is to have (``becomes``) is other code, too.
    """
    declared = topology.queue(queue)
    arguments = [] if declared is None else sorted(declared.arguments.items())
    bindings = sorted(
        (item.exchange, item.routing_key)
        for item in topology.items
        if isinstance(item, Binding) and item.queue == queue
    )
    known = (arguments, bindings, becomes) if becomes else (arguments, bindings)
    return blake2s(repr(known).encode(), digest_size=4).hexdigest()


def tag(mark: str) -> str:
    """Return a fresh consumer tag."""
    host = "".join(sign for sign in socket.gethostname()[:_LONGEST_HOST] if sign.isascii() and sign.isprintable())
    return f"rabbitevents-{GENERATION} {mark} {''.join(host.split()) or 'unknown'}:{os.getpid()} {uuid4().hex[:8]}"


def who(tag: str) -> Who | None:
    """Read a consumer tag; None is one of somebody else, or of a version before these tags."""
    found = _TAG.match(tag)
    return None if found is None else Who(int(found["generation"]), found["mark"], found["where"])

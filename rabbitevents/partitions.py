"""The names of what a subscription is divided into, where the order of each entity is to hold across processes.

Of a subscription ``shop.record`` with 8 partitions the queues are ``shop.record.0-of-8`` to ``shop.record.7-of-8``. The
exchange ``shop.record.of-8`` leads to them, and ``shop.record.partitions`` says that there are 8: it leads to the former
(``docs/decisions/0027-partitions.md``). One is the queue ``shop.record`` itself, which nothing divides.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["GUARD", "undivided"]

GUARD: Final = ".partitions"
"""How the exchange is called that says how many partitions there are, and leads to them what is published to it."""

DIVIDED: Final = "rabbitevents.divided"
"""The exchange that stands where anything of the virtual host was ever divided, and saves all others the looking for that."""

MOST: Final = 256
"""How many partitions there may be: each is a quorum queue."""

_OF_A_DIVISION = re.compile(r"^(?P<whole>.+)\.(?:\d+-)?of-(?P<total>\d+)$")


def names(whole: str, total: int) -> tuple[str, ...]:
    """Return the names of the queues, in their order, which is the alphabet's, too.

    They are bound in that order, by whoever comes first: where the exchange has its queues in another order, nearly every
    entity is in another queue.
    """
    if total == 1:
        return (whole,)
    digits = len(str(total - 1))
    return tuple(f"{whole}.{number:0{digits}}-of-{total}" for number in range(total))


def division(whole: str, total: int) -> str:
    """Return the name of what leads to them: an exchange, or the one queue itself."""
    return whole if total == 1 else f"{whole}.of-{total}"


def counted(total: int) -> str:
    """Return a number of partitions in words."""
    return "one queue" if total == 1 else f"{total} partitions"


def ended(division: str) -> str:
    """Return the exchange that stands once others are led over to: what is left of these is consumed, and never made again.

    The same is said of the one queue.
    """
    return f"{division}.ended"


def undivided(queue: str) -> str:
    """Return the name of the subscription that a queue is a partition of, which is its dead letters' too; else its own."""
    found = _OF_A_DIVISION.match(queue)
    return queue if found is None else found["whole"]


def total_of(name: str) -> int:
    """Return of how many partitions a queue is one, or an exchange leads to; 0 for what belongs to no division."""
    found = _OF_A_DIVISION.match(name)
    return 0 if found is None else int(found["total"])


def guard_of(name: str) -> str | None:
    """Return the exchange that must agree before what has this name is made; None for what belongs to no division."""
    found = _OF_A_DIVISION.match(name)
    return None if found is None else f"{found['whole']}{GUARD}"

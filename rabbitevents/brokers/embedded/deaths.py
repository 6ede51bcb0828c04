"""Where a message died before: ``x-death``, as RabbitMQ writes it, and as it reads whatever else stands there.

A publisher can have sent a header of that name with anything in it. So nothing in it is taken for what it should be:
what is no array is replaced, what is no table in it is left out, what lacks a count has died once. (RabbitMQ 3.10.8
was asked; at an array of other things its queue crashes, which is not imitated.)
Sources: https://www.rabbitmq.com/docs/dlx, and rabbit_dead_letter.erl.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rabbitevents.properties import Headers, HeaderValue, Timestamp

DEATHS: Final = "x-death"

_MOST = 2**63 - 2
"""The highest count that one more death still leaves within AMQP's 64 bits."""

Death = Mapping[str, HeaderValue]
"""Why and in which queue a message died, how often, and how it had come there."""


def history(headers: Headers) -> list[Death]:
    """Return the deaths that ``headers`` tell of, the last one first; what is no death is left out."""
    told = headers.get(DEATHS)
    return [each for each in told if isinstance(each, Mapping)] if isinstance(told, (list, tuple)) else []


def after_death(headers: Headers, death: Death) -> dict[str, HeaderValue]:
    """Return the headers of a message that died: one more of the same death counts, another one is put first."""
    deaths = history(headers)
    same = [each for each in deaths if _same(each, death)]
    others = [each for each in deaths if not _same(each, death)]
    counted: Death = {**(same[0] if same else death), "count": 1 + (_count(same[0]) if same else 0)}
    first: dict[str, HeaderValue] = {}
    if DEATHS not in headers:
        first = {f"x-first-death-{name}": death[name] for name in ("queue", "reason", "exchange")}
    return {**headers, **first, DEATHS: [counted, *others]}


def is_cycle(headers: Headers, queue: str) -> bool:
    """Whether a dead letter has been in ``queue`` before, and nobody rejected it on the way round: then it is dropped.

    3.10.8 turns the order of the deaths about at each further one, and so can take a rejection before the cycle for
    one within it, and let the message go round for ever (measured); the order here is that of the documentation.
    """
    way_round: list[Death] = []
    for death in history(headers):
        way_round.append(death)
        if death.get("queue") == queue:
            return all(each.get("reason") != "rejected" for each in way_round)
    return False


def death(
    queue: str, reason: str, *, exchange: str, routing_keys: list[str], date: int, expiration: str | None
) -> Death:
    """Return what is noted of one death."""
    noted: dict[str, HeaderValue] = {
        "queue": queue,
        "reason": reason,
        "exchange": exchange,
        "routing-keys": routing_keys,
        "time": Timestamp(date),
    }
    return noted if expiration is None else {**noted, "original-expiration": expiration}


def _same(one: Death, other: Death) -> bool:
    return one.get("queue") == other["queue"] and one.get("reason") == other["reason"]


def _count(each: Death) -> int:
    count = each.get("count")
    return min(count, _MOST) if isinstance(count, int) else 0

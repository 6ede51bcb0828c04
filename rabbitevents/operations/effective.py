"""What truly holds for a queue: its arguments, a policy, an operator's policy and the broker's version, taken together.

Measured on 3.10.8 and 4.3.6, and read in the sources of those between: of ``overflow`` the policy counts, of what
concerns dead letters the argument, and of a limit the smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import msgspec

from rabbitevents.topology import Argument

By = Literal["argument", "policy", "operator policy", "broker"]
"""Who says what holds; "broker" is its own default."""

Version = tuple[int, ...]
"""A broker's version: ``(3, 10, 8)``."""

ARGUMENT_FIRST: Final = ("dead-letter-exchange", "dead-letter-routing-key", "dead-letter-strategy")
POLICY_FIRST: Final = ("overflow", "delayed-retry-type", "delayed-retry-min", "delayed-retry-max")
SMALLER: Final = ("delivery-limit", "message-ttl", "max-length", "max-length-bytes", "expires", "consumer-timeout")

KEYS: Final = (*ARGUMENT_FIRST, *POLICY_FIRST, *SMALLER)
"""What is looked at."""

_SINCE: Final[Mapping[str, Version]] = {
    "consumer-timeout": (3, 12),
    "delayed-retry-type": (4, 3),
    "delayed-retry-min": (4, 3),
    "delayed-retry-max": (4, 3),
}
"""Keys that earlier brokers let pass and do not know."""


class Setting(msgspec.Struct, frozen=True):
    """What holds, and who says so."""

    value: Argument
    by: By


Definition = Mapping[str, Argument]
"""What a policy sets, by key: ``{"max-length": 1000}``."""


def effective(
    arguments: Mapping[str, Argument], policy: Definition, operator: Definition, version: Version
) -> dict[str, Setting]:
    """Return what holds for a quorum queue, by key without ``x-``; a key that nobody sets, and that has no default, is not there.

    ``policy`` and ``operator`` are the definitions of the one policy of each kind that matches the queue. At-least-once
    dead-lettering is what it is only with a dead-letter exchange and ``overflow`` of ``reject-publish``: without them
    the strategy is at-most-once, whatever is set.
    """
    told = dict(merged(policy, operator))
    found: dict[str, Setting] = {}
    for key in KEYS:
        said = [
            *([Setting(arguments[f"x-{key}"], "argument")] if f"x-{key}" in arguments else []),
            *([told[key]] if key in told else []),
        ]
        if said and version >= _SINCE.get(key, ()):
            found[key] = said[0] if len(said) == 1 else _of_two(key, said[0], said[1], version)
    found.setdefault("overflow", Setting("drop-head", "broker"))
    if version >= (4,):
        found.setdefault("delivery-limit", Setting(20, "broker"))
    found["dead-letter-strategy"] = _strategy(found)
    return found


def merged(policy: Definition, operator: Definition) -> Iterator[tuple[str, Setting]]:
    """Yield what the two policies come to: of a limit the smaller, of anything else the operator's."""
    for key in dict.fromkeys((*policy, *operator)):
        ours, theirs = policy.get(key), operator.get(key)
        smaller = key in SMALLER and ours is not None and theirs is not None and _number(ours) <= _number(theirs)
        if ours is not None and (theirs is None or smaller):
            yield key, Setting(ours, "policy")
        elif theirs is not None:
            yield key, Setting(theirs, "operator policy")


def _of_two(key: str, argument: Setting, policy: Setting, version: Version) -> Setting:
    if key in ARGUMENT_FIRST:
        return argument
    if key in POLICY_FIRST:
        return policy
    ours, theirs = _number(argument.value), _number(policy.value)
    # From 4.0 on a negative delivery limit means none, and gives way to one that there is.
    larger = key == "delivery-limit" and version >= (4,) and min(ours, theirs) < 0
    return argument if ours == theirs or (ours > theirs) == larger else policy


def _strategy(found: Mapping[str, Setting]) -> Setting:
    asked = found.get("dead-letter-strategy", Setting("at-most-once", "broker"))
    overflow = found["overflow"]
    if asked.value == "at-least-once" and overflow.value != "reject-publish":
        return Setting("at-most-once", overflow.by)
    if asked.value == "at-least-once" and "dead-letter-exchange" not in found:
        return Setting("at-most-once", "broker")
    return asked


def _number(value: Argument) -> int:
    return value if isinstance(value, int) else 0

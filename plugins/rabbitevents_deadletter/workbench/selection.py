"""Which dead letters are meant."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from rabbitevents import ConfigurationError
from rabbitevents.texts import printable
from rabbitevents_deadletter.letters import DeadLetterMessage


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What a dead letter must be to be meant: all that is said here. Nothing said means every one.

    ``ids`` are written as they are, or as they are shown (with escapes), in capitals or not. ``types`` and ``errors``
    are names in which ``*`` stands for any text; an error's class may be written without its module, and the broker's
    reasons (``delivery_limit``, ``rejected``, ``expired``) are errors too. A letter that does not say when it failed
    has no age, and is neither older nor newer than anything.
    """

    ids: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    older_than: timedelta | None = None
    newer_than: timedelta | None = None

    def takes(self, letter: DeadLetterMessage, now: datetime | None = None) -> bool:
        """Say whether ``letter`` is meant, at the time ``now``."""
        if self.ids and not {letter.id.lower(), printable(letter.id).lower()} & {each.lower() for each in self.ids}:
            return False
        if self.types and not _fits((letter.type,), self.types):
            return False
        if self.errors and not _fits((letter.cause, letter.cause.rpartition(".")[2]), self.errors):
            return False
        if self.older_than is None and self.newer_than is None:
            return True
        if letter.failed_at is None:
            return False
        age = (now or datetime.now(UTC)) - letter.failed_at
        return (self.older_than or age) <= age <= (self.newer_than or age)


EVERY: Final = Selection()
"""All of them."""


def _fits(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def age(text: str) -> timedelta:
    """Read an age: a number and its unit, such as ``90s``, ``10m``, ``2h``, ``7d``, ``2w``. Raises `ConfigurationError`."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s*([smhdw])", text.strip(), re.ASCII)
    if found is None:
        raise ConfigurationError(f"{text[:40]!r} is no age: write a number and s, m, h, d or w, such as 90s or 2h")
    return timedelta(seconds=float(found[1]) * _UNITS[found[2]])

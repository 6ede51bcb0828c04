"""Topic patterns, AMQP's: words with dots between them, where ``*`` stands for one word and ``#`` for any number of them.

Source: AMQP 0-9-1, 3.1.3.3.
"""

from __future__ import annotations

from functools import lru_cache

from rabbitevents.errors import ConfigurationError


def matches(pattern: str, routing_key: str) -> bool:
    """Say whether ``routing_key`` falls under ``pattern``."""
    if len(pattern) <= LONGEST and len(routing_key) <= LONGEST:
        return _known_to_match(pattern, routing_key)
    return _fits(_words(pattern), _words(routing_key), literal=True)


LONGEST = 255
"""AMQP's routing keys are no longer: what is longer is a stranger's, and is not kept."""


@lru_cache(maxsize=1024)
def _known_to_match(pattern: str, routing_key: str) -> bool:
    return _fits(_words(pattern), _words(routing_key), literal=True)


def overlaps(one: str, other: str) -> bool:
    """Say whether some routing key falls under both patterns."""
    return _fits(_words(one), _words(other), literal=False)


def _words(key: str) -> tuple[str, ...]:
    """Split at the dots; an empty key has no words (as in RabbitMQ's topic exchange)."""
    return tuple(key.split(".")) if key else ()


def _fits(one: tuple[str, ...], other: tuple[str, ...], *, literal: bool) -> bool:
    """Compare word by word; with ``literal`` the other side's ``*`` and ``#`` are words like any.

    From the end backwards: a row says, for each place in ``other``, whether what follows there fits what follows in
    ``one``. So it takes as many steps as the words of both, multiplied, however many ``#`` there are.
    """
    spans = [not literal and word == "#" for word in other]
    last = len(other)
    row = [True] * (last + 1)
    for place in reversed(range(last)):
        row[place] = spans[place] and row[place + 1]
    for word in reversed(one):
        below, row = row, [False] * (last + 1)
        row[last] = word == "#" and below[last]
        for place in reversed(range(last)):
            if word == "#" or spans[place]:
                row[place] = below[place] or row[place + 1]
            else:
                same = word in (other[place], "*") or (not literal and other[place] == "*")
                row[place] = same and below[place + 1]
    return row[0]


def check_pattern(pattern: str) -> None:
    """Raise `ConfigurationError` for what is no pattern, or would match nothing."""
    words = pattern.split(".")
    if "" in words or len(pattern.encode()) > 255:
        raise ConfigurationError(
            f"{pattern[:40]!r} is no topic pattern: words with single dots between them, at most 255 bytes"
        )
    if any(len(word) > 1 and ("*" in word or "#" in word) for word in words):
        raise ConfigurationError(
            f"{pattern[:40]!r} would match nothing: in a topic pattern '*' and '#' stand for whole words"
        )

"""Where claims and marks are kept: the steps that a `Store` can do, and what it answers.

A key goes through these states, each step atomic and by the store's own clock::

    (unknown) --claim--> claimed --complete--> done --(keep is over)--> (unknown)
                  ^         |
                  |         +--release--> free --claim--> claimed
                  +-- another's claim, once the lease is over --+

Who claims names itself: an ``owner``, one word that nobody else ever used. Every later step is refused to any other
owner. A ``digest`` is one word too, and says what the key stands for; an empty one says nothing, and fits any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Protocol, TypeAlias, runtime_checkable

import msgspec

from rabbitevents import RabbitEventsError

UNFINISHED: Final = timedelta(days=1)
"""How long a store remembers at least what was claimed and never done."""


def remembered(lease: timedelta = timedelta()) -> timedelta:
    """Return how long a store remembers what was claimed for as long as ``lease``, and never done."""
    return max(2 * lease, UNFINISHED)


class Acquired(msgspec.Struct, frozen=True):
    """The key is ours until the lease ends.

    ``fence`` is greater than that of every claim of this key before: a resource that remembers the greatest one it saw
    can refuse an owner whose claim has passed to another. It also grows over a loss of the store's data, since it is
    never below the store's clock, in milliseconds since 1970. ``abandoned`` is how often the lease of an owner of this
    key ended without a word from it: it crashed, or stood still.
    """

    fence: int
    abandoned: int = 0


class Busy(msgspec.Struct, frozen=True):
    """Another owner has the key; ``left`` is what is left of its lease, unless it is renewed."""

    left: timedelta


class Done(msgspec.Struct, frozen=True):
    """The key was completed before."""


class Conflict(msgspec.Struct, frozen=True):
    """The key is claimed or done, and stands for something else: it was claimed with another digest."""


Claim: TypeAlias = Acquired | Busy | Done | Conflict
"""What a claim comes to."""


class StoreUnavailableError(RabbitEventsError):
    """The store could not be reached, did not answer in time, or could not do what was asked: done, or not.

    Every step may be repeated by the same owner, whatever became of it the first time. ``partial``: only some keys are
    concerned, and others may be asked for all the same.
    """

    def __init__(self, text: str, *, partial: bool = False) -> None:
        super().__init__(text)
        self.partial = partial


class StoreForbiddenError(StoreUnavailableError):
    """The store does not let this user in, or not do what is needed: at start, a mistake in the configuration."""


class KeyRefusedError(RabbitEventsError):
    """The store keeps something else under this key. Other keys are not concerned."""


@runtime_checkable
class Store(Protocol):
    """Keeps claims and marks. `rabbitevents_idempotency.testing.StoreConformance` is what one has to pass.

    Each method answers, or raises `StoreUnavailableError` within a few seconds (and at once, if it has just found out),
    or `KeyRefusedError`; nothing is done by halves. A step that comes for a key that the store has lost, though its
    owner still works, makes it known again: `renew` as claimed, `complete` as done.
    """

    async def claim(self, key: str, owner: str, lease: timedelta, *, takeover: bool = True, digest: str = "") -> Claim:
        """Make ``key`` the owner's for as long as ``lease``, if it is nobody's or its owner's lease is over.

        Without ``takeover``, a lease that is over is busy too: its owner may not have been able to renew it. The same
        owner's claim is answered with the same fence again, and its lease begins anew. What was claimed with another
        ``digest`` is in `Conflict`, unless it was released.
        """
        ...

    async def renew(self, key: str, owner: str, lease: timedelta) -> bool:
        """Let the owner's lease begin anew; False if the key is not its own any more."""
        ...

    async def complete(self, key: str, owner: str, keep: timedelta) -> bool:
        """Mark ``key`` as done for as long as ``keep``; False if it is not the owner's any more.

        An owner whose lease is over may complete as long as nobody else has claimed. A repetition is True again.
        """
        ...

    async def release(self, key: str, owner: str, *, forget: bool = False) -> bool:
        """Give ``key`` back, to be claimed at once; False if it is not the owner's any more.

        How often it was abandoned is remembered, unless ``forget`` is said.
        """
        ...

    async def look(self) -> Sequence[str]:
        """Write something everywhere, and return what is to be warned of, a sentence each: how it may lose what it keeps.

        It is asked at start, where `StoreForbiddenError` ends the start, and during an outage, which ends with it.
        """
        ...

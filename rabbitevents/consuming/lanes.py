"""Order within a key: of the deliveries of one entity one at a time is handled, and strangers do not wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

from rabbitevents.consuming.work import Work
from rabbitevents.message import Delivery

KeyOf = Callable[[Delivery], Hashable | None]
"""Says whose turn a delivery waits for; None: nobody's."""


class Lanes:
    """Which deliveries may be handled: those whose key none that came before them has.

    A key is taken from the arrival of a delivery until it is settled, whatever becomes of it in between: so what waits
    for its retry holds up those behind it.
    """

    def __init__(self, key_of: KeyOf) -> None:
        self._key_of = key_of
        self._behind: dict[Hashable, deque[Work] | None] = {}
        """The taken keys, and who waits for each; None as long as nobody does."""

    def enter(self, work: Work) -> bool:
        """Say whether ``work`` may be handled; else it waits here until it is its turn."""
        key = work.key = self._key_of(work.delivery)
        if key is None:
            return True
        if key not in self._behind:
            self._behind[key] = None
            return True
        waiting = self._behind[key]
        if waiting is None:
            waiting = self._behind[key] = deque()
        waiting.append(work)
        return False

    def leave(self, work: Work) -> Work | None:
        """Return whose turn it is now that ``work`` is settled; None where nobody waits for it."""
        if work.key is None:
            return None
        waiting = self._behind.get(work.key)
        if waiting:
            return waiting.popleft()
        self._behind.pop(work.key, None)
        return None

    def clear(self) -> None:
        """Forget all of them."""
        self._behind.clear()

    @property
    def waiting(self) -> int:
        """How many wait for others of their key."""
        return sum(len(each) for each in self._behind.values() if each)

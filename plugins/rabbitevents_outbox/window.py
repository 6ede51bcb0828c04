"""The rows in a relay's hands: which may be sent now, and which wait for the one before them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Set
from contextlib import suppress

from rabbitevents_outbox.rows import Row


class Window:
    """Rows as chains, one for each entity: a row may be sent when the one before it in its chain is confirmed.

    To send two of one entity at once would be wrong on one channel too: a full queue refuses the first, and takes the
    second. Rows without an entity are chains of one.

    :param full: From how many rows on an entity's chain needs no more of them for now.
    """

    def __init__(self, full: int) -> None:
        self.starved: bool = False
        """Whether a chain that was full has room again, so that more of its rows are to be read."""
        self.dropped: set[str] = set()
        """The entities that have been dropped: rows of theirs that are being read at that moment are not taken."""
        self._known: set[int] = set()
        self._ready: deque[Row] = deque()
        self._chains: dict[str, deque[Row]] = {}
        self._full = full
        self._was_full: set[str] = set()

    @property
    def known(self) -> Set[int]:
        """The ids of all rows in our hands, those included that are confirmed and not yet marked."""
        return self._known

    @property
    def ready(self) -> int:
        """How many rows may be sent now."""
        return len(self._ready)

    @property
    def full(self) -> list[str]:
        """The entities of which there are enough rows here."""
        found = [entity for entity, chain in self._chains.items() if len(chain) >= self._full]
        self._was_full.update(found)
        return found

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows, in their order."""
        for row in rows:
            if row.id in self._known or row.entity in self.dropped:
                continue
            self._known.add(row.id)
            if row.entity is None:
                self._ready.append(row)
            elif (chain := self._chains.get(row.entity)) is not None:
                chain.append(row)
            else:
                self._chains[row.entity] = deque((row,))
                self._ready.append(row)

    def take(self, most: int) -> list[Row]:
        """Return up to ``most`` rows that may be sent. Each is to be answered for: `confirmed`, `back` or `drop`."""
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def confirmed(self, row: Row) -> None:
        """Let the next one of a row's chain be sent; the row itself stays known until it is `marked`."""
        if row.entity is None:
            return
        chain = self._chains[row.entity]
        chain.popleft()
        if chain:
            self._ready.append(chain[0])
        else:
            del self._chains[row.entity]
        if row.entity in self._was_full and len(chain) <= self._full // 2:
            self._was_full.discard(row.entity)
            self.starved = True

    def back(self, rows: Iterable[Row], *, last: bool = False) -> None:
        """Let rows be sent again, before all others, or after them."""
        if last:
            self._ready.extend(rows)
        else:
            self._ready.extendleft(reversed(list(rows)))

    def drop(self, row: Row) -> None:
        """Forget a row that has failed, and all of its entity's that come after it."""
        self._known.discard(row.id)
        with suppress(ValueError):
            self._ready.remove(row)
        if row.entity is not None:
            self.dropped.add(row.entity)
            self._known.difference_update(each.id for each in self._chains.pop(row.entity, ()))
            self._was_full.discard(row.entity)

    def marked(self, ids: Iterable[int]) -> None:
        """Forget rows that stand as sent in the database."""
        self._known.difference_update(ids)

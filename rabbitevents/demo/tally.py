"""The tally: what the ledgers say, counted while they grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from rabbitevents.demo.ledger import Handled, Published, Record

STORIES: Final = 100
"""Of how many orders every event is kept, to tell one order's story."""

_records: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


class Tally:
    """What services have published and handled, from all ledgers in a folder.

    An event is expected in each of the queues that ``listeners`` names for its type. Counted are only the cascades of orders that were
    placed in this run: what an earlier run left on the broker is handled, but not counted.
    """

    def __init__(self, folder: Path, listeners: Callable[[str], Sequence[str]]) -> None:
        self._folder = folder
        self._listeners = listeners
        self._read: Counter[Path] = Counter()
        self._events: set[str] = set()
        self._effects: set[tuple[str, str]] = set()
        self._strangers: dict[str, list[Record]] = {}
        self.roots: set[str] = set()
        self.missing: set[tuple[str, str]] = set()
        """The queues and events whose effect has not come yet."""
        self.duplicates = 0
        self.handled: Counter[str] = Counter()
        """How many events each service handled, repeated ones included."""
        self.effects: Counter[str] = Counter()
        """How many effects each service had, each counted once."""
        self.published: Counter[tuple[str, str]] = Counter()
        """How many events each service published, by service and type."""
        self.stories: dict[str, list[Published]] = {}

    def of_type(self, type: str) -> int:
        """Return how many events of ``type`` were published."""
        return sum(number for (_, each), number in self.published.items() if each == type)

    def read(self) -> bool:
        """Count what has been written since the last time; say whether anything has."""
        grown = False
        for path in self._folder.glob("*.ledger"):
            with path.open("rb") as file:
                file.seek(self._read[path])
                lines = file.read()
            finished = lines.rfind(b"\n") + 1
            self._read[path] += finished
            grown |= finished > 0
            for line in lines[:finished].splitlines():
                self._sort_out(_records.decode(line))
        return grown

    def _sort_out(self, record: Record) -> None:
        if isinstance(record, Published) and record.event == record.root:
            self.roots.add(record.root)
            self._count(record)
            for waiting in self._strangers.pop(record.root, ()):
                self._count(waiting)
        elif record.root in self.roots:
            self._count(record)
        else:
            self._strangers.setdefault(record.root, []).append(record)

    def _count(self, record: Record) -> None:
        if isinstance(record, Handled):
            self._count_effect(record)
        elif record.event not in self._events:
            self._events.add(record.event)
            self.published[record.service, record.type] += 1
            expected = {(queue, record.event) for queue in self._listeners(record.type)}
            self.missing |= expected - self._effects
            if record.root in self.stories or len(self.stories) < STORIES:
                self.stories.setdefault(record.root, []).append(record)

    def _count_effect(self, record: Handled) -> None:
        effect = (record.queue, record.event)
        self.handled[record.service] += 1
        if effect in self._effects:
            self.duplicates += 1
            return
        self._effects.add(effect)
        self.effects[record.service] += 1
        self.missing.discard(effect)

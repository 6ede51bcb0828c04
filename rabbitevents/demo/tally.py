"""The tally: what the ledgers say, counted while they grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from rabbitevents.demo.ledger import GivenUp, Handled, Published, Record, Retried

CLOSED: Final = ("order.confirmed", "order.cancelled")
"""The types of event that an order ends with."""

SETTLED: Final = ("payment.processed", "payment.declined", "payment.overdue")
"""The types of event that a payment process ends with."""

Effect = tuple[str, str]
"""A queue and an event: what is to be handled once."""

Trouble = Retried | GivenUp

_records: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


class Tally:
    """What services have published and handled, from all ledgers in a folder.

    An event is expected in each of the queues that ``listeners`` names for its type. A timeout is expected nowhere, and
    not counted: what has to come is an end of the process that has set it. Counted are only the cascades of
    orders that were placed in this run: what an earlier run left on the broker is handled, but not counted.
    """

    def __init__(self, folder: Path, listeners: Callable[[str], Sequence[str]]) -> None:
        self._folder = folder
        self._listeners = listeners
        self._read: Counter[Path] = Counter()
        self._effects: set[Effect] = set()
        self._strangers: dict[str, list[Record]] = {}
        self._closed: set[str] = set()
        self._timeouts: set[str] = set()
        self._settled: set[str] = set()
        self._due = 0.0
        self.roots: dict[str, str] = {}
        """The first event of its cascade, for each event."""
        self.sizes: Counter[str] = Counter()
        """How many events each cascade has, by its first one, in the order in which they began."""
        self.missing: set[Effect] = set()
        """The effects that have not come yet."""
        self.given_up: dict[Effect, str] = {}
        """What services say that they have given up on, and the error. Whether it is among the dead letters is another question."""
        self.dead: dict[Effect, str] = {}
        """What was found among the dead letters (`bury`), and the error."""
        self.unsettled: dict[str, float] = {}
        """The orders whose payment process has not ended yet, and when its timeout comes, in seconds since 1970."""
        self.duplicates: int = 0
        self.handled: Counter[str] = Counter()
        """How many events each service handled, repeated ones included."""
        self.effects: Counter[str] = Counter()
        """How many effects each service had, each counted once."""
        self.retried: Counter[str] = Counter()
        """How often each service has tried again."""
        self.published: Counter[tuple[str, str]] = Counter()
        """How many events each service published, by service and type."""
        self.troubles: dict[str, list[Trouble]] = {}
        """What failed, by the first event of the cascade."""

    # --- what is asked of it ---

    @property
    def lost(self) -> set[Effect]:
        """The effects that have not come, and whose event is not among the dead letters either."""
        return self.missing - self.dead.keys()

    @property
    def awaited(self) -> set[Effect]:
        """The effects that may still come: no service says that it has given up on them."""
        return self.missing - self.given_up.keys()

    @property
    def due(self) -> float:
        """When the last one comes of what is tried again, and of timeouts that still mean something (seconds since 1970)."""
        return max(self._due, *self.unsettled.values(), 0.0)

    @property
    def dead_orders(self) -> set[str]:
        """The orders, by their first event, that will not be closed: an event of theirs is among the dead letters instead."""
        return {self.roots[event] for _, event in self.missing & self.dead.keys()} - self._closed

    def of_type(self, type: str) -> int:
        """Return how many events of ``type`` were published."""
        return sum(number for (_, each), number in self.published.items() if each == type)

    @property
    def most_telling(self) -> str:
        """The first event of the cascade that has most to tell, "" if there is none.

        One that came back by way of the broker is, then one that was tried again at all, or given up on; and then the longest.
        """
        return max(self.sizes, key=self._worth_telling, default="")

    def _worth_telling(self, root: str) -> tuple[bool, int, int]:
        troubles = self.troubles.get(root, ())
        waited = any(isinstance(each, Retried) and not each.inline for each in troubles)
        return waited and root in self._closed, len(troubles), self.sizes[root]

    def story(self, root: str) -> list[Published | Trouble]:
        """Return all that is known of a cascade, in the order in which it happened. It is read from the ledgers again."""
        known: dict[str, Published] = {}
        for path in sorted(self._folder.glob("*.ledger")):
            with path.open("rb") as file:
                mentioned = (_records.decode(line) for line in file if root.encode() in line)
                known.update({each.event: each for each in mentioned if isinstance(each, Published)})
        events = (each for each in known.values() if each.root == root)
        return sorted([*events, *self.troubles.get(root, ())], key=lambda each: each.at)

    # --- counting ---

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

    def bury(self, letters: Mapping[Effect, str]) -> None:
        """Note what was found among the dead letters; those of other runs do not count."""
        self.dead.update({effect: error for effect, error in letters.items() if effect[1] in self.roots})

    def _sort_out(self, record: Record) -> None:
        """Count a record, once the one is known that says that it belongs to an order of this run."""
        waiting = [record]
        while waiting:
            each = waiting.pop()
            depends_on = each.root if isinstance(each, (Published, Handled)) else each.event
            if isinstance(each, Published) and each.event == each.root:
                waiting.extend(self._publish(each))
            elif depends_on not in self.roots:
                self._strangers.setdefault(depends_on, []).append(each)
            elif isinstance(each, Published):
                waiting.extend(self._publish(each))
            elif isinstance(each, Handled):
                self._count_effect(each)
            else:
                self._count_trouble(each)

    def _publish(self, record: Published) -> Iterator[Record]:
        """Count an event, and return the records that had to wait for it."""
        if record.timeout:
            self._set_timeout(record)
        elif record.event not in self.roots:
            self.roots[record.event] = record.root
            self.sizes[record.root] += 1
            self.published[record.service, record.type] += 1
            expected = {(queue, record.event) for queue in self._listeners(record.type)}
            self.missing |= expected - self._effects
            if record.type in CLOSED:
                self._closed.add(record.root)
            if record.type in SETTLED:
                self._settled.add(record.about)
                self.unsettled.pop(record.about, None)
        return iter(self._strangers.pop(record.event, ()))

    def _set_timeout(self, record: Published) -> None:
        self.roots[record.event] = record.root
        self._timeouts.add(record.event)
        if record.about not in self._settled:
            self.unsettled[record.about] = datetime.fromisoformat(record.at).timestamp()

    def _count_effect(self, record: Handled) -> None:
        if record.event in self._timeouts:
            return  # it came long after it was set, and so is known
        effect = (record.queue, record.event)
        self.handled[record.service] += 1
        if effect in self._effects:
            self.duplicates += 1
            return
        self._effects.add(effect)
        self.effects[record.service] += 1
        self.missing.discard(effect)

    def _count_trouble(self, record: Trouble) -> None:
        self.troubles.setdefault(self.roots[record.event], []).append(record)
        if isinstance(record, Retried):
            self.retried[record.service] += 1
            self._due = max(self._due, datetime.fromisoformat(record.at).timestamp() + record.after)
        else:
            self.given_up[record.queue, record.event] = record.error

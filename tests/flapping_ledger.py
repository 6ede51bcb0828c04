"""What is known of events whose deliveries were cut off, and what is to be thought of it (see `tests.flapping`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

ATTEMPTS = 3

TAKEN = 0.5
"""Seconds after an acknowledgement was written in which a cut can still keep it from the broker: on quorum queues what
was written within the last 100 ms is lost with its connection, and a busy machine takes its time."""

UNHEARD = 0.1
"""Seconds before the process hears of a cut: it is written down, then made, and what the event loop has to do first on a
busy machine goes on as if nothing had happened."""


@dataclass(frozen=True)
class Run:
    """One run of a handler; ``copy`` is the attempt that the message was published as, ``attempt`` the one that ran."""

    id: str
    copy: int
    attempt: int
    place: tuple[int, int]
    began: float
    began_stale: bool
    ended: float
    ended_stale: bool
    failed: bool


@dataclass(frozen=True)
class Ledger:
    """All that is known of a run of the whole: written while it goes on, read when it has ended."""

    confirmed: dict[str, int] = field(default_factory=dict[str, int])
    """The events that were published: id -> how many attempts there have to be."""
    in_process: set[str] = field(default_factory=set[str])
    runs: list[Run] = field(default_factory=list[Run])
    forwarded: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    cuts: list[float] = field(default_factory=list[float])
    copies: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    """The broker's word: (id, attempt) -> messages that were published; attempt 0 are dead letters."""
    delivered: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    dead: Counter[str] = field(default_factory=Counter[str])
    """What lies in the dead letter queues at the end."""

    def settled(self) -> bool:
        """Say whether every event that was published has come to an end, as far as is known here."""
        fine = {run.id for run in self.runs if not run.failed}
        return all(id in fine or self.copies[id, 0] for id in self.confirmed)


def judge(ledger: Ledger) -> dict[str, Any]:
    """Return the figures, and under ``faults`` the events of which something is not as it must be, by what it is."""
    runs: dict[str, list[Run]] = {}
    for run in sorted(ledger.runs, key=lambda run: run.began):
        runs.setdefault(run.id, []).append(run)
    faults: dict[str, list[str]] = {}
    cut_off = doubled = 0
    for id in ledger.confirmed:
        case = Case(ledger, id, runs.get(id, []))
        cut_off += len(case.cut_off)
        doubled += case.copied_more_than_once
        for what, wrong in case.faults().items():
            if wrong:
                faults.setdefault(what, []).append(id)
    return {
        "events": len(ledger.confirmed),
        "failing": sum(said > 1 for said in ledger.confirmed.values()),
        "cuts": len(ledger.cuts),
        "runs": len(ledger.runs),
        "runs_said": sum(ledger.confirmed.values()),
        "runs_cut_off": cut_off,
        "runs_that_ended_stale": sum(run.ended_stale for run in ledger.runs),
        "deliveries": sum(ledger.delivered.values()),
        "deliveries_cut_off": sum(ledger.delivered.values()) - sum(n for (_, to), n in ledger.copies.items() if to),
        "dead": sum(ledger.dead.values()),
        "lost": len(faults.get("lost", ())),
        "doubled": doubled,
        "faults": faults,
    }


class Case:
    """One event, and all that is known of it. ``runs`` are in the order in which they began."""

    def __init__(self, ledger: Ledger, id: str, runs: Sequence[Run]) -> None:
        self.id, self.runs, self.said = id, runs, ledger.confirmed[id]
        self.inline = id in ledger.in_process
        self._ledger = ledger
        self._safe = self._when_safe()

    def _when_safe(self) -> dict[Run, float]:
        """Return when what became of each run that had something to forward was safe: each has a word of its own."""
        said = sorted(at for id, at in self._ledger.forwarded if id == self.id)
        safe: dict[Run, float] = {}
        for run in sorted(self.runs, key=lambda run: run.ended):
            if run.failed and not run.ended_stale and (not self.inline or run.attempt == self.said):
                safe[run] = next((at for at in said if at >= run.ended), float("inf"))
                said = [at for at in said if at != safe[run]]
        return safe

    def copies(self, attempt: int) -> int:
        return self._ledger.copies[self.id, attempt]

    @property
    def fails(self) -> bool:
        return self.said > 1

    @property
    def last_copy(self) -> int:
        """The attempt that the last copy was published as: in the process, all attempts are one copy's."""
        return 1 if self.inline else self.said

    @property
    def copied_more_than_once(self) -> bool:
        return any(self.copies(attempt) > 1 for attempt in range(ATTEMPTS + 2))

    @property
    def cut_off(self) -> list[Run]:
        """The runs of all deliveries of a copy but the last one that ran."""
        last = {run.copy: run.place for run in self.runs}
        return [run for run in self.runs if run.place != last[run.copy]]

    def faults(self) -> dict[str, bool]:
        dead = self._ledger.dead[self.id]
        return {
            "lost": not dead and (self.fails or not self.runs),
            "dead, though it never failed": bool(dead) and not self.fails,
            "not as many dead letters as were published": dead != self.copies(0),
            "dead more than once, without a cut at the wrong moment": self._copied_too_often(0, self.last_copy),
            "a copy too many": any(self._copied_too_often(n + 1, n) for n in range(1, self.last_copy)),
            "more attempts than are said": any(run.attempt > self.said for run in self.runs),
            "a run for each attempt and each delivery that was cut off, and no other": self._ran_otherwise(),
            "begun though it was known to be stale": any(run.began_stale for run in self.runs),
            "run more often than delivered": self._ran_undelivered(),
            "repeated without a cut": self._repeated_uncut(),
        }

    def _copied_too_often(self, attempt: int, after: int) -> bool:
        """Say whether there are more copies than those of the attempt before, and than the cuts can have doubled."""
        if not self.fails:
            return self.copies(attempt) > (attempt == 1)
        failed = [
            run for run in self.runs if run.copy == after and run.attempt == (self.said if self.inline else after)
        ]
        return self.copies(attempt) > self.copies(after) + sum(map(self._more_by_a_cut, failed))

    def _more_by_a_cut(self, run: Run) -> int:
        """Count the copies that a cut can have made more of: by a run that is repeated, and by a publish that is.

        A copy that was under way when the wire was cut is published again, since nobody knows whether it came, and once
        more by each cut that comes before the broker has confirmed it (its disk may take seconds); and its delivery,
        which was not settled, comes again besides.
        """
        if run.ended_stale:
            return 0
        safe = self._safe[run]
        return bool(self._cuts_between(run.ended, safe + TAKEN)) + self._cuts_between(run.ended, safe)

    def _ran_otherwise(self) -> bool:
        if self.copied_more_than_once:
            return len(self.runs) < self.said  # judged by the copies
        cut_off = self.cut_off
        return [run.attempt for run in self.runs if run not in cut_off] != list(range(1, self.said + 1))

    def _ran_undelivered(self) -> bool:
        ran = {(run.copy, run.place) for run in self.runs}
        return any(n > self._ledger.delivered[self.id, copy] for copy, n in Counter(copy for copy, _ in ran).items())

    def _repeated_uncut(self) -> bool:
        """Say whether a copy of which there is only one was handled twice without a cut in between."""
        for copy in {run.copy for run in self.runs if self.copies(run.copy) == 1}:
            began: dict[tuple[int, int], float] = {}
            for run in self.runs:
                if run.copy == copy:
                    began.setdefault(run.place, run.began)
            if any(not self._cuts_between(one, next) for one, next in pairwise(began.values())):
                return True
        return False

    def _cuts_between(self, start: float, end: float) -> int:
        return sum(start - UNHEARD <= cut <= end for cut in self._ledger.cuts)

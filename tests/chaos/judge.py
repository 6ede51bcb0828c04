"""The judge: what became of each event, from the ledger's records alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

import msgspec

from tests.chaos.ledger import Record


def _never(id: str) -> bool:
    return False


def _at_once(id: str) -> float:
    return 0.0


class Promises(msgspec.Struct, frozen=True):
    """What a load promises.

    ``stages`` are the records that each confirmed event must have. ``dies`` says which events end among the dead, and no
    others do. An event has one record of each kind of ``once``, and one more at most for each of ``per_crash`` events that
    were being handled when a process crashed; None: at least once. ``in_order``: no event of a lane has its first effect
    after a later one's; with ``moves``, but for those that were published before the whole broker was started again.
    ``waits``: seconds from the attempt to publish it before which an event has no effect.
    """

    stages: tuple[str, ...] = ("effect",)
    dies: Callable[[str], bool] = _never
    once: tuple[str, ...] = ("effect",)
    per_crash: int | None = None
    in_order: bool = False
    moves: bool = False
    waits: Callable[[str], float] = _at_once


class Verdict(msgspec.Struct):
    """What was counted, in events unless it says otherwise."""

    confirmed: int = 0
    handled: int = 0
    dead: int = 0
    unknown: int = 0
    recovered: int = 0
    """Events whose publisher got no answer, and that were handled."""
    lost: int = 0
    forfeited: int = 0
    """Lost by nature: they were in a queue that was deleted."""
    unexpected: int = 0
    """Effects of what was never published, or certainly not, or before its time; dead letters of what does not fail, and the
    other way round."""
    duplicate_deliveries: int = 0
    duplicate_effects: int = 0
    excess: int = 0
    """Duplicate effects beyond what is promised."""
    stuck: int = 0
    """Messages that lie in queues when all should be handled, and processes that did not end in time."""
    silent: int = 0
    """Attempts to publish that ended without a word."""
    inversions: int = 0
    moved: int = 0
    """Those that are no broken promise: the whole broker was started again, and moved entities to other partitions."""

    @property
    def faults(self) -> int:
        """How many promises were broken."""
        return self.lost + self.unexpected + self.excess + self.stuck + self.silent + self.inversions


def judge(
    records: Sequence[Record],
    promises: Promises,
    *,
    crashes: int = 0,
    late: int = 0,
    forfeit_until: float = 0.0,
    forgotten_until: float = 0.0,
    moved_until: float = 0.0,
) -> Verdict:
    """Compare. ``crashes`` of processes that handle; ``late`` are processes that did not end in time.

    ``forfeit_until`` (on the records' clock): what was attempted before may be lost, or be among the dead, since its queue was
    deleted, or a policy has thrown it out. ``moved_until``: entities that are handled in partitions were moved then.
    ``forgotten_until``: what was attempted before may come again, since its marks were deleted.
    """
    by = _by_kind(records)
    attempted, effects, dead = by["attempt"], by["effect"], by["dead"]
    answers = by["confirmed"] | by["failed"] | by["unknown"]
    left = by["left"]
    missing = {id for id in by["confirmed"] if not _ended(id, by, promises)} - left.keys()
    times = {record.id: record.at for record in records if record.what == "attempt"}
    forfeited = {id for id in missing if times.get(id, 0.0) < forfeit_until}
    thrown_out = {id for id in dead if not promises.dies(id) and times.get(id, forfeit_until) < forfeit_until}
    late_ones = _inversions(records) if promises.in_order else set[str]()
    moved = {id for id in late_ones if promises.moves and times.get(id, moved_until) < moved_until}
    return Verdict(
        confirmed=len(by["confirmed"]),
        handled=len(effects),
        dead=len(dead),
        unknown=len(by["unknown"]),
        recovered=len(by["unknown"].keys() & effects.keys()),
        lost=len(missing) - len(forfeited),
        forfeited=len(forfeited | thrown_out),
        unexpected=_unexpected(by, promises, thrown_out) + _early(records, promises),
        duplicate_deliveries=by["start"].total() - len(by["start"]),
        duplicate_effects=effects.total() - len(effects),
        excess=sum(
            _excess(_marked(by[kind], times, forgotten_until), promises.per_crash, crashes) for kind in promises.once
        ),
        stuck=left.total() + late,
        silent=len(attempted.keys() - answers.keys()),
        inversions=len(late_ones - moved),
        moved=len(moved),
    )


def _marked(counts: Counter[str], times: Mapping[str, float], since: float) -> Counter[str]:
    """Return the counts of what was attempted when its marks were not deleted any more."""
    return Counter({id: count for id, count in counts.items() if times.get(id, since) >= since})


def _excess(counts: Counter[str], per_crash: int | None, crashes: int) -> int:
    """Count what came again beyond what is promised."""
    if per_crash is None:
        return 0
    repeated = sum(count - 1 - crashes for count in counts.values() if count > 1 + crashes)
    return max(repeated, counts.total() - len(counts) - crashes * per_crash, 0)


def _early(records: Iterable[Record], promises: Promises) -> int:
    """Count events that were to wait, and did not."""
    due = {each.id: each.at + promises.waits(each.id) for each in records if each.what == "attempt"}
    return len({each.id for each in records if each.what == "effect" and each.at < due.get(each.id, 0.0)})


def _by_kind(records: Iterable[Record]) -> defaultdict[str, Counter[str]]:
    by: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        by[record.what][record.id] += 1
    return by


def _ended(id: str, by: defaultdict[str, Counter[str]], promises: Promises) -> bool:
    if promises.dies(id):
        return id in by["dead"]
    return all(id in by[stage] for stage in promises.stages) or id in by["dead"]


def _unexpected(by: defaultdict[str, Counter[str]], promises: Promises, thrown_out: Set[str]) -> int:
    came = by["effect"].keys() | by["passed"].keys() | by["dead"].keys()
    unheard_of = came - by["attempt"].keys()
    denied = came & (by["failed"].keys() - by["confirmed"].keys() - by["unknown"].keys())
    wrongly_dead = {id for id in by["dead"] if not promises.dies(id)} - thrown_out
    wrongly_alive = {id for id in by["effect"] if promises.dies(id)}
    return len(unheard_of | denied | wrongly_dead | wrongly_alive)


def _inversions(records: Iterable[Record]) -> set[str]:
    """Return the events whose first effect came after a later one's of their lane."""
    latest: defaultdict[str, int] = defaultdict(lambda: -1)
    seen: set[str] = set()
    found: set[str] = set()
    for record in records:
        if record.what != "effect" or record.id in seen:
            continue
        seen.add(record.id)
        lane, _, number = record.id.rpartition("/")
        if int(number) < latest[lane]:
            found.add(record.id)
        latest[lane] = max(latest[lane], int(number))
    return found

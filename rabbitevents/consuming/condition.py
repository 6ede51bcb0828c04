"""How a subscription is: what it has in this process, and what is the matter with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic

from rabbitevents.consuming.holding import Holding
from rabbitevents.consuming.lanes import Lanes
from rabbitevents.consuming.work import State, Work
from rabbitevents.message import Delivery
from rabbitevents.routing import Subscription
from rabbitevents.states import SUBSCRIPTION, Check, Load

_IN_HAND = (State.RUNNING, State.GIVEN_BACK)


class Condition:
    """Looks at the deliveries of one subscription.

    ``works`` are all that are here, some of them in ``holding``, some waiting for their turn in ``lanes``. ``overdue``
    counts the handlers that run on after their timeout; one that runs for ``too_long`` (seconds) is said, too.
    """

    def __init__(
        self,
        subscription: Subscription,
        works: Mapping[Delivery, Work],
        holding: Holding,
        lanes: Lanes | None,
        *,
        overdue: Callable[[], int],
        too_long: float,
    ) -> None:
        self._name = subscription.name
        self._window = subscription.options.prefetch
        self._works = works
        self._holding = holding
        self._lanes = lanes
        self._overdue = overdue
        self._too_long = too_long

    @property
    def load(self) -> Load:
        """How many wait for a worker, are handled, and are held or wait for what is."""
        works = self._works.values()
        found = Counter(work.state for work in works)
        in_line = 0 if self._lanes is None else self._lanes.waiting
        parked = sum(1 for work in works if work.state is State.HELD and work not in self._holding)
        held = len(self._holding) + parked + in_line
        return Load(found[State.WAITING] - in_line, sum(found[state] for state in _IN_HAND), held)

    def check(self, pauses: Sequence[str], *, stands_still: bool) -> Check:
        """Say how it is; ``pauses`` are who has paused it, and why, and whether it ``stands_still`` by that."""
        stuck = list(self._stuck())
        problems = [*pauses, *stuck, *self._unpublished(), *self._holding.problems(), *self._in_line()]
        degraded = bool(problems) and not (stands_still or stuck or self._holding.full)
        return Check(f"{SUBSCRIPTION}{self._name}", not problems, "; ".join(problems), degraded, self.load.held)

    def _in_line(self) -> Iterator[str]:
        """Say that nothing more comes, since all that the window holds waits for its turn."""
        if self._lanes is None or len(self._works) < self._window:
            return
        load, waiting = self.load, self._lanes.waiting
        if not load.queued and not load.running:
            yield f"its window is full: {waiting} events wait for others of their key that are tried again later"

    def _unpublished(self) -> Iterator[str]:
        """Say for how many handlers that have succeeded what they returned is not published yet."""
        waiting = [work for work in self._works.values() if work.state is State.RUNNING and work.unpublished]
        if waiting:
            yield f"{len(waiting)} handled, but {waiting[-1].error}"

    def _stuck(self) -> Iterator[str]:
        """Say which handlers do not end: their events are settled by nobody, and their workers do nothing else."""
        if overdue := self._overdue():
            yield f"{overdue} running on past the timeout"
        latest = monotonic() - self._too_long
        if too_long := sum(1 for work in self._works.values() if work.state in _IN_HAND and work.since < latest):
            yield f"{too_long} running for more than half of the consumer timeout"

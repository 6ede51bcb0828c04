"""What nobody took care of: held unsettled, said, tried again after a growing pause, and given back in time.

The core's rule for failures (`docs/decisions/0004-held.md`): nothing is dropped, nothing spins, and the broker's
delivery limit is not spent. The `DeadLetter` plugin turns it into something better.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from rabbitevents.consuming.work import State, Work
from rabbitevents.errors import ConfigurationError, DecodeError, EncodeError, RabbitEventsError, TopologyError
from rabbitevents.facts import Fact, Held, Paused, Released, Resumed
from rabbitevents.fields import event_fields
from rabbitevents.message import Delivery
from rabbitevents.texts import printable, text_of

log: logging.Logger = logging.getLogger("rabbitevents.consumer")

_WAY_OUT = "plugins=[DeadLetter()] would take it out of the way, to its queue of dead letters"
"""Said the first time, of what a handler or its decoding failed with."""

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0
"""Seconds before a held delivery is tried again: doubled each time, from the first to the longest."""


class Holding:
    """Holds the deliveries of one subscription; more than ``limit`` of them stop it from taking new ones.

    ``retry`` is called when one is to be tried again, ``give_back`` when one has been held for ``give_back_after``
    seconds: before the broker's consumer timeout would take the channel, and its neighbours with it.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: int,
        give_back_after: float,
        retry: Callable[[Work], None],
        give_back: Callable[[Work], None],
        tell: Callable[[Callable[..., Fact], tuple[object, ...]], None],
    ) -> None:
        self._name = name
        self._limit = limit
        self._give_back_after = give_back_after
        self._on_retry = retry
        self._on_give_back = give_back
        self._tell = tell
        self._held: dict[Work, None] = {}
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, work: Work) -> bool:
        return work in self._held

    @property
    def full(self) -> bool:
        """Whether so many are held that nothing new is taken."""
        return len(self._held) >= self._limit

    def in_the_way(self, work: Work, error: BaseException) -> list[Work]:
        """Return what no handler is for, and would stop the others if ``work`` were held too.

        Less of it is held as other things are: where a newer version of the service runs as well, that gets it in the end.
        """
        work.unhandled = isinstance(error, DecodeError) and error.unhandled
        if len(self._held) + 1 < self._limit and work.key is None:
            return []
        held = [] if len(self._held) + 1 < self._limit else [each for each in self._held if each.unhandled]
        return [*(each for each in held if each is not work), *([work] if work.unhandled else [])]

    def hold(self, work: Work, error: BaseException) -> None:
        """Hold a delivery, or hold it again. What no waiting can change is not tried again here."""
        now = self._loop.time()
        work.tries += 1
        work.error = named(error)
        work.attempt = work.attempt or _first_attempt(work.delivery)
        if work not in self._held:
            work.held_since = work.held_since or now  # else it has waited in its place before
        pause = None if is_final(error) else min(FIRST_PAUSE * 2 ** (work.tries - 1), LONGEST_PAUSE)
        was_full = self.full
        self._held[work] = None
        work.state = State.HELD
        give_back_in = max(0.0, work.held_since + self._give_back_after - now)
        if pause is not None and pause < give_back_in:
            work.timer = self._loop.call_later(pause, self._on_retry, work)
        else:
            work.timer = self._loop.call_later(give_back_in, self._on_give_back, work)
        self._say(work, error, pause)
        if self.full and not was_full:
            log.error(
                "%s takes nothing new: half of its window is held (%d deliveries); it goes on when one of them succeeds: "
                "mend what they fail of, or have them dead-lettered (plugins=[DeadLetter()])",
                self._name,
                len(self),
                extra={"subscription": self._name},
            )
            self._tell(Paused, (self._name, f"{len(self)} deliveries are held"))

    def _say(self, work: Work, error: BaseException, pause: float | None) -> None:
        log.error(
            "%s failed at attempt %d and no plugin took care of it; it is held, and %s%s",
            work.delivery.describe(),
            work.attempt,
            f"tried again in {pause:g} s: " if pause is not None else "not tried again before a restart: ",
            f"{work.error}; {_WAY_OUT}" if work.tries == 1 and work.settlement is None else work.error,
            exc_info=None if isinstance(error, RabbitEventsError) else error,
            extra={**event_fields(work.delivery), "attempt": work.attempt},
        )
        self._tell(Held, (self._name, *_type_and_id(work.delivery), work.error, pause))

    def release(self, work: Work) -> None:
        """Hold a delivery no longer; nothing, if it is not held."""
        was_full = self.full
        if work.timer is not None:
            work.timer.cancel()
            work.timer = None
        if work not in self._held:
            return
        del self._held[work]
        self._tell(Released, (self._name, _type_and_id(work.delivery)[1]))
        if was_full and not self.full:
            self._tell(Resumed, (self._name,))

    def problems(self) -> list[str]:
        """Say what is the matter, for health."""
        if not self._held:
            return []
        last = next(reversed(self._held))
        full = ["takes nothing new until fewer are held"] if self.full else []
        return [f"{len(self)} held, the last because of {last.error}", *full]


def is_final(error: BaseException) -> bool:
    """Say whether no waiting can change it: what cannot be read or written, and what is wrong in the code.

    What the broker has otherwise, people may mend there. A group is final when each of its members is.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_final, cast("BaseExceptionGroup[BaseException]", error).exceptions))
    return isinstance(error, (ConfigurationError, DecodeError, EncodeError)) and not isinstance(error, TopologyError)


def named(error: BaseException) -> str:
    """Name an error; the text of one that is not ours may hold what was in the event, and is left to the log."""
    name = type(error).__name__
    return f"{name}: {printable(text_of(error))}" if isinstance(error, RabbitEventsError) else name


def _first_attempt(delivery: Delivery) -> int:
    """Return the attempt that a delivery came as; 1 where its headers cannot be read."""
    try:
        return delivery.attempt
    except DecodeError:
        return 1


def _type_and_id(delivery: Delivery) -> tuple[str, str]:
    try:
        return delivery.type, str(delivery.id)
    except DecodeError:
        return "", ""

"""Decisions, tried without a store: what happened, what is decided on it, and what was to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar, cast

from rabbitevents import Writer
from rabbitevents.arguments import wrong
from rabbitevents_process.differences import expect, expect_failure

S = TypeVar("S")


class Past(Generic[S]):
    """What happened to an entity, and what that makes of it: see `given`.

    :param events: What happened, in order.
    :param apply: What an event makes of a state.
    :param initial: The state before the first event.
    """

    def __init__(self, events: Sequence[Any], apply: Callable[[S, Any], S], initial: S) -> None:
        if not callable(cast("object", apply)):
            raise wrong("given: apply", apply, "say the function that applies an event to a state")
        self._events = list(events)
        self._apply = apply
        self._initial = initial

    @property
    def state(self) -> S:
        """What the past has made of the entity."""
        state = self._initial
        for each in self._events:
            state = self._apply(state, each)
        return state

    def when(self, decision: Callable[[S], Any], /) -> Decided[S]:
        """Have something decided on the state, and return what was.

        :param decision: As of `EventStore.decide`: is given the state, and returns an event, a list of events, or None.
        """
        try:
            answer = decision(self.state)
            decided = list(cast("Iterable[Any]", answer)) if isinstance(answer, (list, tuple)) else [answer]
            events = [] if answer is None else decided
            for each in events:
                Writer().prepare(each)
        except Exception as error:  # whatever was raised is the answer: `Decided` says it
            return Decided(self, error)
        return Decided(Past([*self._events, *events], self._apply, self._initial), events)


class Decided(Generic[S]):
    """What was decided: to be compared with what was to be."""

    def __init__(self, past: Past[S], came: list[Any] | Exception) -> None:
        self._past = past
        self._came = came

    def then(self, *events: Any) -> Past[S]:
        """Expect events; none, for a decision to do nothing. Return the past with them, to go on with ``.when(...)``.

        :param events: What was decided, in order.

        Raises AssertionError, which shows the difference line by line.
        """
        __tracebackhide__ = True
        expect("the decision", list(events), self._came, _events)
        return self._past

    def raises(self, kind: type[Exception], match: str = "") -> Past[S]:
        """Expect that it is refused; return the past, as it was.

        :param kind: The exception's class.
        :param match: A regular expression that its text has in it.

        Raises AssertionError.
        """
        __tracebackhide__ = True
        expect_failure("the decision", kind, match, self._came, _events)
        return self._past


def _events(events: Any) -> list[Any]:
    return list(events)

"""Try processes and decisions without a bus, a broker or a database: given, when, then.

::

    given(fulfilment).when(OrderPlaced("42")).then(
        Fulfilment("42"), ChargeCard("42"), timeout=Timeout("unpaid", timedelta(minutes=30))
    )
    given(fulfilment, OrderPlaced("42")).when(timeout="unpaid").then(DONE, OrderCancelled("42"))

    given([OrderPlaced("42", 100)], apply, Order()).when(lambda order: order.pay(30)).then(OrderPaid("42", 30))

What a process keeps is written and read as it is in a database, and what it publishes is looked at as a bus does it: a
state that would not come back, and an event that nobody could read, fail here too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, cast, overload
from uuid import uuid4

from rabbitevents import ConfigurationError, Writer
from rabbitevents.arguments import wrong
from rabbitevents_process.differences import cause, expect, expect_failure, said, shown
from rabbitevents_process.life import Life, Pending
from rabbitevents_process.past import Decided, Past
from rabbitevents_process.process import Process
from rabbitevents_process.reactions import Reaction
from rabbitevents_process.script import Idle
from rabbitevents_process.step import DONE, Step, Timeout

S = TypeVar("S")

__all__ = ["Decided", "Outcome", "Past", "Situation", "given"]


@overload
def given(process: Process, /, *before: Any) -> Situation: ...


@overload
def given(events: Sequence[Any], /, apply: Callable[[S, Any], S], initial: S) -> Past[S]: ...


def given(subject: Any, /, *told: Any, **named: Any) -> Any:
    """Say how it is, to try what comes of an event, or of a decision.

    ``given(process)`` is one that has not begun. ``given(process, state)`` has that state, or has ended (`DONE`), and waits for
    each of its timeouts. ``given(process, OrderPlaced("42"), CardCharged("42"))`` is what these events have made of it.
    ``given(events, apply, initial)`` is an entity with that past, as `EventStore.decide` loads it.

    :param subject: The process, or the events of the past.
    :param told: Of a process, its state or the events that have come; of a past, ``apply`` and ``initial``.
    :param named: ``apply=`` and ``initial=``, where they are named.

    Raises `ConfigurationError` for what cannot be meant.
    """
    if isinstance(subject, Process):
        return Situation.of(subject, told)
    if not isinstance(subject, (list, tuple)):
        raise wrong("given: subject", subject, "say a Process, or a list of events and then apply and initial")
    return Past(cast("Sequence[Any]", subject), *told, **named)


# --- processes -----------------------------------------------------------------------------------------------------


class Situation:
    """A process as it is: see `given`."""

    def __init__(self, process: Process, lives: Mapping[str, Life], everyone: Life | None, key: str) -> None:
        self._process = process
        self._lives = lives
        self._everyone = everyone
        """What is kept for a key of which nothing else is known."""
        self._key = key
        """The key that was spoken of last."""

    @staticmethod
    def of(process: Process, before: Sequence[Any]) -> Situation:
        """Return what a state, or the events that came before, have made of a process.

        :param process: The process.
        :param before: Its state or `DONE`, alone; or events, in order.
        """
        plot, state = process.plot, before[0] if len(before) == 1 else None
        if state is DONE:
            return Situation(process, {}, Life(b"", 0, {}, ended=True), "")
        if isinstance(state, process.state):
            due = {name: Pending(uuid4(), datetime.now(UTC)) for name in plot.script.timeouts}
            return Situation(process, {}, Life(plot.documents.write("", state), plot.documents.version, due), "")
        situation = Situation(process, {}, None, "")
        for each in before:
            situation = situation.when(each).situation
        return situation

    def when(self, event: Any = None, /, *, timeout: str | None = None) -> Outcome:
        """Have an event come, or a timeout, and return what comes of it.

        :param event: An instance of an `@event` class, or an `Event`.
        :param timeout: In place of an event, the name of a timeout: that of the process which was spoken of last.
        """
        if (event is None) == (timeout is None):
            raise ConfigurationError("when(...): say an event, or timeout= and its name")
        payload = event if timeout is None else self._timed_out(timeout)
        envelope, _ = Writer().prepare(payload)
        what = f"when({shown(event)})" if timeout is None else f"when(timeout={timeout!r})"
        plot, key = self._process.plot, self._key
        try:
            key = plot.key_of(envelope.payload)
            life = self._lives.get(key, self._everyone)
            chosen = plot.script.choose(key, life, envelope)
            if isinstance(chosen, str):
                return Outcome(what, self, chosen)
            step = _stepped(chosen, envelope, plot.state(key, life, chosen))
            plot.script.check(step, chosen.where)
            following = plot.next(key, life, envelope, step, datetime.now(UTC))
            for each in step.events:
                Writer().prepare(each)
        except Exception as error:  # whatever a function raises is what came of the event: `Outcome` says it
            return Outcome(what, self, error)
        return Outcome(what, Situation(self._process, {**self._lives, key: following}, self._everyone, key), step)

    def _timed_out(self, name: str) -> Any:
        if name not in self._process.script.timeouts:
            known = ", ".join(map(repr, self._process.script.timeouts)) or "none"
            raise ConfigurationError(f"when(timeout={name[:40]!r}): no function is for it; there is {known}")
        life = self._lives.get(self._key, self._everyone)
        pending = None if life is None else life.timeouts.get(name)
        return self._process.timed_out(self._key or "?", name, uuid4() if pending is None else pending.set_by)


def _stepped(reaction: Reaction, envelope: Any, state: Any) -> Step:
    if reaction.asks_for("session"):
        raise ConfigurationError(
            f"{reaction.where} asks for a session: try it with a database, by rabbitevents.testing.running"
        )
    answer = reaction.call(envelope, state, None)
    if inspect.iscoroutine(answer):
        try:
            answer.send(None)
        except StopIteration as returned:
            return reaction.step(returned.value)
        answer.close()
        raise ConfigurationError(
            f"{reaction.where} waits for something: try it on an event loop, by rabbitevents.testing.running"
        )
    return reaction.step(answer)


class Outcome:
    """What came of an event: to be compared with what was to come of it."""

    def __init__(self, what: str, situation: Situation, came: Step | Idle | Exception) -> None:
        self._what = what
        self._situation = situation
        self._came = came

    @property
    def situation(self) -> Situation:
        """How it is from now on. Raises what the function has raised."""
        if isinstance(self._came, Exception):
            raise self._came
        return self._situation

    def then(
        self,
        state: Any,
        *events: Any,
        timeout: Timeout | Iterable[Timeout] = (),
        clear: str | Iterable[str] = (),
    ) -> Situation:
        """Expect a step, in its parts or as a `Step`; return how it is from now on, to go on with ``.when(...)``.

        :param state: The new state, `DONE`, or a whole `Step`.
        :param events: What is published, in order.
        :param timeout: The timeouts that are set, as of `Step`.
        :param clear: The timeouts that are cleared, as of `Step`.

        Raises AssertionError, which shows the difference line by line.
        """
        __tracebackhide__ = True
        expected = state if isinstance(state, Step) else Step(state, *events, timeout=timeout, clear=clear)
        expect(self._what, expected, self._came, _parts)
        return self._situation

    def ignored(self) -> Situation:
        """Expect that nothing is done: the process has ended, or the timeout is waited for no more.

        Raises AssertionError.
        """
        __tracebackhide__ = True
        if not isinstance(self._came, str):
            raise AssertionError(f"{self._what} was to be ignored:\n{said(self._came, _parts)}") from cause(self._came)
        return self._situation

    def raises(self, kind: type[Exception], match: str = "") -> Situation:
        """Expect that it fails; return how it was before, and still is.

        :param kind: The exception's class.
        :param match: A regular expression that its text has in it.

        Raises AssertionError.
        """
        __tracebackhide__ = True
        expect_failure(self._what, kind, match, self._came, _parts)
        return self._situation


def _parts(step: Any) -> list[Any]:
    """Return the parts of a step, in the order of their importance."""
    timeouts = [f"timeout {each.name!r} after {each.after}" for each in sorted(step.timeouts, key=lambda t: t.name)]
    return [step.state, *step.events, *timeouts, *(f"clear {name!r}" for name in sorted(step.cleared))]

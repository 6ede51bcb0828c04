"""The timetable of a policy: what waits it makes, for people, for documentation, and for the checks at start.

The policy's own strategies are asked, attempt after attempt, as if each handling failed at once. Where a wait is
random, the range is that of tenacity's own strategies; any other strategy is asked `SAMPLES` times.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from datetime import timedelta
from itertools import count, islice
from typing import Final, Literal, TypeAlias

import msgspec
from tenacity import (
    RetryCallState,
    wait_chain,
    wait_combine,
    wait_exponential,
    wait_exponential_jitter,
    wait_random,
    wait_random_exponential,
)
from tenacity.wait import WaitBaseT

from rabbitevents import ConfigurationError
from rabbitevents_retry.policy import LONGEST, MOST, Policy, bounded
from rabbitevents_retry.rules import Rule, Rules

SAMPLES: Final = 100
ROWS: Final = 100
"""How many attempts a timetable shows of a policy that makes more."""

CHECKED: Final = 10_000
"""How many attempts the checks at start look at, if they follow on each other in the process; else `ROWS` are enough."""

Place: TypeAlias = Literal["process", "broker", "either"]


class Span(msgspec.Struct, frozen=True):
    """From the shortest to the longest, in seconds; ``sampled`` says that they were only looked for."""

    shortest: float = 0.0
    longest: float = 0.0
    sampled: bool = False

    def __add__(self, other: Span) -> Span:
        return Span(self.shortest + other.shortest, self.longest + other.longest, sampled=self.sampled or other.sampled)

    def __str__(self) -> str:
        shortest, longest = _shown(self.shortest), _shown(self.longest)
        return shortest if shortest == longest else f"{shortest} to {longest}"


class Step(msgspec.Struct, frozen=True):
    """The wait after attempt number ``attempt`` failed, and where it takes place.

    ``wait`` is None where the strategy says it only of a real failure. ``takes`` is how long it is until the event is
    handled again: a wait at the broker is rounded up to the next waiting queue.
    """

    attempt: int
    wait: Span | None
    place: Place
    takes: Span

    @property
    def queues(self) -> tuple[str, ...]:
        """The shortest and the longest waiting queue that it can be, if it is known and at the broker."""
        if self.wait is None or self.place == "process":
            return ()
        ends = [self.takes.longest] if self.place == "either" else [self.takes.shortest, self.takes.longest]
        return tuple(dict.fromkeys(f"delay.{round(end * 1000)}" for end in ends if end))

    def __str__(self) -> str:
        process, broker = "in the process", "at the broker"
        if self.wait is None:
            return "as the failure says"
        there = ("up to " if self.place == "either" else "") + " to ".join(self.queues)
        broker = f"{broker} ({there})" if self.queues else broker
        return {"process": process, "broker": broker, "either": f"{process}, or {broker}"}[self.place]


class Sentence(msgspec.Struct, frozen=True):
    """A rule of a policy: the failures that it is ``about``, and what it ``does``, with a table where that is trying again."""

    about: str
    does: str
    table: Timetable | None = None

    def __str__(self) -> str:
        return f"{self.about}: {self.does}" if self.table is None else f"{self.about}:\n{self.table}"


class Timetable(msgspec.Struct, frozen=True):
    """What a policy does with an event that fails each time. ``str()`` makes a table of it.

    ``attempts`` is how many there are at most; None: without end, or more than `ROWS`. ``timed`` says that time ends
    it: handlers take time too, and there may be fewer. Of a policy with several rules, the ``sentences`` are all of
    them, and the steps those of the last one.
    """

    steps: tuple[Step, ...]
    attempts: int | None
    timed: bool
    sentences: tuple[Sentence, ...] = ()

    @property
    def total(self) -> Span:
        """From the first failure to the last attempt; what only a failure says counts as nothing."""
        return sum((step.takes for step in self.steps), Span())

    def __str__(self) -> str:
        if self.sentences:
            return "\n\n".join(map(str, self.sentences))
        rows = [("attempt", "then waits", "where")]
        rows += [(str(s.attempt), _marked(s.wait), str(s)) for s in self.steps]
        if self.attempts is None:
            rows.append(("...", "", "and so on"))
        else:
            known = all(step.wait is not None for step in self.steps)
            rows.append((str(self.attempts), "", f"given up{f' after {self.total}' if known and self.steps else ''}"))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip() for row in rows]
        if any(s.wait is not None and s.wait.sampled for s in self.steps):
            lines.append(f"~ found by asking {SAMPLES} times")
        if self.timed:
            lines.append("time ends it: the longer handlers take, the fewer attempts there are")
        return "\n".join(lines)


def timetable(rules: Rules, inline_below: float) -> Timetable:
    """Return what is done about which failure, and the waits of what is tried again."""
    sentences = tuple(_sentence(rule, inline_below) for rule in rules.rules)
    last = sentences[-1].table or Timetable((), 1, timed=False)
    return last if len(sentences) == 1 else msgspec.structs.replace(last, sentences=sentences)


def _sentence(rule: Rule, inline_below: float) -> Sentence:
    if isinstance(rule.action, Policy):
        return Sentence(str(rule), "tried again", _table(rule.action, inline_below))
    return Sentence(str(rule), str(rule.action))


def _table(policy: Policy, inline_below: float) -> Timetable:
    steps = tuple(islice(walk(policy, inline_below), ROWS + 1))
    if len(steps) > ROWS:
        return Timetable(steps[:ROWS], None, timed=False)
    last = len(steps) + 1
    return Timetable(steps, last, timed=not _stops(policy, last, 0.0, 0.0))


def walk(policy: Policy, inline_below: float) -> Iterator[Step]:
    """Yield the waits one after the other, as many as the policy can come to: each the shortest that it can be."""
    elapsed = 0.0
    for attempt in count(1):
        state = _state(policy, attempt, elapsed)
        wait = span(policy.wait, state)
        if _stops(policy, attempt, elapsed, wait.shortest if wait is not None else 0.0):
            return
        step = _step(attempt, wait, inline_below)
        elapsed += step.takes.shortest
        yield step


def check(policy: Policy, inline_below: float, *, consumer_timeout: float, handling: float, where: str) -> None:
    """Raise `ConfigurationError` for waits that there are not, and for those that the broker would cut short.

    ``handling`` is how long one handling may take, in seconds; 0 where nobody said.
    """
    stay, begun = handling, 1
    for step in walk(policy, inline_below):
        if step.wait is not None and step.wait.longest > LONGEST.total_seconds():
            raise ConfigurationError(
                f"{where}: Retry would wait {_shown(step.wait.longest)} after attempt {step.attempt}, and an event can wait "
                f"at most {LONGEST.days} days at the broker; bound it with the strategy's max="
            )
        if step.place == "broker" or step.wait is None:
            stay, begun = handling, step.attempt + 1
            if begun > ROWS:
                return
            continue
        stay += min(step.wait.longest, inline_below) + handling
        if stay >= consumer_timeout:
            raise _too_long(where, f"attempts {begun} to {step.attempt + 1}", stay, consumer_timeout)
        if step.attempt - begun >= CHECKED:
            if not _stops(policy, MOST, consumer_timeout, 0.0):
                raise _too_long(where, f"all attempts from {begun} on", math.inf, consumer_timeout)
            return


def _too_long(where: str, what: str, stay: float, limit: float) -> ConfigurationError:
    takes = f"up to {_shown(stay)}" if math.isfinite(stay) else "without end"
    return ConfigurationError(
        f"{where}: with this policy an event stays in the process for {what}, {takes} with its waits and the handler's "
        f"timeout=, and the broker takes a delivery away after {_shown(limit)} (Bus(consumer_timeout=)); lower inline_below= so "
        "that it waits at the broker, or stop earlier"
    )


# --- asking the strategies -------------------------------------------------------------------------------------------


def span(wait: WaitBaseT, state: RetryCallState) -> Span | None:
    """Return what ``wait`` can say; None if it says nothing without a real failure."""
    kind = type(wait)
    if isinstance(wait, wait_combine) and kind is wait_combine:
        parts = [span(each, state) for each in wait.wait_funcs]
        return sum((part for part in parts if part is not None), Span()) if None not in parts else None
    if isinstance(wait, wait_chain) and kind is wait_chain:
        return span(wait.strategies[min(state.attempt_number, len(wait.strategies)) - 1], state)
    if isinstance(wait, wait_random) and kind is wait_random:
        return Span(wait.wait_random_min, wait.wait_random_max)
    if isinstance(wait, wait_random_exponential) and kind is wait_random_exponential:
        return Span(wait.min, wait_exponential.__call__(wait, state))
    if isinstance(wait, wait_exponential_jitter) and kind is wait_exponential_jitter:
        steady = copy.copy(wait)
        steady.jitter = 0.0
        return Span(steady(state), min(steady(state) + wait.jitter, wait.max))
    return _sampled(wait, state)


def _sampled(wait: WaitBaseT, state: RetryCallState) -> Span | None:
    try:
        found = [max(0.0, float(wait(state))) for _ in range(SAMPLES)]
    except Exception:
        # Somebody's strategy that looks at its failure, or at the delivery: here there is neither.
        return None
    return Span(min(found), max(found), sampled=min(found) != max(found))


def _stops(policy: Policy, attempt: int, elapsed: float, wait: float) -> bool:
    state = _state(policy, attempt, elapsed)
    state.upcoming_sleep = wait
    try:
        return bool(policy.stop(state))
    except Exception:
        return False  # as above: it may ask for more than there is


def _state(policy: Policy, attempt: int, elapsed: float) -> RetryCallState:
    return policy.state(attempt, Exception("of a timetable"), elapsed=elapsed, idle=elapsed, delivery=None)


def _step(attempt: int, wait: Span | None, inline_below: float) -> Step:
    if wait is None:
        return Step(attempt, None, "either", Span())
    if wait.longest < inline_below:
        return Step(attempt, wait, "process", wait)
    longest = tier(wait.longest)
    if wait.shortest < inline_below:
        return Step(attempt, wait, "either", Span(wait.shortest, longest, sampled=wait.sampled))
    return Step(attempt, wait, "broker", Span(tier(wait.shortest), longest, sampled=wait.sampled))


def tier(wait: float) -> float:
    """Return how long an event waits at the broker that is to wait ``wait`` seconds: the next waiting queue's time.

    The queues are the core's: half a second apart up to 5 s, then 10 %.
    """
    wanted = math.ceil(timedelta(seconds=bounded(wait)) / timedelta(milliseconds=1))
    if wanted <= 5000:
        return math.ceil(wanted / 500) * 0.5
    ms = 5000
    while ms < wanted:
        ms = ms * 11 // 10
    return ms / 1000


# --- showing ---------------------------------------------------------------------------------------------------------


def _marked(wait: Span | None) -> str:
    if wait is None:
        return "?"
    return f"~ {wait}" if wait.sampled else str(wait)


def _shown(seconds: float) -> str:
    """Return a time as people say it: two units at most."""
    if seconds < 60:
        return f"{round(seconds, 2):g} s"
    left = round(seconds)
    words: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number:
            words.append(f"{number} {unit}")
    return " ".join(words[:2])


SHOWN: Final = 8
"""How many waits are said one by one."""


def described(table: Timetable) -> Iterator[tuple[str, str]]:
    """Yield a policy in lines, each a label and a text, as ``rabbitevents explain`` shows it."""
    for sentence in _sentences(table):
        about = f"{sentence.about}: " if sentence.about else ""
        yield "if it fails", f"{about}{sentence.does}{'' if sentence.table is None else _waits(sentence.table)}"
    queues = list(dict.fromkeys(" to ".join(step.queues) for step in _steps(table) if step.queues))
    if queues:
        yield "waits in", ", ".join(queues[:SHOWN]) + (", ..." if len(queues) > SHOWN else "")


def waits(table: Timetable, inline_below: float) -> Iterator[tuple[timedelta, timedelta]]:
    """Yield the waits of a policy that take place at the broker, from and to. What only a failure says is not known."""
    for step in _steps(table):
        if step.wait is not None and step.place != "process":
            shortest = bounded(max(step.wait.shortest, inline_below))
            yield timedelta(seconds=shortest), timedelta(seconds=max(shortest, bounded(step.wait.longest)))


def _sentences(table: Timetable) -> tuple[Sentence, ...]:
    return table.sentences or (Sentence("", "tried again", table),)


def _steps(table: Timetable) -> Iterator[Step]:
    for sentence in _sentences(table):
        yield from () if sentence.table is None else sentence.table.steps


def _waits(table: Timetable) -> str:
    """Return ", 5 attempts: after 1 s, 4 s, 32 s, 256 s"."""
    waits = [_marked(step.wait) for step in table.steps]
    if not waits:
        return ", never: 1 attempt"
    shown = ", ".join(waits[:SHOWN]) + (", ..." if len(waits) > SHOWN or table.attempts is None else "")
    times = "without end" if table.attempts is None else f"{table.attempts} attempts"
    return f", {times}: after {shown}"

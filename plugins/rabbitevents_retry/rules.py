"""What to do about a failure, as sentences: ``on(ConnectionError).retry(...)``, ``on(Gone).discard()``.

Of a policy's rules the first that fits decides. A group of exceptions (a TaskGroup's in a handler) fits where one of its
members does; to be discarded, all of them must. What nothing can mend (`NEVER`) is tried again by no rule; a rule that
names it may discard it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import attrs
from tenacity import retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random_exponential
from tenacity.stop import StopBaseT
from tenacity.wait import WaitBaseT

from rabbitevents import ConfigurationError, DecodeError, EncodeError
from rabbitevents.arguments import Seconds, kind_of, seconds
from rabbitevents.failures import Fatal, RetryLater, members
from rabbitevents_retry.policy import Policy

E = TypeVar("E", bound=BaseException)

STOP: Final = stop_after_attempt(5)
WAIT: Final = wait_exponential(multiplier=0.5, exp_base=8, max=3600) + wait_random_exponential(
    multiplier=0.25, exp_base=8, max=1800
)
"""The first retry within a second, for what passes at once; then 4, 32 and 256 s, with more attempts an hour, and up to
half as much on top. The jitter grows with the wait: what is spread over less than a waiting queue's step comes back
together."""
RETRY: Final = retry_if_exception_type(BaseException)
"""Every failure, a CancelledError that nobody asked for and groups of such among them."""

NEVER: Final = (Fatal, DecodeError, EncodeError, ConfigurationError)
"""What is never tried again, whatever the policy says: it would fail in the same way."""


@attrs.frozen
class Postponement:
    """Handle it later, which is no attempt: ``after`` the failure says how long, in seconds."""

    after: Callable[[Any], Seconds]

    def __str__(self) -> str:
        return "postponed, which is no attempt"


@attrs.frozen
class DeadLettering:
    """Give it up at once."""

    def __str__(self) -> str:
        return "given up at once"


@attrs.frozen
class Discarding:
    """Acknowledge it, and have it said and counted."""

    def __str__(self) -> str:
        return "discarded"


Action = Policy | Postponement | DeadLettering | Discarding
"""What is done: tried again by a policy of tenacity's strategies, or one of the others."""


@attrs.frozen
class Rule:
    """What is done about which failures; ``kinds`` are none for all others."""

    kinds: tuple[type[BaseException], ...]
    action: Action

    def __str__(self) -> str:
        return f"on {', '.join(kind.__name__ for kind in self.kinds)}" if self.kinds else "otherwise"

    def fits(self, failed: Sequence[BaseException]) -> bool:
        """Say whether the rule is for a failure, given all that failed together."""
        if not self.kinds:
            return True
        fitting = [isinstance(each, self.kinds) for each in failed]
        return all(fitting) if isinstance(self.action, Discarding) else any(fitting)

    @property
    def names_what_is_final(self) -> bool:
        """Whether it is about failures that are never tried again."""
        return any(issubclass(kind, NEVER) for kind in self.kinds)


class On(Generic[E]):
    """The beginning of a rule. Each of its methods ends it; see `on` and `otherwise`."""

    def __init__(self, kinds: tuple[type[E], ...]) -> None:
        self._kinds: tuple[type[BaseException], ...] = kinds

    def retry(self, *, stop: StopBaseT = STOP, wait: WaitBaseT = WAIT) -> Rule:
        """Try again, by tenacity's strategies.

        :param stop: When to give up: 5 attempts. Attempts are those of the event, whatever they failed with.
        :param wait: How long to wait: about 1 s, then 4, 32 and 256 s, with up to half as much on top by chance.
        """
        final = next((kind for kind in self._kinds if issubclass(kind, NEVER)), None)
        if final is not None:
            raise ConfigurationError(
                f"on({final.__name__}).retry(): it is never tried again, as it would fail in the same way"
            )
        return Rule(self._kinds, Policy(stop, wait, RETRY))

    def postpone(self, after: Seconds | Callable[[E], Seconds]) -> Rule:
        """Handle it later, which is no attempt: as often as it fails so.

        :param after: How long: seconds, a timedelta, or a function of the exception that says it.
        """
        if callable(after):
            return Rule(self._kinds, Postponement(after))
        wait = seconds("postpone: after", after)
        return Rule(self._kinds, Postponement(lambda _: wait))

    def dead_letter(self) -> Rule:
        """Give it up at once: `DeadLetter` takes it."""
        return Rule(self._kinds, DeadLettering())

    def discard(self) -> Rule:
        """Take it as done: said in the log at INFO, counted, and gone."""
        return Rule(self._kinds, Discarding())


def on(*kinds: type[E]) -> On[E]:
    """Begin a rule about failures of these classes: ``on(TimeoutError, ConnectionError).retry(...)``.

    :param kinds: Classes of exceptions, their subclasses included.
    """
    if not kinds:
        raise ConfigurationError("on() needs the exceptions that the rule is for: on(ConnectionError)")
    for kind in kinds:
        given: Any = kind
        if not isinstance(given, type) or not issubclass(given, BaseException):
            raise ConfigurationError(
                f"on(...) has {kind_of(kind)} in it: it takes classes of exceptions, as in on(OSError)"
            )
    return On(kinds)


otherwise: Final[On[BaseException]] = On(())
"""Begins the rule about all failures that no other rule is for; the last one of a policy."""


class Rules:
    """A policy's rules, in order; the last one is for everything. Raises `ConfigurationError`."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        _check(rules)
        last = [] if rules and not rules[-1].kinds else [otherwise.retry()]
        self.rules: tuple[Rule, ...] = (*rules, *last)

    @property
    def policies(self) -> list[Policy]:
        """What is tried again, and how."""
        return [rule.action for rule in self.rules if isinstance(rule.action, Policy)]

    def action(self, error: BaseException, *, lost: bool) -> Action:
        """Return what is done about a failure; with ``lost``, the event cannot come back."""
        failed = list(members(error))
        final = lost or any(isinstance(each, NEVER) for each in failed)
        for rule in self.rules:
            if rule.fits(failed) and (not final or rule.names_what_is_final):
                found = rule.action
                break
        else:
            return DeadLettering()
        if not final and not isinstance(found, Policy) and any(isinstance(each, RetryLater) for each in failed):
            return self.policies[-1] if self.policies else Policy(STOP, WAIT, RETRY)
        return found if not lost or isinstance(found, (DeadLettering, Discarding)) else DeadLettering()


def _check(rules: Sequence[object]) -> None:
    known: list[type[BaseException]] = []
    for place, rule in enumerate(rules):
        if isinstance(rule, On):
            raise ConfigurationError(
                "Retry(...): on(...) alone says nothing: go on with .retry(), .postpone(), .dead_letter() or .discard()"
            )
        if not isinstance(rule, Rule):
            raise ConfigurationError(
                f"Retry(...) has {kind_of(rule)} in it: it takes rules, such as on(ConnectionError).retry(), or stop=, wait= and retry="
            )
        if not rule.kinds and place < len(rules) - 1:
            raise ConfigurationError(
                "Retry(...): what stands after otherwise is never reached: let it be the last rule"
            )
        hidden = [kind.__name__ for kind in rule.kinds if issubclass(kind, tuple(known))]
        if hidden and len(hidden) == len(rule.kinds):
            raise ConfigurationError(
                f"Retry(...): the rule {rule} is never reached, as one before it is for {', '.join(hidden)} too"
            )
        known += rule.kinds

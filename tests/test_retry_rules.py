"""What to do about a failure, as sentences: the first rule that fits decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import attrs
import pytest
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, ConfigurationError, DecodeError, Delivery, Fact, Plugin, Router, event, facts
from rabbitevents.testing import Probe, running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Fatal, Retry, RetryLater, Rule, on, otherwise
from rabbitevents_retry import plugin as retrying


@event("payment.due")
@attrs.frozen
class PaymentDue:
    number: int


class ThrottledError(Exception):
    def __init__(self, after: float) -> None:
        super().__init__("too many")
        self.after = after


class GoneError(LookupError):
    pass


class Noting(Plugin):
    """Notes the facts that concern a failure."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, (facts.Retried, facts.Postponed, facts.Discarded, facts.DeadLettered)):
            self.facts.append(fact)

    @property
    def kinds(self) -> list[str]:
        return [type(fact).__name__ for fact in self.facts]


class Failing:
    """A handler that raises one after the other, then succeeds; and the attempts that it saw."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.attempts: list[int] = []
        self.router = Router("till")
        self.router.on(PaymentDue, name="collect")(self.collect)
        self.noting = Noting()

    async def collect(self, payment: PaymentDue, delivery: Delivery) -> None:
        self.attempts.append(delivery.attempt)
        if self.errors:
            raise self.errors.pop(0)

    async def under(self, retry: Retry, *, after: timedelta = timedelta(hours=3)) -> Probe:
        """Publish one event, and let time pass."""
        bus = Bus("memory://", self.router, plugins=[self.noting, DeadLetter(), retry])
        async with running(bus) as probe:
            await probe.bus.publish(PaymentDue(1))
            await probe.settled()
            await probe.advance(after)
            self.dead = probe.waiting("till.collect.dead")
            return probe


POLICY = (
    on(TimeoutError, ConnectionError).retry(stop=stop_after_attempt(3), wait=wait_fixed(60)),
    on(ThrottledError).postpone(lambda error: error.after),
    on(ValueError).dead_letter(),
    on(GoneError).discard(),
    otherwise.retry(stop=stop_after_attempt(2), wait=wait_fixed(5)),
)


@pytest.mark.parametrize(
    ("errors", "attempts", "kinds", "dead"),
    [
        ([ConnectionError()] * 5, [1, 2, 3], ["Retried", "Retried", "DeadLettered"], 1),
        ([ConnectionResetError(), TimeoutError()], [1, 2, 3], ["Retried", "Retried"], 0),
        ([ValueError()], [1], ["DeadLettered"], 1),
        ([UnicodeError()], [1], ["DeadLettered"], 1),
        ([GoneError()], [1], ["Discarded"], 0),
        ([LookupError()] * 3, [1, 2], ["Retried", "DeadLettered"], 1),
        ([ThrottledError(30)] * 4, [1, 1, 1, 1, 1], ["Postponed"] * 4, 0),
        ([ThrottledError(0.01)] * 4, [1, 1, 1, 1, 1], ["Postponed"] * 4, 0),
        (
            [ConnectionError(), ThrottledError(30), ConnectionError()],
            [1, 2, 2, 3],
            ["Retried", "Postponed", "Retried"],
            0,
        ),
        ([ConnectionError(), ValueError()], [1, 2], ["Retried", "DeadLettered"], 1),
        ([Fatal()], [1], ["DeadLettered"], 1),
        ([ConfigurationError()], [1], ["DeadLettered"], 1),
        ([ExceptionGroup("two", [KeyError(), ConnectionError()])], [1, 2], ["Retried"], 0),
        ([ExceptionGroup("two", [GoneError(), ExceptionGroup("one", [GoneError()])])], [1], ["Discarded"], 0),
        ([ExceptionGroup("two", [GoneError(), KeyError()])] * 2, [1, 2], ["Retried", "DeadLettered"], 1),
        ([ExceptionGroup("two", [ConnectionError(), Fatal()])], [1], ["DeadLettered"], 1),
        ([RetryLater(120)], [1, 2], ["Retried"], 0),
    ],
    ids=str,
)
async def test_the_first_rule_that_fits_decides(
    errors: list[BaseException], attempts: list[int], kinds: list[str], dead: int
) -> None:
    failing = Failing(*errors)

    await failing.under(Retry(*POLICY))

    assert failing.attempts == attempts
    assert failing.noting.kinds == kinds
    assert failing.dead == dead


async def test_what_no_rule_is_for_is_tried_again_by_the_default_policy() -> None:
    failing = Failing(*[OSError()] * 9)

    await failing.under(Retry(on(GoneError).discard()))

    assert failing.attempts == [1, 2, 3, 4, 5]
    assert failing.dead == 1


async def test_what_cannot_be_read_may_be_discarded_by_its_name() -> None:
    failing = Failing(DecodeError("no"), DecodeError("no"))

    await failing.under(Retry(on(DecodeError).discard(), otherwise.retry()))

    assert failing.attempts == [1]
    assert failing.noting.kinds == ["Discarded"]


async def test_a_rule_about_everything_does_not_discard_what_is_final() -> None:
    failing = Failing(Fatal())

    await failing.under(Retry(otherwise.discard()))

    assert failing.noting.kinds == ["DeadLettered"]


async def test_a_discarded_event_is_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing(GoneError("4111"))

    with caplog.at_level(logging.INFO, "rabbitevents.retry"):
        await failing.under(Retry(on(GoneError).discard()))

    assert "failed with GoneError at attempt 1 and is discarded" in caplog.text
    assert "4111" not in caplog.text
    (fact,) = failing.noting.facts
    assert isinstance(fact, facts.Discarded)
    assert (fact.subscription, fact.attempt, fact.error) == ("till.collect", 1, "GoneError")


async def test_a_postponement_may_be_a_fixed_time() -> None:
    failing = Failing(ThrottledError(0))

    await failing.under(Retry(on(ThrottledError).postpone(timedelta(minutes=1))), after=timedelta(seconds=50))

    assert failing.attempts == [1]
    (fact,) = failing.noting.facts
    assert isinstance(fact, facts.Postponed)
    assert (fact.after, fact.inline) == (60.0, False)


async def test_a_postponement_that_is_no_time_goes_to_the_dead_letters_with_its_error() -> None:
    failing = Failing(ThrottledError("soon"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    await failing.under(Retry(on(ThrottledError).postpone(lambda error: error.after)))

    assert failing.noting.kinds == ["DeadLettered"]


# --- what is told when it is given up on -------------------------------------------------------------------------------


async def tell_slowly(told: list[Any], error: BaseException) -> None:
    await asyncio.sleep(0)
    told.append(error)


@pytest.mark.parametrize("how", ["plain", "async"])
@pytest.mark.parametrize("errors", [[ConnectionError()] * 9, [Fatal()], [ValueError()]], ids=["stop", "fatal", "rule"])
async def test_who_asked_is_told_once_with_the_exception(how: str, errors: list[BaseException]) -> None:
    told: list[BaseException] = []
    last = errors[0]

    def plainly(delivery: Delivery, error: BaseException) -> None:
        told.append(error)

    async def slowly(delivery: Delivery, error: BaseException) -> None:
        await tell_slowly(told, error)

    exhausted: Callable[[Delivery, BaseException], Awaitable[object] | None] = plainly if how == "plain" else slowly
    await Failing(*errors).under(Retry(*POLICY, exhausted=exhausted))

    assert told == [last]


async def test_it_is_told_once_though_the_core_holds_the_event_and_tries_again() -> None:
    told: list[BaseException] = []
    failing = Failing(*[ValueError()] * 3)
    retry = Retry(*POLICY, exhausted=lambda delivery, error: told.append(error))

    async with running(Bus("memory://", failing.router, plugins=[retry])) as probe:
        await probe.bus.publish(PaymentDue(1))
        async with asyncio.timeout(10):
            while len(failing.attempts) < 3:  # noqa: ASYNC110 - the core's own pauses, 1 s and 2 s
                await asyncio.sleep(0.01)

    assert len(told) == 1


async def test_a_discarded_event_is_not_given_up_on() -> None:
    told: list[BaseException] = []

    await Failing(GoneError()).under(Retry(*POLICY, exhausted=lambda delivery, error: told.append(error)))

    assert told == []


async def test_what_it_raises_is_logged_and_the_event_is_given_up_on_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def alarm(delivery: Delivery, error: BaseException) -> None:
        raise OSError("no line")

    failing = Failing(ValueError())

    await failing.under(Retry(*POLICY, exhausted=alarm))

    assert failing.dead == 1
    assert "exhausted=alarm failed for payment.due" in caplog.text


async def test_what_takes_too_long_is_not_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "EXHAUSTED_TIMEOUT", 0.05)

    async def hang(delivery: Delivery, error: BaseException) -> None:
        await asyncio.Event().wait()

    failing = Failing(ValueError())

    await failing.under(Retry(*POLICY, exhausted=hang))

    assert failing.dead == 1
    assert "exhausted=hang failed" in caplog.text


# --- what is shown, and what cannot be meant ---------------------------------------------------------------------------


def test_the_timetable_shows_the_whole_policy() -> None:
    assert str(Retry(*POLICY).timetable()) == (
        "on TimeoutError, ConnectionError:\n"
        "attempt  then waits  where\n"
        "1        1 min       at the broker (delay.65514)\n"
        "2        1 min       at the broker (delay.65514)\n"
        "3                    given up after 2 min 11 s\n"
        "\n"
        "on ThrottledError: postponed, which is no attempt\n"
        "\n"
        "on ValueError: given up at once\n"
        "\n"
        "on GoneError: discarded\n"
        "\n"
        "otherwise:\n"
        "attempt  then waits  where\n"
        "1        5 s         at the broker (delay.5000)\n"
        "2                    given up after 5 s"
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(on), "on() needs the exceptions that the rule is for"),
        (lambda: on(OSError()), "on(...) has an OSError in it: it takes classes of exceptions"),  # type: ignore[arg-type]  # pyright: ignore
        (lambda: on(int), "on(...) has the class int in it"),  # type: ignore[type-var]  # pyright: ignore
        (lambda: on(Fatal).retry(), "on(Fatal).retry(): it is never tried again"),
        (lambda: on(OSError).retry(stop=5), "Retry: stop is an int: it takes a strategy"),  # type: ignore[arg-type]  # pyright: ignore
        (lambda: on(OSError).postpone("5"), "postpone: after='5' is text: say 5"),  # type: ignore[arg-type]  # pyright: ignore
        (lambda: Retry(on(OSError)), "on(...) alone says nothing: go on with .retry()"),  # type: ignore[arg-type]  # pyright: ignore
        (lambda: Retry(OSError), "Retry(...) has the class OSError in it: it takes rules"),  # type: ignore[arg-type]  # pyright: ignore
        (lambda: Retry(otherwise.retry(), on(OSError).discard()), "what stands after otherwise is never reached"),
        (
            lambda: Retry(on(OSError).retry(), on(ConnectionError).discard()),
            "the rule on ConnectionError is never reached, as one before it is for ConnectionError too",
        ),
        (lambda: Retry(on(OSError).retry(), stop=stop_after_attempt(2)), "say two things: write otherwise.retry(...)"),
        (lambda: Retry(exhausted="sentry"), "Retry: exhausted is text: say a function"),  # type: ignore[arg-type]  # pyright: ignore
    ],
)
def test_a_sentence_that_cannot_be_meant_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        make()

    assert said in str(refused.value)


def test_a_rule_says_what_it_is() -> None:
    rule: Rule = on(TimeoutError, GoneError).discard()

    assert str(rule) == "on TimeoutError, GoneError"

"""What is written wrong of a process is said where it is written, or when the bus starts, with the way out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from attrs import define, frozen

from rabbitevents import Bus, ConfigurationError, Event, event
from rabbitevents_process import DONE, Process, ProcessTables, Step, Timeout
from tests.ordering import CardCharged, Fulfilment, OrderPlaced, fulfilling

anyhow: Any = Process


@event("thing.happened")
@frozen
class WithoutKey:
    thing: str


@define
class Unknown:
    """A state that no document can say."""

    function: Callable[[], None]


def process(**told: Any) -> Process:
    made: Process = anyhow("fulfilment", Fulfilment, **{"key": "order_id", **told})
    return made


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"key": 5}, "Process: key=5: say the attribute"),
        ({"version": 0}, "Process: version=0: say a whole number, 1 or more"),
        ({"missing": "never"}, "Process: missing='never': say 'retry' or 'ignore'"),
        ({"restart": "yes"}, "Process: restart is text: say True or False"),
        ({"keep": -1}, "Process: keep"),
        ({"keep": "30 days"}, "Process: keep is text"),
        ({"tables": "messaging"}, r"Process: tables is text: say ProcessTables\(schema='messaging'\)"),
    ],
)
def test_what_a_process_cannot_be_told_is_refused(told: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        process(**told)


@pytest.mark.parametrize("state", ["Fulfilment", None, 5, Fulfilment("42"), [Fulfilment]])
def test_a_state_is_a_class(state: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Process: state.*say the class of the state, or several as A"):
        anyhow("fulfilment", state, key="order_id")


def test_a_name_has_no_blanks() -> None:
    with pytest.raises(ConfigurationError, match="the router's name"):
        anyhow("my process", Fulfilment, key="order_id")


async def test_a_state_that_no_document_can_say_is_said_at_start() -> None:
    made = Process("fulfilment", Unknown, key="order_id")

    @made.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        return Step(DONE)

    with pytest.raises(ConfigurationError, match="function"):
        async with Bus("memory://", made):
            pass


# --- functions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("register", "told", "options", "said"),
    [
        ("on", ["order.*"], {}, r"on\('order\.\*'\): a process is for event classes"),
        ("starts", [Fulfilment], {}, r"on\(Fulfilment\): not an event class; put @event"),
        ("on", [], {}, "needs the event classes"),
        ("on", [WithoutKey], {}, "WithoutKey has no 'order_id' to be its key .it has thing.; .*as a function"),
        ("on", [CardCharged], {"concurrency": 5}, r"on\(..., concurrency=...\): a process has one queue: say concur"),
        ("timeout", [""], {}, "fulfilment.timeout: name is blank"),
        ("timeout", [5], {}, "fulfilment.timeout: name=5"),
        ("upcast", [], {"from_version": 1}, "process 'fulfilment' is version 1: no step leads on from version 1"),
    ],
)
def test_what_nothing_can_be_registered_for_is_refused(
    register: str, told: list[Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        getattr(process(), register)(*told, **options)


def takes_nothing_known(card: CardCharged, other: int) -> Step:
    return Step(DONE)


def says_nothing(card: Any, state: Any) -> Step:
    return Step(DONE)


says_nothing.__annotations__.clear()


def takes_all(*args: Any) -> Step:
    return Step(DONE)


def takes_state(order: OrderPlaced, state: Fulfilment) -> Step:
    return Step(DONE)


def takes_an_event(card: CardCharged) -> Step:
    return Step(DONE)


def takes_another(order: OrderPlaced) -> Step:
    return Step(DONE)


def takes_another_envelope(order: Event[OrderPlaced]) -> Step:
    return Step(DONE)


@pytest.mark.parametrize(
    ("register", "function", "said"),
    [
        ("on", takes_nothing_known, "takes_nothing_known: nobody can serve its parameter 'other'; it may ask"),
        ("on", says_nothing, "says_nothing: nobody can serve its parameter 'card'"),
        ("on", takes_all, "takes_all: nobody can serve its parameter 'args'"),
        ("on", takes_another, "takes_another: nobody can serve its parameter 'order'"),
        ("on", takes_another_envelope, "takes_another_envelope: nobody can serve its parameter 'order'"),
        ("starts", takes_state, "takes_state: nobody can serve its parameter 'state'.*it has no state yet"),
        ("timeout", takes_an_event, "takes_an_event: nobody can serve its parameter 'card'.*it has no event"),
    ],
)
def test_what_a_function_cannot_ask_for_is_said(register: str, function: Any, said: str) -> None:
    made = process()
    told: Any = {"on": CardCharged, "starts": OrderPlaced, "timeout": "unpaid"}[register]

    with pytest.raises(ConfigurationError, match=said):
        getattr(made, register)(told)(function)


def test_each_event_and_timeout_has_one_function() -> None:
    made = fulfilling()

    with pytest.raises(ConfigurationError, match="process 'fulfilment': progress is for CardCharged already"):

        @made.on(CardCharged)
        def again(card: CardCharged) -> Step:
            return Step(DONE)

    with pytest.raises(ConfigurationError, match="give_up is for the timeout 'unpaid' already"):

        @made.timeout("unpaid")
        def also() -> Step:
            return Step(DONE)


def test_an_event_may_both_start_and_go_on() -> None:
    made = process()

    @made.starts(OrderPlaced)
    @made.on(OrderPlaced)
    def both(order: OrderPlaced) -> Step:
        return Step(DONE)

    assert len(made.subscriptions()) == 1


async def test_a_process_that_nothing_starts_is_said_at_start() -> None:
    made = process()

    @made.on(CardCharged)
    def pay(card: CardCharged) -> Step:
        return Step(DONE)

    with pytest.raises(
        ConfigurationError, match=r"process 'fulfilment' is started by nothing: write @fulfilment\.starts"
    ):
        async with Bus("memory://", made):
            pass


def test_what_is_registered_after_the_start_is_refused() -> None:
    made = fulfilling()
    made.freeze()

    with pytest.raises(ConfigurationError, match="in use by a bus that has started"):

        @made.timeout("late")
        def late() -> Step:
            return Step(DONE)


@pytest.mark.parametrize(
    ("version", "steps", "said"),
    [
        (2, (), r"is version 2, and nothing leads from version 1: write @fulfilment.upcast\(from_version=1\)"),
        (4, (1, 3), r"is version 4, and nothing leads from version 2"),
        (3, (1,), r"is version 3, and nothing leads from version 2"),
    ],
)
def test_a_step_between_versions_that_is_missing_is_said_at_start(
    version: int, steps: tuple[int, ...], said: str
) -> None:
    made = fulfilling(version=version)
    for each in steps:
        made.upcast(from_version=each)(dict)

    with pytest.raises(ConfigurationError, match=said):
        made.subscriptions()


def test_steps_from_versions_that_are_long_gone_may_be_left_out() -> None:
    made = fulfilling(version=4)
    made.upcast(from_version=3)(dict)

    assert made.plot.documents.version == 4


def test_a_second_step_from_one_version_is_refused() -> None:
    made = fulfilling(version=2)
    made.upcast(from_version=1)(dict)

    with pytest.raises(ConfigurationError, match="has a step from version 1 already"):
        made.upcast(from_version=1)(dict)


# --- steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Timeout("", 5), "Timeout: name is blank"),
        (lambda: Timeout("unpaid", -5), "Timeout: after=-5"),
        (lambda: Timeout("unpaid", float("nan")), "Timeout: after"),
        (
            lambda: Step(DONE, timeout=Timeout("unpaid", 5)),
            r"Step\(DONE, timeout=...\): what has ended waits for nothing",
        ),
        (lambda: Step(5, timeout=[Timeout("a", 5), Timeout("a", 6)]), "says twice what becomes of the timeout 'a'"),
        (lambda: Step(5, timeout=Timeout("a", 5), clear="a"), "says twice what becomes of the timeout 'a'"),
    ],
)
def test_a_step_that_cannot_be_meant_is_refused(made: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        made()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"timeout": "unpaid"}, "Step: timeout is text: it takes a list, such as Timeout"),
        ({"timeout": ["unpaid"]}, "Step: timeout has text in it"),
        ({"clear": 5}, "Step: clear=5: it takes a list"),
    ],
)
def test_what_a_step_cannot_be_told_is_refused(told: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Step(5, **told)


def test_a_step_is_a_value() -> None:
    waits = Timeout("unpaid", timedelta(minutes=1))

    assert Step(Fulfilment("42"), timeout=[waits]) == Step(Fulfilment("42"), timeout=Timeout("unpaid", 60))
    assert Step(Fulfilment("42")) != Step(DONE)
    assert repr(Step(DONE, clear="unpaid")) == "Step(state=DONE, events=(), timeouts=(), cleared=('unpaid',))"


def test_names_of_tables_are_texts() -> None:
    with pytest.raises(ConfigurationError, match="ProcessTables: schema is blank"):
        ProcessTables(schema=" ")

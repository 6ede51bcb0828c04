"""Given, when, then: a process and a decision are tried without anything, and a difference is seen at a glance."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve, frozen
from sqlalchemy.ext.asyncio import AsyncSession

from rabbitevents import ConfigurationError, EncodeError, event
from rabbitevents_process import DONE, NoSuchProcessError, Process, Step, Timeout
from rabbitevents_process.testing import given
from tests.ordering import (
    HALF_AN_HOUR,
    CardCharged,
    ChargeCard,
    Fulfilment,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    RemindCustomer,
    StockReserved,
    fulfilling,
)

WAITS = [Timeout("unpaid", HALF_AN_HOUR), Timeout("reminder", HALF_AN_HOUR / 3)]


# --- processes -----------------------------------------------------------------------------------------------------


def test_a_whole_story_is_told_step_by_step() -> None:
    begun = given(fulfilling()).when(OrderPlaced("42")).then(Fulfilment("42"), ChargeCard("42"), timeout=WAITS)
    reserved = begun.when(StockReserved("42")).then(Fulfilment("42", reserved=True))
    ended = reserved.when(CardCharged("42")).then(DONE, OrderConfirmed("42"))

    ended.when(CardCharged("42")).ignored()
    ended.when(timeout="unpaid").ignored()


def test_a_step_may_be_expected_as_a_whole() -> None:
    paid = Step(Fulfilment("42", paid=True), clear=["unpaid", "reminder"])

    given(fulfilling(), Fulfilment("42")).when(CardCharged("42")).then(paid)


def test_what_came_before_may_be_a_state_or_events() -> None:
    process = fulfilling()

    by_state = given(process, Fulfilment("42", reserved=True)).when(CardCharged("42"))
    by_events = given(process, OrderPlaced("42"), StockReserved("42")).when(CardCharged("42"))

    by_state.then(DONE, OrderConfirmed("42"))
    by_events.then(DONE, OrderConfirmed("42"))


def test_a_timeout_that_is_waited_for_comes() -> None:
    begun = given(fulfilling(), OrderPlaced("42"))

    begun.when(timeout="unpaid").then(DONE, OrderCancelled("42"))
    reminded = begun.when(timeout="reminder").then(
        Fulfilment("42", reminders=1), RemindCustomer("42"), timeout=Timeout("reminder", HALF_AN_HOUR / 3)
    )
    reminded.when(timeout="reminder").then(
        Fulfilment("42", reminders=2), RemindCustomer("42"), timeout=Timeout("reminder", HALF_AN_HOUR / 3)
    )


def test_a_timeout_that_was_cleared_or_never_set_is_ignored() -> None:
    given(fulfilling(), OrderPlaced("42"), CardCharged("42")).when(timeout="unpaid").ignored()
    given(fulfilling()).when(timeout="unpaid").ignored()
    given(fulfilling(), DONE).when(timeout="unpaid").ignored()


def test_a_timeout_that_has_come_is_waited_for_no_more() -> None:
    process = Process("fulfilment", Fulfilment, key="order_id")

    @process.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        return Step(Fulfilment(order.order_id), timeout=Timeout("reminder", 60))

    @process.timeout("reminder")
    def remind(state: Fulfilment) -> Step:
        return Step(state, RemindCustomer(state.order_id))

    reminded = given(process, OrderPlaced("42")).when(timeout="reminder").then(Fulfilment("42"), RemindCustomer("42"))
    reminded.when(timeout="reminder").ignored()


def test_an_event_for_what_is_not_there_raises() -> None:
    given(fulfilling()).when(CardCharged("42")).raises(NoSuchProcessError, "no process fulfilment 42")
    given(fulfilling(), OrderPlaced("42")).when(CardCharged("43")).raises(NoSuchProcessError, "fulfilment 43")
    given(fulfilling(missing="ignore")).when(CardCharged("42")).ignored()


def test_an_ended_process_begins_again_where_that_is_said() -> None:
    given(fulfilling(restart=True), DONE).when(OrderPlaced("42")).then(
        Fulfilment("42"), ChargeCard("42"), timeout=WAITS
    )
    given(fulfilling(), DONE).when(OrderPlaced("42")).ignored()


def test_what_a_function_raises_is_what_came() -> None:
    process = Process("fulfilment", Fulfilment, key="order_id")

    @process.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        raise ValueError("there is no such order")

    given(process).when(OrderPlaced("42")).raises(ValueError, "no such")
    with pytest.raises(AssertionError, match="it raised ValueError: there is no such order\nexpected:\nFulfilment"):
        given(process).when(OrderPlaced("42")).then(Fulfilment("42"))


async def test_a_coroutine_function_that_waits_for_nothing_is_tried_too() -> None:
    """Inside of a running event loop as well."""
    process = Process("fulfilment", Fulfilment, key="order_id")

    @process.starts(OrderPlaced)
    async def begin(order: OrderPlaced) -> Step:
        return Step(Fulfilment(order.order_id))

    given(process).when(OrderPlaced("42")).then(Fulfilment("42"))


def test_what_needs_a_database_or_an_event_loop_says_so() -> None:
    process = Process("fulfilment", Fulfilment, key="order_id")

    @process.starts(OrderPlaced)
    async def begin(order: OrderPlaced) -> Step:
        await asyncio.sleep(0)
        return Step(DONE)

    @process.on(CardCharged)
    async def pay(card: CardCharged, session: AsyncSession) -> Step:
        return Step(DONE)

    given(process).when(OrderPlaced("42")).raises(ConfigurationError, "begin waits for something.*testing.running")
    given(process, Fulfilment("42")).when(CardCharged("42")).raises(ConfigurationError, "pay asks for a session")


# --- what a difference looks like --------------------------------------------------------------------------------------


def test_a_difference_is_shown_field_by_field() -> None:
    outcome = given(fulfilling()).when(OrderPlaced("42"))

    with pytest.raises(AssertionError) as failed:
        outcome.then(Fulfilment("42", paid=True), ChargeCard("43"), timeout=Timeout("unpaid", timedelta(minutes=5)))

    assert str(failed.value) == (
        "when(OrderPlaced(order_id='42')):\n"
        "--- expected\n"
        "+++ came\n"
        " Fulfilment(\n"
        "     order_id='42'\n"
        "-    paid=True\n"
        "+    paid=False\n"
        "     reserved=False\n"
        "     reminders=0\n"
        " )\n"
        " ChargeCard(\n"
        "-    order_id='43'\n"
        "+    order_id='42'\n"
        " )\n"
        "-timeout 'unpaid' after 0:05:00\n"
        "+timeout 'reminder' after 0:10:00\n"
        "+timeout 'unpaid' after 0:30:00"
    )


@pytest.mark.parametrize(
    ("kind", "match", "said"),
    [
        (ValueError, "", r"was to raise ValueError:\nit raised NoSuchProcessError"),
        (NoSuchProcessError, "blue", "its text has no 'blue' in it"),
    ],
)
def test_another_failure_than_expected_is_said(kind: type[Exception], match: str, said: str) -> None:
    outcome = given(fulfilling()).when(CardCharged("42"))

    with pytest.raises(AssertionError, match=said):
        outcome.raises(kind, match)


def test_a_step_that_was_to_be_none_is_shown() -> None:
    with pytest.raises(AssertionError, match=r"was to be ignored:\nwhat came:\nFulfilment\("):
        given(fulfilling()).when(OrderPlaced("42")).ignored()
    with pytest.raises(AssertionError, match=r"it was ignored: the process has ended\nexpected:\nDONE"):
        given(fulfilling(), DONE).when(CardCharged("42")).then(DONE)
    with pytest.raises(AssertionError, match=r"was to raise ValueError:\nit was ignored: nobody waits"):
        given(fulfilling()).when(timeout="unpaid").raises(ValueError)


# --- what would fail later, fails here ---------------------------------------------------------------------------------


def test_a_state_that_would_not_come_back_fails() -> None:
    process = Process("fulfilment", Fulfilment, key="order_id")

    @process.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        wrong: Any = order
        return Step(Fulfilment(wrong))

    given(process).when(OrderPlaced("42")).raises(EncodeError, "process fulfilment 42: its new state cannot be kept")


@frozen
class NoEvent:
    order_id: str


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (None, "begin returned NoneType: return Step"),
        (Fulfilment("42"), "begin returned Fulfilment: return Step"),
        (Step("42"), "process fulfilment 42: its new state is text: it is to be Fulfilment, or DONE"),
        (Step(None), "process fulfilment 42: its new state is None: it is to be Fulfilment, or DONE"),
        (Step(DONE, NoEvent("42")), "NoEvent"),
        (
            Step(Fulfilment("42"), timeout=Timeout("unpayed", 5)),
            r"begin names the timeout 'unpayed'.*there is 'unpaid'",
        ),
        (Step(Fulfilment("42"), clear="unpayed"), r"begin names the timeout 'unpayed'.*there is 'unpaid'"),
    ],
    ids=["nothing", "a state", "a text", "no state", "no event", "a timeout", "a cleared one"],
)
def test_a_step_that_cannot_be_meant_fails(step: Step, said: str) -> None:
    process = Process("fulfilment", Fulfilment, key="order_id")

    @process.starts(OrderPlaced)
    def begin(order: OrderPlaced) -> Step:
        return step

    @process.timeout("unpaid")
    def give_up() -> Step:
        return Step(DONE)

    given(process).when(OrderPlaced("42")).raises(ConfigurationError, said)


anyhow: Any = given


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: anyhow("text"), "given: subject is text: say a Process, or a list"),
        (lambda: given(fulfilling()).when(), "say an event, or timeout="),
        (lambda: given(fulfilling()).when(OrderPlaced("1"), timeout="unpaid"), "say an event, or timeout="),
        (lambda: given(fulfilling()).when(timeout="unpayed"), "no function is for it; there is 'unpaid', 'reminder'"),
        (lambda: anyhow([], 5, 0), "given: apply=5"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: object, said: str) -> None:
    assert callable(wrong)
    with pytest.raises(ConfigurationError, match=said):
        wrong()


# --- decisions -----------------------------------------------------------------------------------------------------


@event("order.paid")
@frozen
class OrderPaid:
    amount: int


@frozen
class Order:
    price: int = 100
    paid: int = 0

    def pay(self, *amounts: int) -> list[OrderPaid]:
        if self.paid + sum(amounts) > self.price:
            raise ValueError("that is more than it costs")
        return [OrderPaid(amount) for amount in amounts]


def apply(order: Order, happened: OrderPaid) -> Order:
    return evolve(order, paid=order.paid + happened.amount)


def test_a_decision_is_what_follows_from_the_past() -> None:
    given([OrderPaid(30)], apply, Order()).when(lambda order: order.pay(50, 20)).then(OrderPaid(50), OrderPaid(20))


def test_a_decision_becomes_part_of_the_past() -> None:
    paid = given([], apply=apply, initial=Order()).when(lambda order: OrderPaid(order.price)).then(OrderPaid(100))

    assert paid.state == Order(paid=100)
    paid.when(lambda order: order.pay(1)).raises(ValueError, "more than it costs")


def test_a_decision_to_do_nothing_is_none() -> None:
    given([OrderPaid(30)], apply, Order()).when(lambda order: None).then()


def test_another_decision_than_expected_is_shown() -> None:
    decided = given([OrderPaid(30)], apply, Order()).when(lambda order: order.pay(50))

    with pytest.raises(AssertionError) as failed:
        decided.then(OrderPaid(51))
    with pytest.raises(AssertionError, match=r"the decision was to raise ValueError:\nwhat came:\nOrderPaid"):
        decided.raises(ValueError)
    with pytest.raises(AssertionError, match=r"it raised ValueError: that is more.*\nexpected:\nOrderPaid"):
        given([], apply, Order()).when(lambda order: order.pay(500)).then(OrderPaid(500))

    assert str(failed.value) == (
        "the decision:\n--- expected\n+++ came\n OrderPaid(\n-    amount=51\n+    amount=50\n )"
    )


def test_a_decision_for_what_is_no_event_fails() -> None:
    given([], apply, Order()).when(lambda order: order).raises(ConfigurationError, "Order")

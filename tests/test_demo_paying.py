"""The demonstration with a store waits for its payments: what is paid, what is given up, and what is paid after that."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from tenacity import wait_fixed

from rabbitevents import Bus
from rabbitevents.demo import services
from rabbitevents.demo.orders import make_orders
from rabbitevents.demo.report import closing
from rabbitevents.demo.run import Result, run
from rabbitevents.demo.services import EXCHANGE
from rabbitevents.demo.settings import Settings
from rabbitevents.demo.shop import paying
from rabbitevents.demo.shop.events import (
    InventoryReserved,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentDeclined,
    PaymentOverdue,
    PaymentProcessed,
    RefundDue,
)
from rabbitevents.demo.shop.order import OrderState, apply
from rabbitevents.demo.shop.paying import Awaited
from rabbitevents_process import DONE, NoSuchProcessError, Timeout
from rabbitevents_process.testing import given
from tests.test_demo import Silence
from tests.test_demo_failures import lines
from tests.test_demo_processes import Audience
from tests.test_demo_store import book, check_that_the_books_agree, happened, postgres_url, rows, sqlite_url, url

__all__ = ["postgres_url", "sqlite_url", "url"]

RESERVED = InventoryReserved("1", "c", Decimal(10))
PAID = PaymentProcessed("1", "c", Decimal(10))
DECLINED = PaymentDeclined("1", "c", Decimal(10))
OVERDUE = PaymentOverdue("1", "c", Decimal(10))
AWAITED = Awaited("1", "c", Decimal(10))
CHARGES = "shop.payment.charge"


# --- the process, and what is decided on an order ------------------------------------------------------------------


def test_a_payment_is_waited_for_until_it_is_made_or_declined() -> None:
    waiting = given(paying.paying).when(RESERVED).then(AWAITED, timeout=Timeout("unpaid", paying.WITHIN))

    waiting.when(PAID).then(DONE).when(timeout="unpaid").ignored()
    waiting.when(DECLINED).then(DONE).when(timeout="unpaid").ignored()


def test_a_payment_that_nobody_hears_of_is_given_up_and_what_comes_then_is_late() -> None:
    over = given(paying.paying, RESERVED).when(timeout="unpaid").then(DONE, OVERDUE)

    over.when(PAID).ignored()


def test_a_payment_that_nobody_waits_for_yet_is_tried_again() -> None:
    given(paying.paying).when(PAID).raises(NoSuchProcessError)


PLACED = OrderPlaced("1", "c", "mug", 2, Decimal(5))
CONFIRMED = OrderConfirmed("1", "c", Decimal(10))
CANCELLED = OrderCancelled("1", "c", "not paid in time")
REFUND = RefundDue("1", "c", Decimal(10))


def test_what_is_paid_for_an_order_that_is_cancelled_goes_back() -> None:
    cancelled = given([PLACED, CANCELLED], apply, OrderState())

    cancelled.when(lambda order: order.close(CONFIRMED)).then(REFUND)
    cancelled.when(lambda order: order.close(CANCELLED)).then()


def test_an_order_that_is_paid_twice_over_stays_confirmed() -> None:
    given([PLACED, CONFIRMED], apply, OrderState()).when(lambda order: order.close(CONFIRMED)).then()


# --- whole runs ----------------------------------------------------------------------------------------------------

Hurry = Callable[..., None]


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> Hurry:
    """Have the services of this process try again sooner, and wait for payments less long. In seconds."""

    def hurry(*, within: float, again: float | None = None) -> None:
        if again is not None:
            monkeypatch.setattr(services, "WAIT", wait_fixed(again))
        monkeypatch.setattr(paying, "WITHIN", timedelta(seconds=within))

    return hurry


async def ran(orders: int, settings: Settings) -> Result:
    return await run(list(make_orders(orders, seed=1)), settings, Silence())


async def open_payments(url: str) -> int:
    process = paying.TABLES.process
    ((number,),) = await rows(url, select(func.count()).select_from(process).where(process.c.done_at.is_(None)))
    return int(number)


@pytest.mark.sampled
async def test_a_payment_that_dies_is_given_up_and_its_order_is_cancelled(url: str, hurry: Hurry) -> None:
    hurry(again=0.001, within=2)

    result = await ran(30, Settings(store=url, fail=0.8, replay=True))

    counts = result.counts
    assert counts.flawless
    assert (counts.lost, counts.duplicates, counts.dead, counts.equal) == (0, 0, 0, True)
    assert counts.placed == counts.confirmed + counts.cancelled == 30
    assert counts.overdue >= sum(queue == CHARGES for queue, _ in result.tally.dead) > 0
    assert f"{counts.overdue} payments overdue: nobody waits for them any more" in closing(counts)
    assert await open_payments(url) == 0
    await check_that_the_books_agree(url, 30)


@pytest.mark.sampled
async def test_a_payment_that_is_made_after_it_was_given_up_is_refunded(url: str, hurry: Hurry) -> None:
    hurry(again=4, within=0.1)

    counts = (await ran(30, Settings(store=url, fail=0.3, replay=True))).counts

    refunded = await book(url, "payment", "refunded")
    confirmed = {order for order, _ in await happened(url, "order.confirmed")}
    assert counts.flawless
    assert counts.placed == counts.confirmed + counts.cancelled == 30
    assert refunded
    assert not refunded.keys() & confirmed
    assert all(Decimal(price) > 0 for price in refunded.values())
    assert sorted(await happened(url, "order.refund-due")) == sorted((each, "refund-due") for each in refunded)
    await check_that_the_books_agree(url, 30)


async def test_nobody_waits_for_the_timeouts_of_payments_that_are_made(sqlite_url: str, hurry: Hurry) -> None:
    hurry(within=3600)

    counts = (await ran(20, Settings(store=sqlite_url))).counts

    assert counts.flawless
    assert counts.overdue == 0
    assert await open_payments(sqlite_url) == 0


async def test_a_payment_process_that_never_ends_is_lost(sqlite_url: str, hurry: Hurry) -> None:
    hurry(again=0.001, within=0.2)
    await ran(1, Settings(store=sqlite_url))  # which makes the tables
    vanish = "BEGIN DELETE FROM rabbitevents_outbox WHERE id = NEW.id; END"
    when = "AFTER INSERT ON rabbitevents_outbox WHEN NEW.type = 'shop.payment.timed-out'"
    await rows(sqlite_url, text(f"CREATE TRIGGER vanishing {when} {vanish}"))

    result = await ran(5, Settings(store=sqlite_url, fail=1, patience=1))

    counts = result.counts
    assert counts.lost == await open_payments(sqlite_url) > 0
    assert counts.duplicates == 0
    assert not counts.flawless


async def test_a_story_shows_a_timeout_that_something_came_of_and_no_other(sqlite_url: str, hurry: Hurry) -> None:
    hurry(again=0.001, within=4)  # long after all tries have failed: the run has to wait for it

    made = await ran(3, Settings(store=sqlite_url))
    overdue = await ran(3, Settings(store=sqlite_url, fail=1))

    assert not any("timed-out" in line for line in lines(made))
    story = [line.strip(" │├└─") for line in lines(overdue)]
    names = [line.split()[0] for line in story]
    assert names.index("given") < names.index("shop.payment.timed-out")
    after = names[names.index("shop.payment.timed-out") :]
    assert after[1:3] == ["PaymentOverdue", "OrderCancelled"]


# --- on RabbitMQ ---------------------------------------------------------------------------------------------------


async def test_on_rabbitmq_a_later_shop_without_a_store_leaves_nothing_to_the_one_that_waits(
    rabbit_url: str, sqlite_url: str, hurry: Hurry
) -> None:
    hurry(again=0.001, within=1.5)
    stored = (await ran(5, Settings(broker=rabbit_url, store=sqlite_url, fail=1))).counts
    async with Bus(rabbit_url, exchange=EXCHANGE) as bus:
        before = await bus.depth("shop.payment.events")

        plain = (await ran(20, Settings(broker=rabbit_url))).counts
        after = await bus.depth("shop.payment.events")

    again = (await ran(5, Settings(broker=rabbit_url, store=sqlite_url, fail=1))).counts
    assert stored.flawless
    assert stored.overdue > 0
    assert plain.flawless
    assert before is not None
    assert after is not None
    assert after.ready == before.ready
    assert again.flawless


async def test_what_is_waited_for_outlives_a_kill_of_who_waits(rabbit_url: str, postgres_url: str) -> None:
    settings = Settings(broker=rabbit_url, processes=True, fail=0.9, store=postgres_url, replay=True)
    audience = Audience("payment", after=3)

    counts = (await run(list(make_orders(40, seed=1)), settings, audience)).counts

    assert audience.killed_at >= 3
    assert len(audience.pids("payment")) == 2
    assert counts.flawless
    assert (counts.lost, counts.duplicates, counts.dead, counts.restarts, counts.equal) == (0, 0, 0, 1, True)
    assert counts.placed == counts.confirmed + counts.cancelled == 40
    assert counts.overdue > 0
    assert await open_payments(postgres_url) == 0
    await check_that_the_books_agree(postgres_url, 40)


# --- what is shown -------------------------------------------------------------------------------------------------


async def test_without_a_store_no_payment_is_overdue(tmp_path: Path, hurry: Hurry) -> None:
    hurry(again=0.001, within=0.001)
    result = await run(list(make_orders(20, seed=1)), Settings(fail=0.9), Silence(), folder=tmp_path)

    assert result.counts.flawless
    assert result.counts.dead > 0
    assert result.counts.overdue == 0
    assert not any("overdue" in line for line in closing(result.counts))

"""The shop's own tests, as a user would write them: no broker to start, and nothing in a handler's place.

`rabbitevents.testing` runs the very bus that would run on RabbitMQ on an embedded broker, and lets a test see what it
publishes, move its clock, and break it at a chosen point.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, NotSentError, Plugin
from rabbitevents.demo.books import Folder
from rabbitevents.demo.journal import Journal
from rabbitevents.demo.shop import analytics, inventory, notification, order, payment
from rabbitevents.demo.shop.analytics import Figures, Level
from rabbitevents.demo.shop.events import (
    InventoryReserved,
    InventoryUpdated,
    NotificationSent,
    OrderAnalyticsUpdated,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OutOfStock,
    PaymentDeclined,
    PaymentProcessed,
)
from rabbitevents.demo.shop.inventory import Stock
from rabbitevents.demo.shop.notification import Mail
from rabbitevents.demo.shop.order import OrderBook
from rabbitevents.demo.shop.payment import PaymentProvider, Payments, ProviderUnavailableError
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents_deadletter import DeadLetter, DeadLetters
from rabbitevents_idempotency import Idempotency, MemoryStore
from rabbitevents_retry import Fatal, Retry

TWO_MUGS = OrderPlaced("o-1", "customer-1", "mug", 2, Decimal("8.50"))
TOO_MANY = OrderPlaced("o-2", "customer-2", "mug", 2_000, Decimal("8.50"))
NOTHING = OrderPlaced("o-4", "customer-4", "mug", 0, Decimal("8.50"))
TOO_DEAR = OrderPlaced("o-3", "customer-3", "kettle", 4, Decimal("39.90"))


# --- a handler is a function: call it ------------------------------------------------------------------------------


async def test_what_is_in_stock_is_reserved(tmp_path: Path) -> None:
    stock = Stock(Folder(tmp_path), pieces_of_each=10)

    answer = await inventory.reserve(TWO_MUGS, stock)

    assert answer == [InventoryReserved("o-1", "customer-1", Decimal("17.00")), InventoryUpdated("mug", 8)]


async def test_what_is_not_in_stock_is_refused(tmp_path: Path) -> None:
    stock = Stock(Folder(tmp_path), pieces_of_each=10)

    answer = await inventory.reserve(TOO_MANY, stock)

    assert answer == OutOfStock("o-2", "customer-2", "mug", 10)


async def test_an_order_of_nothing_is_a_failure_that_no_repetition_mends(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="an order of 0 pieces"):
        await inventory.reserve(NOTHING, Stock(Folder(tmp_path)))


async def test_an_order_that_comes_again_changes_nothing_and_gets_the_same_answer(tmp_path: Path) -> None:
    stock = Stock(Folder(tmp_path), pieces_of_each=2)

    first = await inventory.reserve(TWO_MUGS, stock)
    again = await inventory.reserve(TWO_MUGS, stock)

    assert again == first
    assert await stock.left("mug") == 0


async def test_a_refusal_that_comes_again_is_the_same_event_whatever_happened_to_the_stock(tmp_path: Path) -> None:
    stock = Stock(Folder(tmp_path), pieces_of_each=10)

    first = await inventory.reserve(TOO_MANY, stock)
    await inventory.reserve(TWO_MUGS, stock)
    again = await inventory.reserve(TOO_MANY, Stock(Folder(tmp_path), pieces_of_each=10))

    assert again == first == OutOfStock("o-2", "customer-2", "mug", 10)


async def test_a_service_that_starts_again_knows_what_it_knew(tmp_path: Path) -> None:
    before = Stock(Folder(tmp_path))
    await inventory.reserve(TWO_MUGS, before)
    await inventory.reserve(TOO_DEAR, before)
    await inventory.give_back(OrderCancelled("o-3", "customer-3", "payment declined"), before)

    after = Stock(Folder(tmp_path))

    assert (await after.left("mug"), await after.left("kettle")) == (498, 500)


async def test_a_level_that_was_overtaken_on_the_way_does_not_count(tmp_path: Path) -> None:
    figures = Figures(Folder(tmp_path))
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)

    await figures.note_level("mug", Level(7, noon))
    await figures.note_level("mug", Level(9, noon - timedelta(seconds=1)))

    assert Journal(tmp_path / "levels.jsonl", Level)["mug"].left == 7


# --- one service: its bus, on an embedded broker -------------------------------------------------------------------


@pytest.fixture
def payment_service(tmp_path: Path) -> Bus:
    bus = Bus("amqp://localhost", payment.router)
    bus.provide(Payments, Payments(Folder(tmp_path)))
    bus.provide(PaymentProvider, PaymentProvider())
    return bus


async def test_the_payment_service_charges_for_what_is_reserved(payment_service: Bus) -> None:
    async with running(payment_service) as probe:
        await probe.bus.publish(InventoryReserved("o-1", "customer-1", Decimal("17.00")))
        await probe.settled()

        assert probe.published(PaymentProcessed) == [PaymentProcessed("o-1", "customer-1", Decimal("17.00"))]


async def test_the_payment_service_takes_no_more_than_a_card_pays(payment_service: Bus) -> None:
    async with running(payment_service) as probe:
        await probe.bus.publish(InventoryReserved("o-3", "customer-3", Decimal("159.60")))
        await probe.settled()

        assert probe.published(PaymentProcessed) == []
        assert probe.published(PaymentDeclined) == [PaymentDeclined("o-3", "customer-3", Decimal("159.60"))]


# --- all five: the whole cascade -----------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Bus:
    """All services on one bus. In production each has a bus of its own; to their handlers it is the same."""
    services = (order, inventory, payment, notification, analytics)
    bus = Bus("amqp://localhost", *(service.router for service in services))
    for state in (OrderBook, Stock, Payments, Mail, Figures):
        bus.provide(state, state(Folder(tmp_path)))
    bus.provide(PaymentProvider, PaymentProvider())
    return bus


async def test_an_order_is_reserved_paid_and_confirmed_and_the_customer_is_told(shop: Bus) -> None:
    async with running(shop) as probe:
        await probe.bus.publish(TWO_MUGS)
        await probe.settled()

        assert probe.published(OrderConfirmed) == [OrderConfirmed("o-1", "customer-1", Decimal("17.00"))]
        assert [sent.customer for sent in probe.published(NotificationSent)] == ["customer-1"]
        assert probe.published(OrderAnalyticsUpdated)[-1] == OrderAnalyticsUpdated(1, 1, 0, Decimal("17.00"))


async def test_an_order_that_is_out_of_stock_is_cancelled_before_anybody_pays(shop: Bus) -> None:
    async with running(shop) as probe:
        await probe.bus.publish(TOO_MANY)
        await probe.settled()

        assert probe.published(OrderCancelled) == [OrderCancelled("o-2", "customer-2", "out of stock")]
        assert probe.published(PaymentProcessed) + probe.published(OrderConfirmed) == []


async def test_an_order_that_is_not_paid_is_cancelled_and_the_stock_given_back(shop: Bus) -> None:
    async with running(shop) as probe:
        await probe.bus.publish(TOO_DEAR)
        await probe.settled()

        assert probe.published(OrderCancelled) == [OrderCancelled("o-3", "customer-3", "payment declined")]
        assert probe.published(InventoryUpdated) == [InventoryUpdated("kettle", 496), InventoryUpdated("kettle", 500)]


async def test_the_last_pieces_are_sold_once(shop: Bus) -> None:
    async with running(shop) as probe:
        await probe.bus.publish_many(OrderPlaced(f"o-{n}", "c", "mug", 100, Decimal(1)) for n in range(8))
        await probe.settled()

        assert len(probe.published(OrderConfirmed)) == 5
        assert {cancelled.reason for cancelled in probe.published(OrderCancelled)} == {"out of stock"}


# --- hours, in milliseconds ----------------------------------------------------------------------------------------


async def test_an_order_for_tomorrow_morning_is_handled_tomorrow_morning(shop: Bus) -> None:
    async with running(shop) as probe:
        await probe.bus.publish(TWO_MUGS, delay=timedelta(hours=12))

        await probe.advance(timedelta(hours=11))
        assert probe.published(OrderConfirmed) == []

        await probe.advance(timedelta(hours=3))
        assert len(probe.published(OrderConfirmed)) == 1


# --- failures, at a chosen point -----------------------------------------------------------------------------------


async def test_a_payment_whose_confirmation_is_lost_is_published_again_and_taken_once(
    shop: Bus, tmp_path: Path, embedded_broker: EmbeddedBroker
) -> None:
    embedded_broker.fail("lose", when=lambda message: message.type == "payment.processed")

    async with running(shop, broker=embedded_broker) as probe:
        await probe.bus.publish(TWO_MUGS)
        await probe.settled()

        assert len(probe.published(PaymentProcessed)) > 1
    assert dict(Journal(tmp_path / "charged.jsonl", Decimal)) == {"o-1": Decimal("17.00")}
    assert dict(Journal(tmp_path / "outcomes.jsonl", str)) == {"o-1": "confirmed"}
    assert list(Journal(tmp_path / "sent.jsonl", str)) == ["o-1"]


async def test_orders_go_on_when_the_connection_breaks_between_the_services(
    shop: Bus, embedded_broker: EmbeddedBroker
) -> None:
    async with running(shop, broker=embedded_broker) as probe:
        for number in range(20):
            await probe.bus.publish(OrderPlaced(f"o-{number}", "c", "mug", 1, Decimal(1)))
            embedded_broker.drop_connections()
        await probe.settled()

        assert {confirmed.order_id for confirmed in probe.published(OrderConfirmed)} == {f"o-{n}" for n in range(20)}


async def test_an_order_that_the_broker_does_not_take_is_an_error_and_not_half_placed(
    shop: Bus, embedded_broker: EmbeddedBroker
) -> None:
    async with running(shop, broker=embedded_broker) as probe:
        embedded_broker.block()
        with pytest.raises(NotSentError):
            await probe.bus.publish(TWO_MUGS, timeout=0.05)
        embedded_broker.unblock()
        await probe.settled()

        assert probe.published(InventoryReserved) == []


async def test_what_waits_while_the_payment_service_is_away_is_paid_when_it_is_back(
    payment_service: Bus, embedded_broker: EmbeddedBroker
) -> None:
    async with running(payment_service, broker=embedded_broker):
        pass  # it was there, and has left: its queue stays
    async with running(Bus("amqp://localhost"), broker=embedded_broker) as front:
        await front.bus.publish(InventoryReserved("o-1", "customer-1", Decimal("17.00")))

    async with running(payment_service, broker=embedded_broker) as probe:
        await probe.settled()

        assert probe.published(PaymentProcessed) == [PaymentProcessed("o-1", "customer-1", Decimal("17.00"))]


# --- what the plugins do about failures ----------------------------------------------------------------------------

RESERVED = InventoryReserved("o-1", "customer-1", Decimal("17.00"))
PAID = PaymentProcessed("o-1", "customer-1", Decimal("17.00"))


class Faltering(PaymentProvider):
    """A payment provider that does not answer the first so many times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked = 0

    async def charge(self, order_id: str, total: Decimal) -> bool:
        """Charge a card, unless this is one of those times."""
        self.asked += 1
        if self.asked <= self.failures:
            raise ProviderUnavailableError
        return await super().charge(order_id, total)


def every_hour() -> list[Plugin]:
    """What a bus has that tries again every hour, and gives up after the fourth time."""
    return [DeadLetter(), Retry(stop=stop_after_attempt(4), wait=wait_fixed(timedelta(hours=1)))]


async def test_a_payment_provider_that_is_away_for_hours_is_asked_again_every_hour(payment_service: Bus) -> None:
    provider = Faltering(failures=3)
    payment_service.provide(PaymentProvider, provider)

    async with running(payment_service, plugins=every_hour()) as probe:
        await probe.bus.publish(RESERVED)
        await probe.advance(timedelta(hours=2, minutes=50))
        asked_so_far, paid_so_far = provider.asked, probe.published(PaymentProcessed)
        await probe.advance(timedelta(hours=1))

        assert (asked_so_far, paid_so_far) == (3, [])
        assert probe.published(PaymentProcessed) == [PAID]


async def test_a_payment_that_is_given_up_on_is_a_dead_letter_and_made_when_that_is_replayed(
    payment_service: Bus,
) -> None:
    provider = Faltering(failures=4)
    payment_service.provide(PaymentProvider, provider)

    async with running(payment_service, plugins=every_hour()) as probe:
        await probe.bus.publish(RESERVED)
        await probe.advance(timedelta(days=1))
        dead = DeadLetters(probe.bus, "shop.payment.charge")
        (letter,) = await dead.find()

        assert probe.published(PaymentProcessed) == []
        assert letter.error.endswith("ProviderUnavailableError")
        assert (letter.attempts, letter.type) == (4, "inventory.reserved")

        await dead.replay()
        await probe.settled()

        assert probe.published(PaymentProcessed) == [PAID]
        assert await dead.find() == []


async def test_an_order_of_nothing_is_a_dead_letter_at_once_and_holds_up_no_other(shop: Bus) -> None:
    async with running(shop, plugins=every_hour()) as probe:
        await probe.bus.publish_many([NOTHING, TWO_MUGS])
        await probe.settled()

        (letter,) = await DeadLetters(probe.bus, "shop.inventory.reserve").find()
        assert letter.message == "an order of 0 pieces"
        assert [confirmed.order_id for confirmed in probe.published(OrderConfirmed)] == ["o-1"]


async def test_a_reservation_that_comes_twice_is_charged_once(payment_service: Bus) -> None:
    provider = Faltering(failures=0)
    payment_service.provide(PaymentProvider, provider)

    async with running(payment_service, plugins=[Idempotency(MemoryStore())]) as probe:
        reserved = await probe.bus.publish(RESERVED)
        await probe.settled()
        await probe.bus.publish(reserved)  # the same event, with its id, once more
        await probe.settled()

        assert provider.asked == 1
        assert probe.published(PaymentProcessed) == [PAID]

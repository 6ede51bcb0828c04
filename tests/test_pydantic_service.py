"""A service whose events are pydantic models, as the documentation has it, on RabbitMQ; the type checkers read it too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal, assert_type
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from tenacity import stop_after_attempt, wait_none

from rabbitevents import Bus, EncodeError, Event, Message, Properties, Router, event
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from tests.bed.rabbitmq import RabbitNode
from tests.shop import eventually


class Wire(BaseModel):
    """What all of this team's events have in common."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class Line(Wire):
    sku: str
    pieces: int = Field(ge=1)
    unit_price: Decimal


class ByCard(Wire):
    kind: Literal["card"] = "card"
    last_digits: str = Field(pattern=r"^\d{4}$")


class ByInvoice(Wire):
    kind: Literal["invoice"] = "invoice"
    due: timedelta = timedelta(days=14)


@event("order.placed", version=1, entity="order", key="order_id")
class OrderPlaced(Wire):
    order_id: UUID
    lines: list[Line]
    paid_by: Annotated[ByCard | ByInvoice, Field(discriminator="kind")]
    placed_at: datetime


@event("order.billed", version=1, entity="order", key="order_id")
class OrderBilled(Wire):
    order_id: UUID
    total: Decimal


def order(**changes: object) -> OrderPlaced:
    """Return an order, changed as said."""
    return OrderPlaced(
        order_id=uuid4(),
        lines=[Line(sku="shirt", pieces=2, unit_price=Decimal("9.95"))],
        paid_by=ByCard(last_digits="1234"),
        placed_at=datetime(2026, 1, 31, 12, tzinfo=UTC),
    ).model_copy(update=changes)


async def test_a_service_of_models_bills_retries_and_gives_up_as_any_other(
    rabbit_url: str, rabbit_node: RabbitNode
) -> None:
    billing, ledger = Router("billing"), Router("ledger")
    billed: list[Event[OrderBilled]] = []
    attempts: list[UUID] = []

    @billing.on(OrderPlaced)
    async def bill(placed: OrderPlaced) -> OrderBilled:
        attempts.append(placed.order_id)
        if attempts.count(placed.order_id) == 1:
            raise ConnectionError("the printer is out of paper")
        assert_type(placed.paid_by, ByCard | ByInvoice)
        return OrderBilled(
            order_id=placed.order_id, total=sum((line.pieces * line.unit_price for line in placed.lines), Decimal())
        )

    @ledger.on(OrderBilled)
    async def enter(entry: Event[OrderBilled]) -> None:
        billed.append(entry)

    plugins = [DeadLetter(), Retry(stop=stop_after_attempt(3), wait=wait_none())]
    async with Bus(rabbit_url, billing, ledger, plugins=plugins) as bus:
        placed = order(paid_by=ByInvoice())
        sent = await bus.publish(placed)
        await eventually(lambda: len(billed) == 1, "the bill")

        stranger = Properties(content_type="application/json", type="order.placed", message_id=str(uuid4()))
        await bus.send(
            Message(exchange="events", routing_key="order.placed", body=b'{"orderId": 5}', properties=stranger)
        )
        await eventually(lambda: rabbit_node.queue_counts("billing.bill.dead", rabbit_url).ready == 1, "it", 10)

    assert sent.entity_id == str(placed.order_id)
    assert billed[0].payload == OrderBilled(order_id=placed.order_id, total=Decimal("19.90"))
    assert billed[0].metadata.causation_id == str(sent.id)
    assert attempts == [placed.order_id] * 2


async def test_a_model_changed_past_its_own_validation_is_not_published(rabbit_url: str) -> None:
    async with Bus(rabbit_url, name="shop", unroutable="ignore") as bus:
        with pytest.raises(
            EncodeError, match=r"string_pattern_mismatch \(pydantic\) - at `\$\.paidBy\[\.\.\.\]\.lastDigits`"
        ):
            await bus.publish(order(paid_by=ByCard.model_construct(last_digits="no digits")))

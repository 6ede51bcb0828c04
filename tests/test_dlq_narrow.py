"""Dead letters on a terminal of 50 and of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console, RenderableType

from rabbitevents import Bus, Router
from rabbitevents.testing import running
from rabbitevents_deadletter import DeadLetter, DeadLetters
from rabbitevents_deadletter.commands.rendering import excerpt, put, summary, whole
from rabbitevents_deadletter.workbench import Group, Summary
from tests.shop import OrderPlaced

WIDTHS = [50, 80]


def lines(width: int, what: Iterable[RenderableType]) -> list[str]:
    console = Console(width=width, soft_wrap=True, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        put(console, *what)
    return [line.rstrip() for line in captured.get().splitlines()]


def summed(*queues: str) -> Iterator[Summary]:
    now = datetime.now(UTC)
    group = Group(
        error="shop.payment.PaymentRefused",
        type="order.placed",
        count=1200,
        oldest=now - timedelta(days=2, hours=12),
        newest=now - timedelta(hours=5, minutes=30),
    )
    for queue in queues:
        yield Summary(queue=queue, there=1200, groups=(group,))


def test_counts_are_a_table_where_there_is_room() -> None:
    assert lines(85, summary(summed("payment.charge.dead"), "", 85)) == [
        "queue                error                        type          count  oldest  newest",
        "payment.charge.dead  shop.payment.PaymentRefused  order.placed  1,200      2d      5h",
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_counts_are_below_each_other_where_there_is_none(width: int) -> None:
    queue = "the-payments-of-all-customers.charge-them-again.dead"[: width - 2]

    assert lines(width, summary(summed(queue), "", width)) == [
        queue,
        "  shop.payment.PaymentRefused",
        "  order.placed",
        "  1,200, 2d to 5h old",
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_bytes_are_shown_in_rows_that_fit(width: int) -> None:
    rows = excerpt(bytes(range(256)), 64, width).splitlines()

    assert max(map(len, rows)) + 2 <= width  # and an indent
    assert rows[-1].endswith("0123456789:;<=>?"[-8:])


@pytest.mark.parametrize("width", WIDTHS)
async def test_a_letter_is_shown_within_the_width_and_whole(width: int) -> None:
    payment = Router("payment")

    @payment.on(OrderPlaced)
    async def charge(order: OrderPlaced) -> None:
        raise RuntimeError(
            "the card of the customer has expired, and nobody knows of another one that could be charged"
        )

    async with running(Bus("memory://", payment, plugins=[DeadLetter()])) as probe:
        placed = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        [letter] = await DeadLetters(probe.bus, "payment.charge").find()

    shown = lines(width, whole(letter, width))

    assert max(map(len, shown)) <= width
    words = "".join("".join(shown).split())
    assert str(placed.id) in words
    assert "another one that could be charged".replace(" ", "") in words

"""The demonstration when payments fail, when an order is poisoned, and when services share their memory in Redis."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tenacity import wait_fixed

from rabbitevents.demo import services
from rabbitevents.demo.ledger import GivenUp, Published, Retried
from rabbitevents.demo.orders import make_orders, poisoned
from rabbitevents.demo.report import graves
from rabbitevents.demo.run import Result, run
from rabbitevents.demo.settings import Settings
from rabbitevents.demo.story import tree
from rabbitevents.demo.tally import Trouble
from rabbitevents.testing import EmbeddedBroker
from tests.bed.redis import RedisServer
from tests.shop import eventually
from tests.test_demo import Silence

DEAD_PAYMENTS = "shop.payment.charge.dead"
DEAD_RESERVATIONS = "shop.inventory.reserve.dead"


async def ran(
    orders: int,
    settings: Settings,
    *,
    poison: bool = False,
    embedded: EmbeddedBroker | None = None,
    folder: Path | None = None,
) -> Result:
    placed = list(make_orders(orders, seed=1))
    return await run(poisoned(placed) if poison else placed, settings, Silence(), folder=folder, embedded=embedded)


def troubles(result: Result) -> list[Trouble]:
    return [each for troubles in result.tally.troubles.values() for each in troubles]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the services of this process try again at once."""
    monkeypatch.setattr(services, "WAIT", wait_fixed(0.001))


# --- payments that fail, an order that nobody can handle -----------------------------------------------------------


@pytest.mark.parametrize("broker", ["memory", "rabbitmq"])
async def test_payments_that_fail_are_made_and_a_poisoned_order_dies(
    broker: str, request: pytest.FixtureRequest
) -> None:
    url: str | None = request.getfixturevalue("rabbit_url") if broker == "rabbitmq" else None

    result = await ran(200, Settings(broker=url, fail=0.2), poison=True)
    counts = result.counts

    assert counts.placed == counts.confirmed + counts.cancelled + counts.dead == 200
    assert (counts.lost, counts.duplicates, counts.dead) == (0, 0, 1)
    assert counts.flawless
    retries = [each for each in troubles(result) if isinstance(each, Retried)]
    assert counts.retried == result.tally.retried["payment"] == len(retries) > 0
    assert {(each.inline, each.after) for each in retries} == {(True, 0.1), (False, 1.0)}
    assert list(result.tally.dead.values()) == ["rabbitevents.failures.Fatal"]


async def test_the_same_seed_lets_the_same_payments_fail_in_each_run(hasty: None) -> None:
    runs = [await ran(60, Settings(fail=0.5, seed=seed)) for seed in (1, 1, 2)]

    first, again, other = (
        sorted((about(result, each.event), each.attempt) for each in troubles(result) if isinstance(each, Retried))
        for result in runs
    )
    assert first == again
    assert first != other


def about(result: Result, event: str) -> int:
    """Which order of a run it was, counted as they were placed."""
    return list(result.tally.sizes).index(result.tally.roots[event])


async def test_what_fails_too_often_is_found_among_the_dead_letters(
    hasty: None, embedded_broker: EmbeddedBroker
) -> None:
    result = await ran(60, Settings(fail=0.8), embedded=embedded_broker)
    counts = result.counts

    assert counts.dead == embedded_broker.queues[DEAD_PAYMENTS].ready > 0
    assert counts.placed == counts.confirmed + counts.cancelled + counts.dead == 60
    assert (counts.lost, counts.duplicates) == (0, 0)
    assert counts.flawless
    assert {each.attempts for each in troubles(result) if isinstance(each, GivenUp)} == {services.ATTEMPTS}


async def test_more_dead_letters_than_can_be_looked_at_are_counted_too(
    hasty: None, monkeypatch: pytest.MonkeyPatch, embedded_broker: EmbeddedBroker
) -> None:
    monkeypatch.setattr("rabbitevents.demo.morgue.SEEN", 5)

    result = await ran(40, Settings(fail=1), embedded=embedded_broker)

    assert result.counts.dead == embedded_broker.queues[DEAD_PAYMENTS].ready > 5
    assert result.counts.flawless


async def test_a_dead_letter_that_is_claimed_and_not_there_is_lost(embedded_broker: EmbeddedBroker) -> None:
    embedded_broker.fail("refuse", when=lambda message: message.routing_key == DEAD_RESERVATIONS, times=1000)

    result = await ran(5, Settings(patience=0.5), poison=True, embedded=embedded_broker)

    assert len(result.tally.given_up) == 1
    assert (result.counts.lost, result.counts.dead) == (1, 0)
    assert not result.counts.flawless


async def test_what_an_earlier_run_left_among_the_dead_letters_is_not_counted(rabbit_url: str) -> None:
    runs = [await ran(5, Settings(broker=rabbit_url), poison=poison) for poison in (True, False, True)]

    assert [result.counts.dead for result in runs] == [1, 0, 1]
    assert all(result.counts.flawless for result in runs)


# --- what people are shown -----------------------------------------------------------------------------------------


async def test_the_story_of_an_order_that_was_tried_again_says_when_why_and_how_long_it_waited() -> None:
    result = await ran(60, Settings(fail=0.2), poison=True)

    drawn = lines(result)
    retries = [line for line in drawn if " failed  " in line]
    assert len(retries) >= 2
    assert re.search(
        r"attempt 1 failed  \d\d:\d\d:\d\d\.\d{3}  \+\d+\.\d ms  payment  "
        r"ProviderUnavailableError; tried again after 0\.1 s in its process$",
        retries[0],
    )
    assert retries[1].endswith("ProviderUnavailableError; tried again after 1 s at the broker")
    assert any("PaymentProcessed" in line or "PaymentDeclined" in line for line in drawn[drawn.index(retries[-1]) :])


async def test_the_story_of_an_order_that_died_says_of_what() -> None:
    result = await ran(5, Settings(), poison=True)

    (end,) = [line for line in lines(result) if "given up" in line]
    assert end.endswith(f"Fatal at attempt 1; it is in {DEAD_RESERVATIONS}")
    assert graves(result) == [f"1 dead of Fatal in {DEAD_RESERVATIONS}"]


def lines(result: Result) -> list[str]:
    """The story, as it is drawn."""
    from rich.console import Console

    assert isinstance(result.story[0], Published)
    console = Console(width=300)
    with console.capture() as drawn:
        console.print(tree(result.story))
    return [line.rstrip() for line in drawn.get().splitlines()]


async def test_on_rabbitmq_people_are_told_how_to_look_at_dead_letters(rabbit_url: str) -> None:
    result = await ran(5, Settings(broker=rabbit_url), poison=True)

    dead, command = graves(result)
    assert dead == f"1 dead of Fatal in {DEAD_RESERVATIONS}"
    url = rabbit_url.replace("guest:guest@", "guest@")
    assert command == f"look at them: rabbitevents dlq list --url {url} --queue shop.inventory.reserve"


# --- Redis ---------------------------------------------------------------------------------------------------------


async def test_with_redis_each_effect_is_marked_there(
    redis_server: RedisServer, embedded_broker: EmbeddedBroker
) -> None:
    embedded_broker.fail("lose", when=lambda message: message.type == "payment.processed", times=3)

    result = await ran(20, Settings(redis=redis_server.url), embedded=embedded_broker)

    assert result.counts.flawless
    marks = f":{result.counts.handled}\r\n".encode()
    await eventually(lambda: redis_server.command("DBSIZE") == marks, "the marks alone, with no look's key left", 5)

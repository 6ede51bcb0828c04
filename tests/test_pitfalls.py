"""What an operator's commands rest on, and fall over where it is not so: the atomic switch, brokers that restart, names, and 406."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rabbitevents import Bus, ConfigurationError, Router
from rabbitevents.brokers.rabbitmq.altering import Altering
from rabbitevents.operations.applying import prune
from rabbitevents.operations.moving.removing import removal
from rabbitevents.operations.planning import at_work, plan_of, planned
from tests.bed.fixtures import NodeFactory
from tests.operating import Place, StockReserved, shop
from tests.renamed import NEW, OLD, Ledger, service
from tests.shop import eventually
from tests.stepwise import NOW_AND_THEN
from tests.switching import PUBLISHES, SWITCHES, switched
from tests.test_doctor import definitions
from tests.test_renaming import leading_over, stands
from tests.test_topology_plan import nobody, said

# --- the switch ------------------------------------------------------------------------------------------------------


@pytest.mark.each_version
async def test_switches_under_four_publishers_lose_double_and_return_nothing_and_keep_the_order(
    place: Place,
) -> None:
    counted = await switched(place, [place.url] * 4, wanted=lambda sent: sent < PUBLISHES, flips=SWITCHES)

    assert counted.flips >= SWITCHES
    assert (counted.published, counted.lost, counted.doubled, counted.returned) == (4 * PUBLISHES, 0, 0, 0)
    assert counted.disordered == 0
    assert min(counted.near, counted.far) > 100


# --- a broker that restarts ------------------------------------------------------------------------------------------


@pytest.mark.each_version
@pytest.mark.timeout(400)  # some forty processes, and five starts of a broker
async def test_a_queue_is_led_over_while_the_broker_restarts_between_steps(
    own_node: NodeFactory, tmp_path: Path
) -> None:
    node = await own_node(management=True)
    place, ledger, wanted = Place(node, node.url), Ledger(tmp_path / "ledger"), set[str]()
    async with service(place.url, ledger, "old"):
        await node.asettle()

    async with service(place.url, ledger, "new"), Bus(place.url, name="shop", unroutable="raise") as publisher:
        steps, restarts = list[str](), 0
        async for done in leading_over(place):
            assert done
            steps += done
            number = str(len(steps) * 1000)
            await publisher.publish(StockReserved(number))
            wanted.add(number)
            if len(steps) >= NOW_AND_THEN * (restarts + 1):
                restarts += 1
                await node.asettle()
                await node.astop()
                await node.astart()
                await eventually(lambda: publisher.health().ok, "the connection", 60)
        await eventually(lambda: wanted <= {line[0] for line in ledger.lines}, "all of them", 60)

    assert len(steps) > 25
    assert not [step for step in steps if "LOST" in step]
    assert restarts == len(steps) // NOW_AND_THEN
    assert await stands(place) == {NEW: 0, f"{NEW}.dead": 0, f"{OLD}.dead": 0}


# --- a consumer that is none -----------------------------------------------------------------------------------------


@pytest.mark.each_version
async def test_a_queue_deleted_and_made_anew_under_its_consumer_is_served_or_the_doctor_says_what_ends_that(
    place: Place, tmp_path: Path
) -> None:
    """Before RabbitMQ 4.3 nobody tells the consumer, and what is delivered to it never comes; a new one gets all of it."""
    ledger = Ledger(tmp_path / "ledger")
    wanted = {str(number * 100) for number in range(1, 31)}  # more than are handled at a time
    async with service(place.url, ledger, "old") as bus:
        await eventually(lambda: bus.health().ok, "the consumer")
        queue = bus.topology.queue(OLD)
        assert queue is not None
        async with place.channel() as channel:
            await channel.queue_delete(OLD)
            anew = await channel.declare_queue(OLD, durable=True, arguments=dict(queue.arguments))
            await anew.bind("events", "stock.reserved")
        await bus.publish_many([StockReserved(number) for number in wanted])
        async with asyncio.timeout(60):
            while wanted != {line[0] for line in ledger.lines}:
                report = await place.looked_at(service(place.url, ledger, "old"))
                if any("with a consumer that is none" in each.way_out for each in report.found):
                    break

    async with service(place.url, ledger, "old"):
        await eventually(lambda: wanted == {line[0] for line in ledger.lines}, "all of them")


# --- what AMQP says --------------------------------------------------------------------------------------------------


async def test_of_two_arguments_that_differ_the_plan_says_without_http_that_there_may_be_more(place: Place) -> None:
    await place.declared("inventory.note", arguments={"x-delivery-limit": 7, "x-overflow": "drop-head"})

    found = await planned(shop(place.url), http="http://127.0.0.1:1", ask_anew=True)

    [line] = [line for line in said(found) if line.startswith("migrate queue inventory.note: ")]
    assert line.endswith("; that at least, as AMQP says one of several; 0 ready")


@pytest.mark.each_version
async def test_a_quorum_queue_is_deleted_without_a_condition_that_would_end_the_connection(place: Place) -> None:
    await place.declared("inventory.gone")

    async with at_work(shop(place.url), place.node.http_url) as site:
        altering = Altering(site.connection)
        gone = [await altering.delete_queue("inventory.gone"), await altering.delete_queue("inventory.gone")]
        there = await altering.depth("inventory.gone")

    assert (gone, there, site.connection.lost.done()) == ([0, 0], None, True)


# --- exchanges -------------------------------------------------------------------------------------------------------


async def test_an_exchange_under_our_names_that_is_another_ones_way_out_is_never_taken_away(place: Place) -> None:
    """RabbitMQ would delete it, and what finds no other way out of the other one would be lost from then on."""
    async with shop(place.url):
        pass
    async with at_work(shop(place.url), place.node.http_url) as site:
        altering = Altering(site.connection)
        await altering.declare_exchange("inventory.rest")
        await altering.declare_exchange("inventory.orders", alternate="inventory.rest")
        before = definitions(place.node)

        plan = await plan_of(site)
        await prune(site.connection, plan.of("remove"))
        report = await place.looked_at()
        for name in ("inventory.rest", "inventory.orders"):
            with pytest.raises(ConfigurationError, match=f"there is no queue '{name}'"):
                await removal(site, name)

    assert plan.equal
    assert "inventory.rest" not in str(report)
    assert definitions(place.node) == before


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("router", "name", "exchange"),
    [
        ("delay", "500", "events"),
        ("delay", "lost", "events"),
        ("events.delay", "60000", "events"),
        ("shop.events.delay", "1", "shop.events"),
    ],
)
def test_a_queue_that_would_be_one_that_events_wait_in_is_refused(router: str, name: str, exchange: str) -> None:
    routes = Router(router)
    routes.on("order.placed", name=name)(nobody)

    with pytest.raises(ConfigurationError, match=f"queue '{router}.{name}' is one that events wait in"):
        _ = Bus("memory://", routes, exchange=exchange).topology


@pytest.mark.parametrize("end", ["dead", "moving"])
def test_a_queue_that_would_be_another_ones_place_of_dead_letters_is_refused(end: str) -> None:
    routes = Router("shop")
    routes.on("order.placed", name="charge")(nobody)
    routes.on("order.placed", name=f"charge.{end}")(nobody)

    with pytest.raises(ConfigurationError, match=f"queue 'shop.charge.{end}' is the .* of 'shop.charge'"):
        _ = Bus("memory://", routes).topology


@pytest.mark.parametrize(
    ("router", "name"), [("delay", "mail"), ("delays", "500"), ("shop", "delay.500"), ("dead", "x")]
)
def test_a_name_that_only_looks_like_one_of_those_is_not(router: str, name: str) -> None:
    routes = Router(router)
    routes.on("order.placed", name=name)(nobody)

    assert f"{router}.{name}" in Bus("memory://", routes).topology.queues

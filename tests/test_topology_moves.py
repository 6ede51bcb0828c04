"""Removing queues that nobody needs, and moving what is in them, on a real broker."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import aio_pika
import pytest
from click.testing import CliRunner

from rabbitevents import BrokerError, Bus, ConfigurationError
from rabbitevents.cli.commands import command_line
from rabbitevents.operations.moving.contents import WINDOW, move
from rabbitevents.operations.moving.emptiness import look
from rabbitevents.operations.moving.removing import removal, remove
from rabbitevents.operations.planning import Worksite, at_work, planned
from tests.bed.rabbitmq import RabbitNode
from tests.operating import Place, shop
from tests.test_cli import environment
from tests.test_doctor import definitions
from tests.test_topology_plan import nobody

ROOT = Path(__file__).parent.parent
OLD = "inventory.old"


@pytest.fixture
async def place(managed_node: RabbitNode) -> AsyncIterator[Place]:
    """A virtual host in which the shop has run, and a queue that no handler has any more."""
    here = Place(managed_node, managed_node.add_vhost())
    async with shop(here.url):
        pass
    await here.declared(OLD)
    yield here
    managed_node.delete_vhost(here.url)


@pytest.fixture
async def site(place: Place) -> AsyncIterator[Worksite]:
    async with at_work(shop(place.url), place.node.http_url) as here:
        yield here


async def shown(site: Worksite, queue: str) -> None:
    """Wait until the management API shows the queue's numbers."""
    async with asyncio.timeout(15):
        while (await look(site, queue)).unacked is None:
            pass


async def removed(site: Worksite, queue: str) -> list[str]:
    return [each async for each in remove(site, await removal(site, queue), interval=0.6)]


# --- remove ----------------------------------------------------------------------------------------------------------


async def test_a_queue_that_nobody_needs_is_unbound_and_deleted_once_it_is_empty(place: Place, site: Worksite) -> None:
    async with place.channel() as channel:
        await (await channel.declare_queue(OLD, passive=True)).bind("events", "order.#")

    done = await removed(site, OLD)

    assert done == ["unbound: events -> inventory.old by 'order.#'", "deleted"]
    assert (await planned(shop(place.url), http=place.node.http_url)).equal


@pytest.mark.parametrize("quorum", [True, False])
async def test_a_queue_with_messages_in_it_stands_with_its_bindings(place: Place, site: Worksite, quorum: bool) -> None:
    await place.declared("inventory.older", quorum=quorum)
    await place.put("inventory.older", 3)
    before = definitions(place.node)

    with pytest.raises(ConfigurationError, match=r"nothing was changed: queue 'inventory.older' is not empty: 3 ready"):
        await removal(site, "inventory.older")

    assert definitions(place.node) == before


@pytest.mark.each_version
async def test_a_queue_whose_messages_somebody_holds_stands(place: Place, site: Worksite) -> None:
    await place.put(OLD, 3)
    async with place.channel() as channel:
        queue = await channel.declare_queue(OLD, passive=True)
        held = [await queue.get() for _ in range(3)]
        async with asyncio.timeout(15):
            while (await look(site, OLD)).unacked != 3:
                pass

        with pytest.raises(ConfigurationError, match=r"0 ready, 3 unacknowledged"):
            await removal(site, OLD)

    assert len(held) == 3
    assert (await place.node.aqueue_counts(OLD, place.url)).ready == 3


@pytest.mark.each_version
async def test_a_queue_whose_dead_letters_cannot_leave_stands(place: Place, site: Worksite) -> None:
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    await place.declared("inventory.full", quorum=False, arguments=full)
    await place.put("inventory.full")
    leads_there = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "inventory.full"}
    at_least_once = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    await place.declared("inventory.stuck", arguments={**leads_there, **at_least_once})
    await place.put("inventory.stuck", 2)
    async with place.channel() as channel:
        queue = await channel.declare_queue("inventory.stuck", passive=True)
        for _ in range(2):
            message = await queue.get()
            await message.reject(requeue=False)
    async with asyncio.timeout(15):
        while (await look(site, "inventory.stuck")).stuck != 2:
            pass

    with pytest.raises(ConfigurationError, match=r"2 dead letters that cannot leave"):
        await removal(site, "inventory.stuck")


async def test_a_queue_that_somebody_consumes_stands(place: Place, site: Worksite) -> None:
    async with place.channel() as channel:
        await (await channel.declare_queue(OLD, passive=True)).consume(nobody)

        with pytest.raises(ConfigurationError, match=r"nothing was changed: queue 'inventory.old' is consumed"):
            await removal(site, OLD)


async def test_a_queue_that_is_filled_after_the_look_is_unbound_and_stands(place: Place, site: Worksite) -> None:
    found = await removal(site, OLD)
    await place.put(OLD)

    with pytest.raises(
        ConfigurationError, match=r"it is unbound, and stands: queue 'inventory.old' is not empty: 1 ready"
    ):
        _ = [each async for each in remove(site, found, interval=0.6)]

    assert (await place.node.aqueue_counts(OLD, place.url)).ready == 1


@pytest.mark.parametrize(
    ("queue", "said"),
    [
        ("inventory.note", "'inventory.note' is a queue that this bus needs"),
        ("inventory.note.dead", "'inventory.note.dead' is a queue that this bus needs"),
        ("inventory.note.moving", "there is no queue 'inventory.note.moving'"),
        ("inventory2.x", "'inventory2.x' is not this bus's: the names of its queues begin with inventory."),
        ("inventory.gone", "there is no queue 'inventory.gone'"),
    ],
)
async def test_what_is_needed_or_somebody_elses_is_left(place: Place, site: Worksite, queue: str, said: str) -> None:
    await place.declared("inventory2.x")

    with pytest.raises(ConfigurationError) as refused:
        await removal(site, queue)

    assert said in str(refused.value)


# --- move ------------------------------------------------------------------------------------------------------------


async def test_messages_move_in_their_order_with_all_that_is_theirs(place: Place) -> None:
    await place.declared("inventory.new")
    async with place.channel() as channel:
        for number in range(1000):
            told = aio_pika.Message(
                str(number).encode(),
                headers={"tenant": "acme", "x-death": "old", "CC": ["elsewhere"]},
                message_id=f"id-{number}",
                type="order.placed",
                priority=3,
                delivery_mode=2,
            )
            told.headers.pop("CC")
            await channel.default_exchange.publish(told, OLD)

    numbers = [each async for each in move(shop(place.url), OLD, "inventory.new")]

    async with place.channel() as channel:
        queue = await channel.declare_queue("inventory.new", passive=True)
        there = [await queue.get() for _ in range(1000)]
        for each in there:
            await each.ack()
    assert numbers[-1] == 1000
    assert [each.body for each in there] == [str(number).encode() for number in range(1000)]
    assert {(each.headers["tenant"], each.priority, each.type, "x-death" in each.headers) for each in there} == {
        ("acme", 3, "order.placed", False)
    }
    assert (await place.node.aqueue_counts(OLD, place.url)) == (0, 0, 0)


async def test_killed_on_the_way_nothing_is_lost_and_no_more_than_the_window_is_in_both(place: Place) -> None:
    await place.declared("inventory.new")
    await place.put(OLD, 2000)
    command = (sys.executable, "-m", "tests.moved", place.url, OLD, "inventory.new", "700")

    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment())
    code = await asyncio.wait_for(process.wait(), 60)
    async with asyncio.timeout(15):
        while (await place.node.aqueue_counts(OLD, place.url)).unacked:
            pass
    _ = [each async for each in move(shop(place.url), OLD, "inventory.new")]

    assert code == -signal.SIGKILL
    there = await place.node.aqueue_counts("inventory.new", place.url)
    assert 2000 <= there.ready <= 2000 + WINDOW
    assert (await place.node.aqueue_counts(OLD, place.url)).ready == 0


async def test_a_target_that_is_full_stops_it_and_the_rest_stays(place: Place) -> None:
    await place.declared("inventory.full", arguments={"x-max-length": 50, "x-overflow": "reject-publish"})
    await place.put(OLD, 300)

    with pytest.raises(BrokerError, match=r"it stays in queue 'inventory.old', with what is behind it"):
        _ = [each async for each in move(shop(place.url), OLD, "inventory.full")]

    left = await place.node.aqueue_counts(OLD, place.url)
    there = await place.node.aqueue_counts("inventory.full", place.url)
    assert left.ready + there.ready == 300
    assert there.ready >= 50


async def test_a_body_of_16_mib_moves_too(place: Place) -> None:
    await place.declared("inventory.new")
    async with place.channel() as channel:
        told = aio_pika.Message(b"x" * 16 * 1024 * 1024, expiration=3600)
        await channel.default_exchange.publish(told, OLD)

    _ = [each async for each in move(shop(place.url), OLD, "inventory.new")]

    async with place.channel() as channel:
        message = await (await channel.declare_queue("inventory.new", passive=True)).get()
        await message.ack()
    assert len(message.body) == 16 * 1024 * 1024
    assert message.expiration is None


async def test_what_is_consumed_or_not_there_is_not_moved(place: Place) -> None:
    bus: Bus = shop(place.url)
    await place.put(OLD)

    with pytest.raises(ConfigurationError, match=r"there is no queue 'inventory.gone'"):
        _ = [each async for each in move(bus, OLD, "inventory.gone")]
    async with place.channel() as channel:
        queue = await channel.declare_queue("inventory.note", passive=True)
        await queue.consume(nobody)
        with pytest.raises(ConfigurationError, match=r"'inventory.note' is consumed"):
            async with aclosing(move(shop(place.url), "inventory.note", OLD)) as numbers:
                _ = [each async for each in numbers]


# --- the commands ----------------------------------------------------------------------------------------------------

MODULE = """
import os
from tests.operating import shop

bus = shop(os.environ["AMQP_URL"])
"""


async def test_the_commands_move_and_remove_and_point_from_one_to_the_other(place: Place, tmp_path: Path) -> None:
    (tmp_path / "a_shop.py").write_text(MODULE)
    told = {**environment(), "AMQP_URL": place.url}
    await place.put(OLD, 3)

    async def called(*words: str) -> tuple[int | None, str, str]:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "rabbitevents", "topology", words[0], "a_shop:bus", *words[1:])
        process = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, env=told, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        printed, errors = await process.communicate()
        return process.returncode, printed.decode(), errors.decode()

    http = ("--http", place.node.http_url)
    full = await called("remove", OLD, *http, "--yes")
    moving = await called("move", OLD, "inventory.note", "--yes")
    asked = await called("remove", OLD, *http)
    gone = await called("remove", OLD, *http, "--yes")

    assert [each[0] for each in (full, moving, asked, gone)] == [2, 0, 2, 0]
    assert "rabbitevents topology move a_shop:bus inventory.old QUEUE" in full[2]
    assert moving[1].endswith("done: 3 moved\n")
    assert "say --yes" in asked[2]
    assert gone[1].endswith("deleted\n")


def test_one_queue_is_not_moved_into_itself() -> None:
    result = CliRunner().invoke(command_line, ["topology", "move", "tests.operating:shop", "a", "a", "--yes"])

    assert result.exit_code == 2

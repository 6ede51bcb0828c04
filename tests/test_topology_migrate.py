"""Making a queue anew on a real broker, under publishers and failing handlers: killed anywhere, nothing is lost or handled twice."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rabbitevents import BrokerError, Bus, ConfigurationError, Router
from rabbitevents.brokers.rabbitmq.altering import Altering
from rabbitevents.operations.applying import consumers_of
from rabbitevents.operations.moving.acting import lock, migrate
from rabbitevents.operations.moving.beforehand import outlook
from rabbitevents.operations.planning import at_work, planned
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from tests.migrated import QUEUE
from tests.operating import Place, StockReserved, shop
from tests.shop import eventually
from tests.stepwise import killed_on_the_way
from tests.test_cli import environment
from tests.test_doctor import definitions
from tests.test_topology_plan import nobody

ROOT = Path(__file__).parent.parent


class Effects:
    """What a handler did: every tenth event fails at first."""

    def __init__(self) -> None:
        self.handled: Counter[str] = Counter()
        self.tried: list[int] = []
        """The numbers of events, in the order in which they came for the first time."""
        self._failed: set[str] = set()

    def service(self, url: str, **settings: Any) -> Bus:
        """The shop's bus, whose handler does this."""
        router = Router("inventory")

        @router.on(StockReserved, "payment.#", name="note", concurrency=1)
        async def note(reserved: StockReserved) -> None:
            number = int(reserved.order_id)
            if reserved.order_id not in self._failed:
                self.tried.append(number)
            if number % 10 == 3 and reserved.order_id not in self._failed:
                self._failed.add(reserved.order_id)
                raise ValueError("not yet")
            self.handled[reserved.order_id] += 1

        return Bus(url, router, plugins=[DeadLetter(), Retry(inline_below=0)], grace=1, **settings)


class Publisher:
    """Publishes 500 events a second, each of which the broker confirms and leads to a queue."""

    def __init__(self, bus: Bus, published: int) -> None:
        self.published = published
        self.is_over = False
        """Whether what is on its way is the last: all that comes has been counted then."""
        self._bus = bus

    async def go_on(self) -> None:
        while not self.is_over:
            batch = [StockReserved(str(self.published + i)) for i in range(10)]
            await self._bus.publish_many(batch)
            self.published += len(batch)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def publishing(url: str, published: int = 0) -> AsyncGenerator[Publisher]:
    """Publish while the block lasts, beginning behind what was ``published``; a publish that fails fails the test."""
    async with Bus(url, name="shop", unroutable="raise", grace=1) as bus:
        publisher = Publisher(bus, published)
        task = asyncio.create_task(publisher.go_on())
        try:
            yield publisher
        finally:
            assert not task.done()
            publisher.is_over = True
            await asyncio.wait_for(task, 30)


def migrated(place: Place, limit: int) -> AsyncGenerator[list[str]]:
    """Have processes that are killed on the way make the queue anew; yield the steps of each."""
    return killed_on_the_way("tests.migrated", place.url, place.node.http_url, str(limit))


async def all_handled(effects: Effects, number: int) -> None:
    """Wait until so many events have been handled: there is a backlog, and a retry comes after its wait."""
    wanted = set(map(str, range(number)))
    await eventually(lambda: wanted <= effects.handled.keys(), "all of them", 60)


@pytest.mark.each_version
@pytest.mark.timeout(400)  # some forty processes, one after the other
async def test_killed_on_the_way_and_run_again_it_ends_the_same_and_nothing_is_lost_twice_or_out_of_order(
    place: Place,
) -> None:
    effects, steps = Effects(), list[str]()
    async with effects.service(place.url) as older:
        async with publishing(place.url) as publisher:
            async for done in migrated(place, limit=30):
                assert done
                steps += done
            left = await planned(shop(place.url, delivery_limit=30), http=place.node.http_url)
        await all_handled(
            effects, before := publisher.published
        )  # what a service that leaves gives back loses its place
        await older.stop()  # whose code wants the queue otherwise
    async with effects.service(place.url, delivery_limit=30):
        async with publishing(place.url, before) as publisher:
            await eventually(lambda: publisher.published > before + 100, "more of them", 30)
        await all_handled(effects, wanted := publisher.published)

    assert len(steps) == 37
    assert not [step for step in steps if "LOST" in step]
    assert [each for each in left.changes if each.name.startswith(QUEUE)] == []
    assert set(effects.handled.values()) == {1}
    assert effects.tried == sorted(effects.tried)
    assert wanted > 1000


@pytest.mark.each_version
@pytest.mark.timeout(400)  # some forty processes, one after the other
async def test_a_classic_queue_becomes_a_quorum_queue_with_replicas_that_start_between_any_two_steps(
    place: Place,
) -> None:
    """The code wants a quorum queue, so its consumers stand still until the queue is being made anew."""
    async with shop(place.url):
        pass
    await place.node.adelete_queue(QUEUE, place.url)
    await place.declared(QUEUE, quorum=False)
    async with place.channel() as channel:
        queue = await channel.declare_queue(QUEUE, passive=True)
        for exchange, key in (("events", "stock.reserved"), ("events.due", "stock.reserved"), ("delay.due", QUEUE)):
            await queue.bind(exchange, key)
    effects, steps, started = Effects(), list[str](), 0

    async with AsyncExitStack() as replicas, publishing(place.url) as publisher:
        async for done in migrated(place, limit=50):
            assert done
            steps += done
            if len(steps) >= 4 * started + 2:
                started += 1
                await replicas.enter_async_context(effects.service(place.url))
        await all_handled(effects, publisher.published)
        left = await planned(shop(place.url), http=place.node.http_url)

    assert not [step for step in steps if "LOST" in step or "unbound again" in step]
    assert left.of("migrate") == ()
    assert set(effects.handled.values()) == {1}


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.each_version
async def test_a_second_one_at_the_same_queue_is_told_who_is_at_work(place: Place) -> None:
    async with shop(place.url):
        pass
    async with AsyncExitStack() as sites:
        bus = shop(place.url, delivery_limit=30)
        first, second = [await sites.enter_async_context(at_work(bus, place.node.http_url)) for _ in range(2)]
        await lock(first, Altering(first.connection), QUEUE)

        with pytest.raises(ConfigurationError, match=r"is being moved already, by \S+:\d+$") as refused:
            await lock(second, Altering(second.connection), QUEUE)

    assert str(os.getpid()) in str(refused.value)


async def test_consumers_that_would_not_take_part_are_named_and_nothing_is_changed(place: Place) -> None:
    async with shop(place.url):
        pass
    async with place.channel() as channel:
        await (await channel.declare_queue(QUEUE, passive=True)).consume(nobody)
        async with at_work(shop(place.url, delivery_limit=30), place.node.http_url) as site:
            async with asyncio.timeout(15):
                while not await consumers_of(site.management, QUEUE):
                    pass
            before = definitions(place.node)

            with pytest.raises(
                ConfigurationError, match=r"nothing was changed: it is consumed at 127\.0\.0\.1:"
            ) as refused:
                await outlook(site, QUEUE)

    assert "stop it" in str(refused.value)
    assert definitions(place.node) == before


@pytest.mark.parametrize("definition", ['{"overflow":"drop-head"}', '{"message-ttl":1000}', '{"max-length":1}'])
@pytest.mark.parametrize("pattern", ["^inventory.note$", "moving$"])
async def test_a_policy_that_would_take_something_away_is_refused(place: Place, definition: str, pattern: str) -> None:
    async with shop(place.url):
        pass
    await place.policy(definition, pattern)

    async with at_work(shop(place.url, delivery_limit=30), place.node.http_url) as site:
        with pytest.raises(ConfigurationError, match=r"nothing was changed: a policy would have 'inventory\.note"):
            await outlook(site, QUEUE)


async def test_a_queue_that_is_not_emptied_is_said_with_who_has_it_and_its_events_are_kept(place: Place) -> None:
    held = asyncio.Event()

    async def hangs(reserved: StockReserved) -> None:
        await held.wait()

    router = Router("inventory")
    router.on(StockReserved, name="note")(hangs)
    async with Bus(place.url, router, plugins=[DeadLetter(), Retry()], grace=0) as bus:
        await bus.publish(StockReserved("o-1"))
        await eventually(lambda: bus.load[QUEUE].running == 1, "the handler")
        async with at_work(shop(place.url, delivery_limit=30), place.node.http_url) as site:
            wanted = site.wanted.queue(QUEUE)
            assert wanted is not None

            with pytest.raises(BrokerError, match="is not empty after 7 s") as given_up:
                async for _ in migrate(site, wanted, within=7, interval=0.3):
                    pass
        await bus.publish(StockReserved("o-2"))
        waiting = await place.node.aqueue_counts(f"{QUEUE}.moving", place.url)

    assert f":{os.getpid()}. Nothing is lost" in str(given_up.value)
    assert "1 unacknowledged" in str(given_up.value)
    assert waiting.ready == 1


# --- the command -----------------------------------------------------------------------------------------------------

MODULE = """
import os
from tests.operating import shop

bus = shop(os.environ["AMQP_URL"], delivery_limit=30)
"""


async def test_the_command_asks_says_each_step_and_goes_on_when_its_connection_breaks(
    place: Place, tmp_path: Path
) -> None:
    async with shop(place.url):
        pass
    (tmp_path / "a_shop.py").write_text(MODULE)
    command = [sys.executable, "-m", "rabbitevents", "topology", "migrate", "a_shop:bus", QUEUE]
    told = {**environment(), "AMQP_URL": place.url, "PYTHONUNBUFFERED": "1"}
    http = ["--http", place.node.http_url]

    async def called(*words: str) -> tuple[int | None, str, str]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, *http, *words, cwd=tmp_path, env=told, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        printed: list[str] = []
        assert process.stdout is not None
        while line := (await process.stdout.readline()).decode():
            printed.append(line)
            if "switched: what comes" in line:
                await place.node.aclose_all_connections()
        _, errors = await process.communicate()
        return await process.wait(), "".join(printed), errors.decode()

    code, asked, refused = await called()
    done, printed, errors = await called("--yes")
    again, nothing, _ = await called("--yes")

    assert (code, done, again) == (2, 0, 0)
    assert asked.splitlines()[0].startswith(f"{QUEUE}: x-delivery-limit is 50, wanted is 30; 0 ready")
    assert "nobody is here to answer, and nothing was changed: say --yes" in refused
    assert "goes on when it can" in errors
    assert "switched back: what comes now waits in the new queue" in printed
    assert printed.splitlines()[-1].split("  ")[1].endswith(" s, 0 lost")
    assert nothing == f"{QUEUE} is as the bus wants it\n"
    assert "guest:guest" not in printed + errors


# --- limits that differ ----------------------------------------------------------------------------------------------


async def test_a_queue_that_differs_in_its_limits_alone_is_consumed_and_said_to_be_otherwise(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop(place.url):
        pass
    effects = Effects()

    async with effects.service(place.url, delivery_limit=30) as bus:
        await bus.publish(StockReserved("1"))
        await eventually(lambda: effects.handled["1"] == 1, "the event")
        problems = [(check.name, check.degraded) for check in bus.health().problems]

    assert problems == [(f"queue {QUEUE}", True)]
    said = [record.message for record in caplog.records if "is used as it stands" in record.message]
    assert len(said) == 1
    assert "x-delivery-limit is 50; rabbitevents topology migrate MODULE:BUS inventory.note makes it anew" in said[0]


@pytest.mark.parametrize("arguments", [{}, {"x-delivery-limit": 50}, {"x-dead-letter-exchange": "events.dead"}])
async def test_a_queue_that_differs_in_more_than_limits_is_not_consumed(
    place: Place, arguments: dict[str, object]
) -> None:
    await place.declared(QUEUE, arguments=arguments)
    effects = Effects()

    async with effects.service(place.url) as bus:
        await place.put(QUEUE)
        problems = [(check.name, check.degraded) for check in bus.health().problems]

    assert problems == [(f"consumer {QUEUE}", False)]
    assert (await place.node.aqueue_counts(QUEUE, place.url)).ready == 1

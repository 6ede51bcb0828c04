"""A store that is away, on the embedded broker: events wait, or go on unclaimed, and nothing is lost or repeated."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabbitevents import (
    Bus,
    Delivery,
)
from rabbitevents.facts import Duplicate, Forwarded
from rabbitevents.testing import EmbeddedBroker
from rabbitevents_idempotency import (
    Claim,
    Done,
    StoreBack,
    StoreLost,
    StoreUnavailableError,
    Unclaimed,
)
from tests.idempotent import KEEP, LEASE, Again, Shop, Switched, key_of, plain_message, twice, uuid_of
from tests.shop import OrderPlaced, eventually

# --- a store that is away --------------------------------------------------------------------------------------------


async def test_events_wait_for_a_store_that_is_away_and_go_on_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Switched()
    shop = Shop(store)

    async with shop.open() as probe:
        store.away.add("all")
        for number in range(30):
            await probe.bus.publish(OrderPlaced(f"o-{number}"))
        await eventually(lambda: not probe.bus.health().ok, "health to say so")
        await asyncio.sleep(1.5)
        (problem,) = probe.bus.health().problems
        started_meanwhile = dict(shop.starts)
        store.away.clear()
        await eventually(lambda: sum(shop.effects.values()) == 30, "all events", 5)
        await eventually(lambda: probe.bus.health().ok, "health to say that it is back")

    assert problem.name == "idempotency"
    assert not problem.degraded
    assert re.fullmatch(
        r"the Switched is out of reach for \d s, events wait: switched off; 10 wait now", problem.detail
    )
    assert started_meanwhile == {}
    assert set(shop.effects.values()) == {1}
    assert {delivery.attempt for delivery in shop.deliveries} == {1}
    assert shop.observing.of(Forwarded) == []
    assert caplog.text.count("out of reach") == 1
    assert caplog.text.count("answers again") == 1
    assert len(shop.observing.of(StoreLost)) == len(shop.observing.of(StoreBack)) == 1


async def test_a_lease_that_ended_while_the_store_was_away_is_taken_over_only_when_its_owner_had_time_to_be_heard() -> (
    None
):
    store = Switched()
    shop = Shop(store)
    heard, silent = plain_message("order-1", "heard"), plain_message("order-2", "silent")
    keys = [f"shop.record:{uuid_of(message)}" for message in (heard, silent)]

    async with shop.open() as probe:
        for key in keys:
            await store.memories[key].claim(key, "in another process", LEASE)
        store.away.add("all")
        await asyncio.gather(probe.bus.send(heard), probe.bus.send(silent))
        await eventually(lambda: not probe.bus.health().ok, "health to say that it is away")
        store.now += 2 * LEASE.total_seconds()
        store.away.clear()
        await eventually(lambda: len(shop.observing.of(Forwarded)) == 2, "both to be put off", 5)
        assert await store.memories[keys[0]].complete(keys[0], "in another process", KEEP)
        started_early = dict(shop.starts)
        while not shop.effects:
            await probe.advance(timedelta(seconds=1))
            await asyncio.sleep(0.2)

    assert started_early == {}
    assert shop.effects == {"silent": 1}
    assert len(shop.observing.of(Duplicate)) == 1


class Parted(Switched):
    """A store of parts: some keys cannot be asked for."""

    lost: frozenset[str] = frozenset()

    async def claim(self, key: str, owner: str, lease: timedelta, *, takeover: bool = True, digest: str = "") -> Claim:
        if key in self.lost:
            raise StoreUnavailableError("a part is away", partial=True)
        return await super().claim(key, owner, lease, takeover=takeover, digest=digest)

    async def look(self) -> Sequence[str]:
        if self.lost:
            raise StoreUnavailableError("a part is away", partial=True)
        return await super().look()


async def test_where_a_part_of_the_store_is_away_its_events_wait_at_the_broker_and_keep_no_worker() -> None:
    store = Parted()
    shop = Shop(store, lease=timedelta(seconds=1))
    lost = [plain_message(f"lost-{number}", f"lost-{number}") for number in range(30)]
    store.lost = frozenset(f"shop.record:{uuid_of(message)}" for message in lost)

    async with shop.open() as probe:
        for message in lost:
            await probe.bus.send(message)
        for number in range(30):
            await probe.bus.publish(OrderPlaced(f"o-{number}"))
        await eventually(lambda: len(shop.effects) == 30, "those that can be asked for")
        (problem,) = probe.bus.health().problems
        store.lost = frozenset()
        await eventually(lambda: probe.bus.health().ok, "health to see that it is back", 5)
        await probe.advance(timedelta(minutes=1))

    assert problem.detail.startswith("part of the Parted is out of reach")
    assert len(shop.effects) == 60
    assert set(shop.effects.values()) == {1}
    assert {delivery.attempt for delivery in shop.deliveries} == {1}
    assert len(shop.observing.of(StoreLost)) == 1


async def test_a_store_that_is_away_at_start_is_known_before_an_event_comes() -> None:
    store = Switched()
    store.away.add("all")
    shop = Shop(store)

    async with shop.open() as probe:
        at_start = probe.bus.health().ok
        store.away.clear()
        await eventually(lambda: probe.bus.health().ok, "health to see that it is back", 5)

    assert not at_start


async def test_before_the_broker_would_take_it_away_a_waiting_event_waits_at_the_broker() -> None:
    store = Switched()
    shop = Shop(store, lease=timedelta(seconds=1))
    shop.bus_options = {"consumer_timeout": timedelta(seconds=2)}

    async with shop.open() as probe:
        store.away.add("all")
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: bool(shop.observing.of(Forwarded)), "it to be sent on", 4)
        copies = [message for message in probe.messages if message.id == str(envelope.id)]
        await probe.settled()
        store.away.clear()
        await probe.advance(timedelta(minutes=10))

    assert copies[-1].headers["attempt"] == 1
    assert shop.effects == {"o-1": 1}


async def test_a_bus_that_stops_while_its_store_is_away_gives_events_back_at_once() -> None:
    store, broker = Switched(), EmbeddedBroker()
    shop = Shop(store)
    bus = Bus(broker.client(), shop.router, plugins=shop.plugins, grace=20)
    store.away.add("all")

    async with bus:
        await bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: not bus.health().ok, "health to say so")
        started = asyncio.get_running_loop().time()
    took = asyncio.get_running_loop().time() - started

    assert took < 4
    assert broker.queues["shop.record"].ready == 1
    assert shop.starts == {}


class Defective(Switched):
    """Its look fails as nobody expects."""

    looks = 0

    async def look(self) -> Sequence[str]:
        self.looks += 1
        if self.looks in (2, 3):
            raise KeyError("a store of somebody's own")
        return await super().look()


async def test_a_look_that_fails_as_nobody_expects_does_not_make_an_outage_last_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Defective()
    shop = Shop(store)

    async with shop.open() as probe:
        store.away.add("claim")
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: not probe.bus.health().ok, "health to say so")
        store.away.clear()
        await eventually(lambda: shop.effects["o-1"] == 1 and probe.bus.health().ok, "it to go on", 5)

    assert "looking for the Defective failed, which is a defect of it" in caplog.text


async def test_a_store_that_can_be_looked_at_and_fails_all_the_same_does_not_flap_faster_than_once_a_second() -> None:
    store = Switched()
    store.away.add("claim")
    shop = Shop(store)

    async with shop.open() as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await asyncio.sleep(3)
        lost = len(shop.observing.of(StoreLost))
        store.away.clear()
        await eventually(lambda: shop.effects["o-1"] == 1, "the effect", 5)

    assert 1 < lost <= 5


async def test_a_bus_that_has_stopped_leaves_no_task_that_looks() -> None:
    store, broker = Switched(), EmbeddedBroker()
    shop = Shop(store)
    store.away.add("all")

    async with Bus(broker.client(), shop.router, plugins=shop.plugins):
        during = {task.get_name() for task in asyncio.all_tasks()}

    assert "looking for the store" in during
    assert "looking for the store" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_by_choice_events_are_handled_without_a_claim_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    store = Switched()
    shop = Shop(store, when_unavailable="proceed")

    async with shop.open() as probe:
        store.away.add("all")
        for number in range(30):
            await probe.bus.publish(OrderPlaced(f"o-{number}"))
        await probe.settled()
        problem = probe.bus.health().problems[0]
        store.away.clear()
        await eventually(lambda: probe.bus.health().ok, "health to see that it is back", 5)
        await twice(probe.bus, "o-30")
        await probe.settled()
        await probe.advance(LEASE * 1.2)

    assert len(shop.effects) == 31
    assert set(shop.effects.values()) == {1}
    assert shop.plugin.unclaimed == len(shop.observing.of(Unclaimed)) == 30
    assert [delivery.fence for delivery in shop.deliveries[:30]] == [None] * 30
    assert shop.deliveries[30].fence is not None
    assert "events are handled without a claim" in problem.detail
    assert problem.degraded
    assert caplog.text.count("out of reach") == 1


async def test_what_was_handled_is_marked_when_the_store_is_back_and_only_then_acknowledged() -> None:
    store = Switched()

    async def go_away(order: OrderPlaced, delivery: Delivery) -> None:
        store.away.add("all")

    shop = Shop(store, work=go_away)

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: store.asked["complete"] > 2, "the completion to be insisted on", 5)
        unacknowledged = probe.waiting("shop.record")
        store.away.clear()
        await probe.settled()
        claim = await store.claim(key_of(envelope), "other", LEASE)

    assert unacknowledged == 1
    assert claim == Done()
    assert shop.effects == {"o-1": 1}


async def test_what_was_handled_and_cannot_be_marked_is_acknowledged_in_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Switched()
    store.away.add("complete")
    shop = Shop(store)
    shop.bus_options = {"consumer_timeout": timedelta(seconds=1)}

    async with shop.open() as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: shop.effects["o-1"] == 1, "the effect")
        await probe.settled()
        left = probe.waiting("shop.record")

    assert left == 0
    assert shop.starts == {"o-1": 1}
    assert "could not be marked" in caplog.text


async def test_an_attempt_that_failed_while_the_store_went_away_is_followed_by_the_next_when_it_is_back() -> None:
    store = Switched()

    async def fail_once(order: OrderPlaced, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            store.away.add("all")
            raise ValueError

    shop = Shop(store, work=fail_once, outer=[Again()])

    async with shop.open() as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: store.asked["release"] > 2, "the release to be insisted on")
        store.away.clear()
        await eventually(lambda: shop.effects["o-1"] == 1, "the second attempt", 5)

    assert shop.starts == {"o-1": 2}


async def test_a_release_that_fails_as_long_as_its_lease_keeps_no_failure_from_being_seen() -> None:
    store = Switched()
    store.away.add("release")

    async def fail(order: OrderPlaced, delivery: Delivery) -> None:
        raise ZeroDivisionError

    shop = Shop(store, work=fail, lease=timedelta(seconds=0.5))

    async with shop.open() as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: probe.bus.load["shop.record"].held == 1, "it to be held")
        (problem,) = [check for check in probe.bus.health().problems if check.name.startswith("subscription")]

    assert "ZeroDivisionError" in problem.detail


async def test_what_a_store_warns_of_is_logged_at_start(caplog: pytest.LogCaptureFixture) -> None:
    store = Switched()
    store.warnings = ("it may forget",)

    async with Shop(store).open():
        pass

    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == ["it may forget"]


# --- whatever happens ------------------------------------------------------------------------------------------------

Fault = Literal["fails", "store away before", "store away after", "loses its data"]
FAULTS: list[Fault] = ["fails", "store away before", "store away after", "loses its data"]
PLANS = st.lists(st.tuples(st.integers(1, 3), st.lists(st.sampled_from(FAULTS), max_size=2)), max_size=8)


@given(PLANS)
@settings(max_examples=40, deadline=None)
def test_every_event_has_one_effect_whatever_happens(plans: list[tuple[int, list[Fault]]]) -> None:
    asyncio.run(live_through(plans))


async def live_through(plans: list[tuple[int, list[Fault]]]) -> None:
    store = Switched()
    faults = {f"o-{number}": list(plan) for number, (_, plan) in enumerate(plans)}

    def come_back() -> None:
        store.away.clear()

    async def work(order: OrderPlaced, delivery: Delivery) -> None:
        fault = faults[order.order_id].pop() if faults[order.order_id] else None
        if fault == "fails":
            raise ValueError
        if fault == "store away after":
            store.away.add("all")
            asyncio.get_running_loop().call_later(0.01, come_back)
        if fault == "loses its data":
            store.memories.pop(f"shop.record:{delivery.id}", None)

    shop = Shop(store, work=work, outer=[Again()])
    async with shop.open() as probe:
        for number, (copies, plan) in enumerate(plans):
            if "store away before" in plan:
                store.away.add("all")
                asyncio.get_running_loop().call_later(0.01, come_back)
            envelope = await probe.bus.publish(OrderPlaced(f"o-{number}"))
            for _ in range(copies - 1):
                await probe.bus.publish(envelope)
        await probe.settled()
        for _ in range(3):
            store.now += LEASE.total_seconds() * 1.2
            await probe.advance(LEASE * 1.2)
        left = probe.waiting("shop.record")

    assert shop.effects == {f"o-{number}": 1 for number in range(len(plans))}
    assert left == 0

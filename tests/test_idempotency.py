"""The plugin on the embedded broker: one effect per event and handler, whatever comes twice, fails, waits or stops."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from attrs import frozen
from tenacity import stop_after_attempt, wait_exponential, wait_fixed

from rabbitevents import (
    Bus,
    ConfigurationError,
    Consume,
    Delivery,
    Limits,
    Plugin,
    Router,
    Settlement,
    event,
    forward,
)
from rabbitevents.facts import DeadLettered, Duplicate, Forwarded
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import (
    Acquired,
    Claim,
    Fenced,
    Idempotency,
    LeaseLost,
    MemoryStore,
)
from rabbitevents_retry import Retry
from tests.idempotent import KEEP, LEASE, Again, Shop, Switched, key_of, plain_message, twice, uuid_of
from tests.shop import OrderPlaced, eventually


@event("order.confirmed")
@frozen
class OrderConfirmed:
    order_id: str


# --- once ------------------------------------------------------------------------------------------------------------


async def test_an_event_that_comes_again_is_acknowledged_and_not_handled_again() -> None:
    shop = Shop(MemoryStore())

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        await probe.bus.publish(envelope)
        await probe.settled()
        left = probe.waiting("shop.record")

    assert shop.effects == {"o-1": 1}
    assert shop.observing.of(Duplicate) == [Duplicate("shop.record", "order.placed", str(envelope.id))]
    assert left == 0


async def test_each_handler_of_an_event_handles_it_once() -> None:
    router, effects = Router("shop"), Counter[str]()

    @router.on(OrderPlaced)
    async def one(order: OrderPlaced) -> None:
        effects["one"] += 1

    @router.on(OrderPlaced)
    async def other(order: OrderPlaced) -> None:
        effects["other"] += 1

    async with running(Bus("memory://", router, plugins=[Idempotency(MemoryStore())])) as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        await probe.bus.publish(envelope)
        await probe.settled()

    assert effects == {"one": 1, "other": 1}


async def test_what_a_handler_returned_is_published_once() -> None:
    async def confirm(order: OrderPlaced, delivery: Delivery) -> OrderConfirmed:
        return OrderConfirmed(order.order_id)

    shop = Shop(MemoryStore(), work=confirm)
    confirmations: list[str] = []

    @shop.router.on(OrderConfirmed)
    async def confirmed(confirmation: OrderConfirmed) -> None:
        confirmations.append(confirmation.order_id)

    async with shop.open() as probe:
        await twice(probe.bus, "o-1")
        await probe.settled()
        await probe.advance(LEASE * 2)
        published = probe.published(OrderConfirmed)

    assert published == [OrderConfirmed("o-1")]
    assert confirmations == ["o-1"]


async def test_an_id_that_is_no_uuid_is_the_same_event_each_time() -> None:
    shop = Shop(MemoryStore())

    async with shop.open() as probe:
        for _ in range(3):
            await probe.bus.send(plain_message("order-1", "o-1"))
            await probe.settled()

    assert shop.effects == {"o-1": 1}


async def test_an_id_is_the_same_in_capital_letters() -> None:
    shop = Shop(MemoryStore())
    id = "0193a1b2-7c1a-7e3b-9f00-0123456789ab"

    async with shop.open() as probe:
        for message_id in (id, id.upper(), id):
            await probe.bus.send(plain_message(message_id, "o-1"))
            await probe.settled()

    assert shop.effects == {"o-1": 1}


async def test_events_without_an_id_are_handled_as_often_as_they_come_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shop = Shop(MemoryStore())

    async with shop.open() as probe:
        for _ in range(3):
            await probe.bus.send(plain_message(None, "o-1"))
            await probe.settled()

    assert shop.effects == {"o-1": 3}
    assert [delivery.fence for delivery in shop.deliveries] == [None] * 3
    assert caplog.text.count("without an id") == 1


# --- the second while the first runs ---------------------------------------------------------------------------------


async def test_a_copy_that_comes_while_the_first_is_handled_comes_back_later_and_is_no_attempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_on = asyncio.Event()

    async def wait(order: OrderPlaced, delivery: Delivery) -> None:
        await go_on.wait()

    shop = Shop(MemoryStore(), work=wait)

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: shop.starts["o-1"] == 1, "the first")
        await probe.bus.publish(envelope)
        await eventually(lambda: bool(shop.observing.of(Forwarded)), "the copy to be sent on")
        copies = [message for message in probe.messages if message.id == str(envelope.id)]
        go_on.set()
        await probe.settled()
        duplicates_before = shop.observing.of(Duplicate)
        await probe.advance(LEASE * 1.2)
        left = probe.waiting("shop.record")

    (forwarded,) = shop.observing.of(Forwarded)
    assert isinstance(forwarded, Forwarded)
    assert 29 < forwarded.after <= 30
    assert copies[-1].headers["attempt"] == 1
    assert shop.effects == {"o-1": 1}
    assert duplicates_before == []
    assert len(shop.observing.of(Duplicate)) == 1
    assert left == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_of_fifty_copies_at_once_one_is_handled() -> None:
    shop = Shop(MemoryStore())

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await asyncio.gather(*(probe.bus.publish(envelope) for _ in range(49)))
        await probe.settled()
        await probe.advance(LEASE * 1.2)

    assert shop.starts == {"o-1": 1}
    assert len(shop.observing.of(Duplicate)) == 49


async def test_two_buses_that_share_a_store_and_a_queue_handle_an_event_once() -> None:
    store, broker = MemoryStore(), EmbeddedBroker()
    shops = [Shop(store), Shop(store)]
    one, other = (Bus(broker.client(), shop.router, plugins=shop.plugins) for shop in shops)

    async with one, other:
        envelope = await one.publish(OrderPlaced("o-1"))
        await asyncio.gather(*(bus.publish(envelope) for bus in (one, other) * 20))
        await eventually(
            lambda: sum(len(shop.observing.of(Duplicate, Forwarded)) for shop in shops) == 40, "the copies"
        )

    assert sum(shop.effects["o-1"] for shop in shops) == 1


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_failure_lets_the_next_attempt_begin_at_once_with_a_greater_fence() -> None:
    async def fail_twice(order: OrderPlaced, delivery: Delivery) -> None:
        if delivery.attempt < 3:
            raise ValueError("not yet")

    shop = Shop(MemoryStore(), work=fail_twice, outer=[Again()])

    async with shop.open() as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert (shop.starts, shop.effects) == ({"o-1": 3}, {"o-1": 1})
    fences = [delivery.fence or 0 for delivery in shop.deliveries]
    assert 0 < fences[0] < fences[1] < fences[2]
    assert shop.observing.of(Forwarded) == []


async def test_a_cancellation_that_a_handler_let_loose_is_a_failure_that_releases() -> None:
    async def cancel_once(order: OrderPlaced, delivery: Delivery) -> None:
        if len(shop.deliveries) == 1:
            raise asyncio.CancelledError

    shop = Shop(MemoryStore(), work=cancel_once)

    async with shop.open() as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: shop.effects["o-1"] == 1, "the second try of what was held", 5)

    assert shop.starts == {"o-1": 2}


class Interrupted(BaseException):
    """What some libraries end their work with."""


@pytest.mark.parametrize(
    "error",
    [ValueError(), asyncio.CancelledError(), TimeoutError(), Interrupted(), BaseExceptionGroup("", [Interrupted()])],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_fails_with_its_claim_is_released_and_the_next_attempt_finds_it_free(
    error: BaseException,
) -> None:
    async def fail(order: OrderPlaced, delivery: Delivery) -> None:
        if len(shop.deliveries) < 3:
            raise error

    retry = Retry(stop=stop_after_attempt(5), wait=wait_fixed(0.01))
    shop = Shop(MemoryStore(), work=fail, outer=[DeadLetter(), retry])

    async with shop.open() as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: shop.effects["o-1"] == 1, "the third attempt", 5)

    assert shop.starts == {"o-1": 3}
    assert shop.observing.of(Forwarded) == []


async def test_what_cannot_be_decoded_is_not_kept_from_a_handler_that_can() -> None:
    store = MemoryStore()
    shop = Shop(store)
    good = plain_message("order-1", "o-1")
    bad = msgspec.structs.replace(good, body=b"{")

    async with shop.open() as probe:
        await probe.bus.send(bad)
        await eventually(lambda: probe.bus.load["shop.record"].held == 1, "it to be held")
        claim = await store.claim(f"shop.record:{uuid_of(bad)}", "other", LEASE)

    assert isinstance(claim, Acquired)


class Postponing(Plugin):
    """Sends an event on once, from inside."""

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        if "postponed" in delivery.headers:
            return await proceed(delivery)
        later = delivery.replace(attempt=1, after=timedelta(seconds=1)).replace(headers={"postponed": True})
        return forward(later)


async def test_what_a_plugin_inside_puts_off_can_be_handled_when_it_comes_back() -> None:
    shop = Shop(MemoryStore())
    shop.plugins.append(Postponing())

    async with shop.open() as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        early = shop.effects["o-1"]
        await probe.advance(timedelta(seconds=2))

    assert early == 0
    assert shop.effects == {"o-1": 1}


# --- leases ----------------------------------------------------------------------------------------------------------


async def test_a_lease_is_renewed_through_a_handler_ten_times_as_long() -> None:
    lease = timedelta(seconds=0.3)

    async def long(order: OrderPlaced, delivery: Delivery) -> None:
        await asyncio.sleep(lease.total_seconds() * 10)

    shop = Shop(MemoryStore(), work=long, lease=lease)

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        while not shop.effects:
            await probe.bus.publish(envelope)
            await asyncio.sleep(0.05)
        await eventually(lambda: probe.bus.load["shop.record"].running == 0, "quiet")

    assert shop.starts == {"o-1": 1}
    assert shop.observing.of(LeaseLost) == []
    assert len(shop.observing.of(Forwarded)) > 20


class Renewing(Switched):
    """Notes which leases were renewed; ``meanwhile`` happens while a renewal is on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.renewed: Counter[str] = Counter()
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def renew(self, key: str, owner: str, lease: timedelta) -> bool:
        self.renewed[key] += 1
        if self.meanwhile is not None:
            await self.meanwhile()
        return await super().renew(key, owner, lease)


@pytest.mark.parametrize("end", ["done", "failed", "put off"])
async def test_a_lease_is_not_renewed_once_its_handling_has_ended(end: str) -> None:
    store, over = Renewing(), asyncio.Event()

    async def work(order: OrderPlaced, delivery: Delivery) -> None:
        await (over.wait() if order.order_id == "long" else asyncio.sleep(0))
        if order.order_id != "long" and end == "failed":
            raise ValueError

    shop = Shop(store, work=work, lease=timedelta(seconds=0.3))
    if end == "put off":
        shop.plugins.append(PuttingOff("long"))

    async with shop.open() as probe:
        long = key_of(await probe.bus.publish(OrderPlaced("long")))
        short = key_of(await probe.bus.publish(OrderPlaced("short")))
        await eventually(lambda: probe.bus.load["shop.record"].running == 1, "the short one's end")
        renewed, rounds = store.renewed[short], store.renewed[long]
        await eventually(lambda: store.renewed[long] >= rounds + 3, "the long one's renewals")
        assert store.renewed[short] == renewed
        over.set()


class PuttingOff(Plugin):
    """Puts off every order but one, as a plugin inside may."""

    def __init__(self, taken: str) -> None:
        self._taken = taken

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        if self._taken.encode() in delivery.body:
            return await proceed(delivery)
        return forward(delivery.replace(attempt=1, after=timedelta(hours=1)))


async def test_a_lease_that_a_renewal_does_not_find_because_its_handling_has_failed_meanwhile_is_not_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, fail = Renewing(), asyncio.Event()

    async def work(order: OrderPlaced, delivery: Delivery) -> None:
        await fail.wait()
        raise ValueError

    shop = Shop(store, work=work, lease=timedelta(seconds=0.3))
    answered = asyncio.Event()

    async with shop.open() as probe:

        async def fails_meanwhile() -> None:
            store.meanwhile = None
            fail.set()
            await eventually(lambda: probe.bus.load["shop.record"].running == 0, "the failure")
            asyncio.get_running_loop().call_later(0.05, answered.set)  # the answer is looked at when all have answered

        store.meanwhile = fails_meanwhile
        await probe.bus.publish(OrderPlaced("o-1"))
        await answered.wait()

    assert sum(store.renewed.values()) == 1
    assert shop.observing.of(LeaseLost) == []
    assert "passed to another" not in caplog.text


async def test_a_store_with_a_defect_does_not_end_the_renewing(caplog: pytest.LogCaptureFixture) -> None:
    store, over = Renewing(), asyncio.Event()

    async def defective() -> None:
        store.meanwhile = None
        raise KeyError("a store of somebody's own")

    async def work(order: OrderPlaced, delivery: Delivery) -> None:
        await over.wait()

    store.meanwhile = defective
    shop = Shop(store, work=work, lease=timedelta(seconds=0.3))

    async with shop.open() as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: sum(store.renewed.values()) >= 3, "renewals after the defect")
        over.set()
        await eventually(lambda: bool(shop.effects), "the effect")

    assert shop.observing.of(LeaseLost, Fenced) == []
    assert "renewing leases failed" in caplog.text


async def test_a_bus_that_has_stopped_leaves_no_task_that_renews() -> None:
    shop = Shop(MemoryStore())

    async with shop.open():
        names = {task.get_name() for task in asyncio.all_tasks()}

    assert "renewing leases" in names
    assert "renewing leases" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_what_is_too_large_to_be_kept_is_not_claimed_and_goes_where_the_broker_takes_it(rabbit_url: str) -> None:
    store = Switched()
    router = Router("shop")
    handled: list[str] = []

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        handled.append(order.order_id)

    plugins: list[Plugin] = [DeadLetter(), Idempotency(store)]
    async with (
        Bus(rabbit_url, name="publisher") as publisher,
        Bus(rabbit_url, router, plugins=plugins, limits=Limits(body=100)) as bus,
    ):
        await publisher.publish(OrderPlaced("o" * 200))
        await publisher.publish(OrderPlaced("o-1"))
        await eventually(lambda: handled == ["o-1"], "the other one")
        await arrived(bus, "shop.record.dead")

    assert store.asked["claim"] == 1


async def arrived(bus: Bus, queue: str) -> None:
    """Wait until there is a message in ``queue``."""
    end = asyncio.get_running_loop().time() + 10
    while (depth := await bus.depth(queue)) is None or not depth.ready:
        assert asyncio.get_running_loop().time() < end, f"nothing came to {queue}"
        await asyncio.sleep(0.01)


async def test_a_handler_whose_claim_passed_to_another_cannot_complete(caplog: pytest.LogCaptureFixture) -> None:
    store, go_on = Switched(), asyncio.Event()

    async def wait(order: OrderPlaced, delivery: Delivery) -> None:
        await go_on.wait()

    lease = timedelta(seconds=0.3)
    shop = Shop(store, work=wait, lease=lease)

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: shop.starts["o-1"] == 1, "the handler")
        store.now += 60  # nothing was renewed for a minute
        other = await store.memories[key_of(envelope)].claim(key_of(envelope), "other", lease * 1000)
        await eventually(lambda: bool(shop.observing.of(LeaseLost)), "the loss to be noticed")
        go_on.set()
        await eventually(lambda: bool(shop.observing.of(Fenced)), "the completion to be refused")
        await eventually(lambda: bool(shop.observing.of(Forwarded)), "the event to come back later")
        assert await store.memories[key_of(envelope)].complete(key_of(envelope), "other", KEEP)
        await probe.advance(timedelta(seconds=2))
        left = probe.waiting("shop.record")

    assert isinstance(other, Acquired)
    assert other.fence > (shop.deliveries[0].fence or 0)
    assert shop.starts == {"o-1": 1}
    assert len(shop.observing.of(Duplicate)) == 1
    assert left == 0
    assert "is handled, and its claim passed to another" in caplog.text
    assert "was handled after its claim had passed to another" in caplog.text


async def test_a_store_that_lost_its_data_meanwhile_costs_no_second_effect() -> None:
    store, go_on = Switched(), asyncio.Event()

    async def wait(order: OrderPlaced, delivery: Delivery) -> None:
        await go_on.wait()

    shop = Shop(store, work=wait)

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: shop.starts["o-1"] == 1, "the handler")
        store.memories.clear()
        go_on.set()
        await probe.settled()
        await probe.bus.publish(envelope)
        await probe.settled()

    assert shop.starts == {"o-1": 1}
    assert len(shop.observing.of(Duplicate)) == 1


# --- stopping --------------------------------------------------------------------------------------------------------


async def test_a_handler_that_a_stop_cuts_short_leaves_no_claim_behind() -> None:
    store, broker = MemoryStore(), EmbeddedBroker()

    async def hang(order: OrderPlaced, delivery: Delivery) -> None:
        await asyncio.sleep(60)

    shop = Shop(store, work=hang)
    bus = Bus(broker.client(), shop.router, plugins=shop.plugins, grace=0.1)

    async with bus:
        envelope = await bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: shop.starts["o-1"] == 1, "the handler")

    assert broker.queues["shop.record"].ready == 1
    assert isinstance(await store.claim(key_of(envelope), "other", LEASE), Acquired)


class Hasty(Plugin):
    """Waits for a moment only, from outside."""

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        async with asyncio.timeout(0.1):
            return await proceed(delivery)


class Slow(MemoryStore):
    """Answers a claim and a completion late: they were made long before."""

    async def claim(self, key: str, owner: str, lease: timedelta, *, takeover: bool = True, digest: str = "") -> Claim:
        claim = await super().claim(key, owner, lease, takeover=takeover, digest=digest)
        await asyncio.sleep(0.5)
        return claim

    async def complete(self, key: str, owner: str, keep: timedelta) -> bool:
        completed = await super().complete(key, owner, keep)
        await asyncio.sleep(0.5)
        return completed


async def test_a_renewal_that_comes_after_the_completion_is_no_loss() -> None:
    shop = Shop(Slow(), lease=timedelta(seconds=0.3))

    async with shop.open() as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert shop.effects == {"o-1": 1}
    assert shop.observing.of(LeaseLost, Fenced, Forwarded) == []


async def test_a_claim_that_was_made_for_somebody_who_is_gone_is_released() -> None:
    store = Slow()
    shop = Shop(store, outer=[Hasty()])

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: probe.bus.load["shop.record"].held == 1, "the waiting to be over")
        end = asyncio.get_running_loop().time() + 5  # the release is on its way when the delivery is held already
        while not isinstance(await MemoryStore.claim(store, key_of(envelope), "other", LEASE), Acquired):
            assert asyncio.get_running_loop().time() < end, "the claim was never released"
            await asyncio.sleep(0.01)

    assert shop.starts == {}


# --- with the others ------------------------------------------------------------------------------------------------


async def test_with_retry_and_dead_letters_attempts_are_counted_and_a_replay_is_handled() -> None:
    is_broken = True

    async def fail(order: OrderPlaced, delivery: Delivery) -> None:
        if is_broken:
            raise ValueError("broken")

    retry = Retry(stop=stop_after_attempt(4), wait=wait_exponential(multiplier=0.01, exp_base=200))
    shop = Shop(MemoryStore(), work=fail, outer=[DeadLetter(), retry])

    async with shop.open() as probe:
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        await probe.bus.publish(envelope)  # a copy, while the event waits for its third attempt
        await probe.settled()
        for _ in range(20):
            await probe.advance(timedelta(seconds=30))
        starts, dead = shop.starts["o-1"], probe.waiting("shop.record.dead")
        is_broken = False
        await probe.bus.publish(envelope)  # replayed
        await probe.settled()
        await probe.bus.publish(envelope)  # and again
        await probe.settled()

    assert starts == 8  # each copy has its own four attempts
    assert dead == 2
    assert shop.effects == {"o-1": 1}
    assert len(shop.observing.of(Duplicate)) == 1


# --- what crashes ----------------------------------------------------------------------------------------------------


async def abandon(store: Switched, key: str, times: int) -> None:
    """Leave a key as owners do that crash, one after the other."""
    for number in range(times):
        await store.memories[key].claim(key, f"crashed-{number}", LEASE)
        store.now += LEASE.total_seconds() + 1


async def test_an_event_that_was_abandoned_too_often_goes_to_its_dead_letter_queue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Switched()
    shop = Shop(store, abandoned=5)

    async with shop.open() as probe:
        dead, alive = plain_message("order-dead", "dead"), plain_message("order-alive", "alive")
        await abandon(store, f"shop.record:{uuid_of(dead)}", 5)
        await abandon(store, f"shop.record:{uuid_of(alive)}", 4)
        await probe.bus.send(dead)
        await probe.bus.send(alive)
        await probe.settled()
        dead_letters = probe.waiting("shop.record.dead")
        await probe.bus.send(dead)  # replayed
        await probe.settled()

    assert dead_letters == 1
    assert shop.effects == {"alive": 1, "dead": 1}
    (fact,) = shop.observing.of(DeadLettered)
    assert fact == DeadLettered("shop.record", "order.placed", uuid_of(dead), 1, "AbandonedError")
    assert "its handling was abandoned 5 times, by a crash or a standstill" in caplog.text


@pytest.mark.parametrize("abandoned", [1, 2, 3, 4])
async def test_an_event_is_given_up_on_after_as_many_crashes_as_was_said_be_they_few(abandoned: int) -> None:
    store = Switched()
    shop = Shop(store, abandoned=abandoned)

    async with shop.open() as probe:
        for times in (abandoned - 1, abandoned):
            message = plain_message(f"order-{times}", f"o-{times}")
            await abandon(store, f"shop.record:{uuid_of(message)}", times)
            await probe.bus.send(message)
            await probe.settled()
        dead_letters = probe.waiting("shop.record.dead")

    assert dead_letters == 1
    assert shop.effects == {f"o-{abandoned - 1}": 1}


async def test_of_events_that_may_be_what_crashes_the_process_one_runs_at_a_time() -> None:
    store, at_once, most = Switched(), 0, 0

    async def count(order: OrderPlaced, delivery: Delivery) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.05)
        at_once -= 1

    shop = Shop(store, work=count)
    suspects = [plain_message(f"order-{number}", f"o-{number}") for number in range(4)]

    async with shop.open() as probe:
        for suspect in suspects:
            await abandon(store, f"shop.record:{uuid_of(suspect)}", 3)
        for suspect in suspects:
            await probe.bus.send(suspect)
        await probe.settled()
        at_first = sum(shop.effects.values())
        await probe.advance(timedelta(minutes=5))

    assert at_first == 1
    assert most == 1
    assert set(shop.effects.values()) == {1}
    assert len(shop.effects) == 4


# --- at start --------------------------------------------------------------------------------------------------------


def test_it_must_stand_inside_a_retry() -> None:
    with pytest.raises(ConfigurationError, match=r"write plugins=\[Again\(\), Idempotency\(\)\]"):
        Bus("memory://", plugins=[Idempotency(MemoryStore()), Again()])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"store": "redis://localhost"}, "RedisStore"),
    ({"lease": timedelta(0)}, "lease"),
    ({"keep": timedelta(seconds=1)}, "keep"),
    ({"when_unavailable": "open"}, "'wait' or 'proceed'"),
    ({"abandoned": 0}, "abandoned=0"),
]


@pytest.mark.parametrize(("told", "said"), WRONG)
def test_what_cannot_work_is_said_at_once(told: dict[str, Any], said: str) -> None:
    store = told.get("store", MemoryStore())
    options = {name: value for name, value in told.items() if name != "store"}

    with pytest.raises(ConfigurationError, match=said):
        Idempotency(store, **options)


def test_a_bus_that_has_not_started_says_nothing_of_the_store() -> None:
    bus = Bus("memory://", plugins=[Idempotency(MemoryStore())])

    assert "idempotency" not in {check.name for check in bus.health().checks}

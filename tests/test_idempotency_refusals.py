"""What Redis refuses: a key, a user, or everything; each is said as what it is, and stops no more than that."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib import metadata
from typing import Any, Final
from uuid import uuid4

import msgspec
import pytest
from redis.asyncio import Redis, RedisCluster

from rabbitevents import Bus, ConfigurationError, Router
from rabbitevents.facts import DeadLettered, Duplicate
from rabbitevents.testing import Probe
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import (
    Acquired,
    Done,
    Idempotency,
    RedisStore,
    StoreBack,
    StoreForbiddenError,
    StoreLost,
    StoreUnavailableError,
)
from tests.bed.loopback import LOOPBACK
from tests.bed.redis import ON_DISK, RedisServer
from tests.bed.redis import shards as redis_shards
from tests.idempotent import KEEP, LEASE, Shop, once_it_answers
from tests.shop import OrderPlaced, eventually

LOOKS = 400


@asynccontextmanager
async def service(client: Any, **told: Any) -> AsyncGenerator[tuple[Shop, Probe]]:
    """A shop on the embedded broker, whose store is in Redis."""
    shop = Shop(RedisStore(client), outer=[DeadLetter()], **told)
    async with shop.open() as probe:
        yield shop, probe


async def looks(bus: Bus) -> list[bool]:
    """Look 400 times, in four seconds, whether the store is well."""
    seen: list[bool] = []
    for _ in range(LOOKS):
        seen += [check.ok for check in bus.health().checks if check.name == "idempotency"]
        await asyncio.sleep(0.01)
    return seen


# --- a key ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "list", "claimed-1-2-3-almost"])
async def test_a_key_that_holds_something_else_fails_its_event_alone(
    kind: str, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    bad = uuid4()
    key = f"rabbitevents:shop.record:{bad}"
    async with Redis(port=redis_server.port) as client, service(client) as (shop, probe):
        redis_server.command("RPUSH" if kind == "list" else "SET", key, "mine" if kind == "text" else kind)
        envelope = await probe.bus.publish(OrderPlaced("o-0"))
        looking = asyncio.create_task(looks(probe.bus))
        await probe.bus.publish(msgspec.structs.replace(envelope, id=bad, payload=OrderPlaced("bad")))
        for number in range(1, 60):
            await probe.bus.publish(OrderPlaced(f"o-{number}"))
        seen = await looking
        dead = probe.waiting("shop.record.dead")

    assert set(seen) == {True}
    assert shop.effects == {f"o-{number}": 1 for number in range(60)}
    assert dead == 1
    (fact,) = shop.observing.of(DeadLettered)
    assert isinstance(fact, DeadLettered)
    assert fact.reason == "KeyRefusedError"
    assert shop.observing.of(StoreLost, StoreBack) == []
    assert [each for each in caplog.records if each.name == "rabbitevents.idempotency" and each.levelno > 20] == []


async def test_a_key_that_is_taken_while_its_handler_runs_keeps_no_event_from_being_acknowledged(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with Redis(port=redis_server.port) as client:

        async def take_key(order: OrderPlaced, delivery: Any) -> None:
            await client.set(f"rabbitevents:shop.record:{delivery.id}", "mine")

        async with service(client, work=take_key) as (shop, probe):
            await probe.bus.publish(OrderPlaced("o-1"))
            await probe.settled()
            left = probe.waiting("shop.record"), probe.waiting("shop.record.dead")

    assert shop.effects == {"o-1": 1}
    assert left == (0, 0)
    assert "could not be marked" in caplog.text


async def test_a_prefix_that_somebody_else_uses_is_a_mistake(redis_server: RedisServer) -> None:
    redis_server.command("SET", "rabbitevents:probe", "mine")
    async with Redis(port=redis_server.port) as client:
        bus = Bus("memory://", Router("shop"), plugins=[Idempotency(RedisStore(client))])

        with pytest.raises(ConfigurationError, match="give RedisStore a prefix= that nobody else uses"):
            await bus.start()

        assert await client.get("rabbitevents:probe") == b"mine"


# --- a user -----------------------------------------------------------------------------------------------------------

RIGHTS = ("+eval", "+evalsha", "+get", "+set", "+time")
"""What `docs/howto/idempotency.md` lists."""


def allow(server: RedisServer, *rights: str, keys: str = "~rabbitevents:*") -> None:
    server.command("ACL", "SETUSER", "app", "reset", "on", ">secret", keys, *rights)


def app(server: RedisServer, password: str = "secret") -> Redis:
    return Redis(port=server.port, username="app", password=password)


async def test_the_rights_that_are_listed_are_enough(redis_server: RedisServer) -> None:
    allow(redis_server, *RIGHTS)
    async with app(redis_server) as client, service(client) as (shop, probe):
        envelope = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        redis_server.command("SCRIPT", "FLUSH")
        await probe.bus.publish(envelope)
        await probe.bus.publish(OrderPlaced("o-2"))
        await probe.settled()
        healthy = probe.bus.health().ok

    assert healthy
    assert shop.effects == {"o-1": 1, "o-2": 1}
    assert len(shop.observing.of(Duplicate)) == 1


async def start(client: Redis) -> str:
    """Return why a bus does not start."""
    async with client:
        bus = Bus("memory://", Router("shop"), plugins=[Idempotency(RedisStore(client))])
        with pytest.raises(ConfigurationError, match=r"Idempotency\(RedisStore\): Redis does not let this user") as no:
            await bus.start()
    return str(no.value)


@pytest.mark.parametrize("missing", RIGHTS)
async def test_a_user_without_one_of_them_cannot_start(missing: str, redis_server: RedisServer) -> None:
    allow(redis_server, *(right for right in RIGHTS if right != missing))

    said = await start(app(redis_server))

    assert "permission" in said or "can't run this command" in said


async def test_a_user_of_other_keys_cannot_start(redis_server: RedisServer) -> None:
    allow(redis_server, *RIGHTS, keys="~other:*")

    said = await start(app(redis_server))

    assert re.search("access (a key|one of the keys)", said)  # Redis 8, Redis 7


async def test_a_wrong_password_is_a_mistake_and_is_not_repeated(redis_server: RedisServer) -> None:
    allow(redis_server, *RIGHTS)

    said = await start(app(redis_server, password="hunter2"))

    assert "AuthenticationError" in said
    assert "hunter2" not in said


async def test_no_password_where_one_is_needed_is_a_mistake(redis_server: RedisServer) -> None:
    redis_server.command("CONFIG", "SET", "requirepass", "secret")

    assert "uthentication" in await start(Redis(port=redis_server.port))


async def test_a_password_that_is_changed_while_the_bus_runs_is_an_outage(redis_server: RedisServer) -> None:
    allow(redis_server, *RIGHTS)
    async with app(redis_server) as client, service(client) as (shop, probe):
        redis_server.command("ACL", "SETUSER", "app", "-set")
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: not probe.bus.health().ok, "health to say so")
        seen = await looks(probe.bus)
        (problem,) = probe.bus.health().problems
        redis_server.command("ACL", "SETUSER", "app", "+set")
        await eventually(lambda: shop.effects["o-1"] == 1 and probe.bus.health().ok, "it to go on", 5)

    assert set(seen) == {False}
    assert "Redis does not let this user do it" in problem.detail
    assert shop.effects == {"o-1": 1}


# --- the server -------------------------------------------------------------------------------------------------------

Change = Callable[[RedisServer], Awaitable[object]]


async def fill(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "maxmemory", "1kb")


async def empty(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "maxmemory", "0")


async def follow(server: RedisServer) -> None:
    server.command("REPLICAOF", LOOPBACK, "1")


async def follow_strictly(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "replica-serve-stale-data", "no")
    await follow(server)


async def lead(server: RedisServer) -> None:
    server.command("REPLICAOF", "NO", "ONE")


async def kill(server: RedisServer) -> None:
    server.kill()


async def suspend(server: RedisServer) -> None:
    server.suspend()


async def resume(server: RedisServer) -> None:
    server.resume()


OUTAGES: list[tuple[Change, Change, str]] = [
    (fill, empty, "maxmemory"),
    (follow, lead, "read only replica"),
    (follow_strictly, lead, "MASTER is down"),
    (kill, RedisServer.astart, "onnect"),
    (suspend, resume, "no answer within 2 s"),
]


@pytest.mark.parametrize(("go_away", "come_back", "said"), OUTAGES, ids=[each[0].__name__ for each in OUTAGES])
async def test_a_server_that_cannot_write_is_away_until_it_can_and_nothing_flaps(
    go_away: Change, come_back: Change, said: str
) -> None:
    with RedisServer(**ON_DISK) as server:
        async with Redis(port=server.port) as client, service(client) as (shop, probe):
            done = await probe.bus.publish(OrderPlaced("done"))
            await probe.settled()
            await go_away(server)
            for number in range(5):
                await probe.bus.publish(OrderPlaced(f"o-{number}"))
            await eventually(lambda: not probe.bus.health().ok, "health to say so", 5)
            await probe.bus.publish(done)
            seen = await looks(probe.bus)
            (problem,) = probe.bus.health().problems
            started = dict(shop.starts)
            await come_back(server)
            await eventually(lambda: len(shop.effects) == 6 and probe.bus.health().ok, "it to go on", 8)
            seen_after = await looks(probe.bus)
            await probe.settled()
            dead = probe.waiting("shop.record.dead")

    assert set(seen) == {False}
    assert set(seen_after) == {True}
    assert said in problem.detail
    assert started == {"done": 1}
    assert set(shop.effects.values()) == {1}
    assert dead == 0
    assert len(shop.observing.of(StoreLost)) == len(shop.observing.of(StoreBack)) == 1
    assert len(shop.observing.of(Duplicate)) == 1


async def test_a_full_redis_still_knows_what_was_done_and_is_away_all_the_same(redis_server: RedisServer) -> None:
    async with Redis(port=redis_server.port) as client, service(client) as (shop, probe):
        done = await probe.bus.publish(OrderPlaced("done"))
        await probe.settled()
        await fill(redis_server)
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: not probe.bus.health().ok, "health to say so")
        looking = asyncio.create_task(looks(probe.bus))
        for _ in range(20):
            await probe.bus.publish(done)
            await asyncio.sleep(0.05)
        await eventually(lambda: len(shop.observing.of(Duplicate)) == 20, "the copies to be acknowledged")
        seen = await looking
        await empty(redis_server)

    assert set(seen) == {False}


# --- one of three -----------------------------------------------------------------------------------------------------


FORGETS: Final = metadata.version("redis").startswith(("7.2.", "7.3.", "7.4."))
leaves_connections = pytest.mark.filterwarnings(
    *(["ignore:.*(ClusterNode|Connection|StreamWriter|Transport).__del__"] if FORGETS else [])
)
"""Marks a test whose client asks for the cluster's nodes anew: redis-py 7.2 to 7.4 forgets connections then."""


@pytest.fixture
async def shards() -> AsyncIterator[list[RedisServer]]:
    """A cluster of three."""
    with redis_shards() as servers:
        yield servers
    gc.collect()  # what a client forgot is said within the test that used it


async def all_back(shop: Shop, probe: Probe, effects: int) -> None:
    """Let time pass at the broker, where some wait, until all had their effect."""
    end = asyncio.get_running_loop().time() + 10
    while len(shop.effects) < effects:
        assert asyncio.get_running_loop().time() < end, f"{len(shop.effects)} effects"
        await probe.advance(timedelta(seconds=30))
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("waits", [True, False], ids=["wait", "proceed"])
async def test_a_shard_that_hangs_stops_its_own_keys_and_no_others(shards: list[RedisServer], waits: bool) -> None:
    hung = shards[1]
    async with RedisCluster(host=LOOPBACK, port=shards[0].port) as client:
        when_unavailable = "wait" if waits else "proceed"
        async with service(client, lease=timedelta(seconds=3), when_unavailable=when_unavailable) as (shop, probe):
            for number in range(30):
                await probe.bus.publish(OrderPlaced(f"before-{number}"))
            await probe.settled()
            hung.suspend()
            events = [await probe.bus.publish(OrderPlaced(f"o-{number}")) for number in range(300)]
            keys = {e.payload.order_id: client.keyslot(f"rabbitevents:shop.record:{e.id}") for e in events}
            others = {order for order, slot in keys.items() if not 5461 <= slot <= 10922}
            await eventually(lambda: others <= shop.effects.keys(), "the keys of the others", 20)
            await eventually(lambda: not probe.bus.health().ok, "health to say so")
            seen = await looks(probe.bus)
            (problem,) = probe.bus.health().problems
            early = set(shop.effects) - {f"before-{number}" for number in range(30)}
            hung.resume()
            await eventually(lambda: probe.bus.health().ok, "health to see that it is back", 5)
            await all_back(shop, probe, 330)

    assert 100 < len(others) < 250
    assert set(seen) == {False}
    assert "part of the RedisStore is out of reach" in problem.detail
    assert early == (others if waits else set(keys))
    assert shop.plugin.unclaimed == (0 if waits else 300 - len(others))
    assert len(shop.effects) == 330
    assert set(shop.effects.values()) == {1}
    assert len(shop.observing.of(StoreLost)) == 1


@leaves_connections
async def test_a_shard_that_is_killed_stops_its_own_keys_and_no_others(shards: list[RedisServer]) -> None:
    async with RedisCluster(host=LOOPBACK, port=shards[0].port) as client:
        store = RedisStore(client)
        await store.look()
        shards[2].kill()
        keys = [f"key-{number}" for number in range(90)]

        claims = await asyncio.gather(*(store.claim(key, "one", LEASE) for key in keys), return_exceptions=True)
        again = await asyncio.gather(*(store.claim(key, "one", LEASE) for key in keys), return_exceptions=True)

        with pytest.raises(StoreUnavailableError) as trouble:
            await store.look()
        await shards[2].astart()
        await once_it_answers(store.look)
        await once_it_answers(lambda: asyncio.gather(*(store.claim(key, "one", LEASE) for key in keys)))

    for each in (claims, again):
        lost = [client.keyslot(f"rabbitevents:{k}") > 10922 for k in keys]
        assert [isinstance(claim, Acquired) for claim in each] == [not is_lost for is_lost in lost]
        assert all(isinstance(claim, StoreUnavailableError | Acquired) for claim in each)
    assert trouble.value.partial


@leaves_connections
async def test_a_cluster_s_user_needs_two_rights_more(shards: list[RedisServer]) -> None:
    for server in shards:
        allow(server, *RIGHTS, "+cluster|slots", "+command")
    async with RedisCluster(host=LOOPBACK, port=shards[0].port, username="app", password="secret") as client:
        store = RedisStore(client)
        await store.look()

        assert all([isinstance(await store.claim(f"k-{n}", "one", LEASE), Acquired) for n in range(20)])
        assert await store.complete("k-5", "one", KEEP)
        assert await store.claim("k-5", "other", LEASE) == Done()
        allow(shards[1], "+eval", "+evalsha", "+cluster|slots", "+command")
        with pytest.raises(StoreForbiddenError):
            await store.look()

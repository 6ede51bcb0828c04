"""The stores: one suite and one model for both, and what each does besides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Literal, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from rabbitevents import ConfigurationError
from rabbitevents_idempotency import Acquired, Busy, Claim, Conflict, Done, MemoryStore, RedisStore, Store
from rabbitevents_idempotency.store import UNFINISHED
from rabbitevents_idempotency.testing import KEEP, LEASE, Bench, StoreConformance
from tests.bed.redis import RedisServer


class MemoryBench:
    def __init__(self) -> None:
        self.now = 0.0
        self.store = MemoryStore(clock=self.clock)

    def clock(self) -> float:
        return self.now

    async def let_pass(self, time: timedelta) -> None:
        self.now += time.total_seconds()

    async def lose(self) -> None:
        self.store = MemoryStore(clock=self.clock)


PASS_TIME = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local ttl = redis.call('PTTL', key) - ARGV[1]
  local state, fence, abandoned, till, rest = redis.call('GET', key):match('^(%a+) (%d+) (%d+) (%d+) (.*)$')
  local older = math.max(0, till - ARGV[1])
  local record = string.format('%s %.0f %.0f %.0f %s', state, fence, abandoned, older, rest)
  if ttl > 0 then redis.call('SET', key, record, 'PX', ttl) else redis.call('DEL', key) end
end
"""
"""Redis's clock cannot be set: every record is made to look older instead."""


class RedisBench:
    def __init__(self, server: RedisServer, client: Redis) -> None:
        self.server = server
        self.client = client
        self.store = RedisStore(client)

    async def let_pass(self, time: timedelta) -> None:
        await self.client.eval(PASS_TIME, 0, str(int(time / timedelta(milliseconds=1))))

    async def lose(self) -> None:
        self.server.flush()


@asynccontextmanager
async def redis_bench(server: RedisServer) -> AsyncGenerator[RedisBench]:
    async with Redis(port=server.port) as client:
        yield RedisBench(server, client)


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def bench(self) -> MemoryBench:
        return MemoryBench()


class TestRedisStore(StoreConformance):
    @pytest.fixture
    async def bench(self, redis_server: RedisServer) -> AsyncIterator[RedisBench]:
        async with redis_bench(redis_server) as bench:
            yield bench


# --- the model -------------------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """What the model knows of a key, with the time that is left."""

    state: Literal["claimed", "free", "done"]
    owner: str
    lease: timedelta
    abandoned: int
    memory: timedelta


class Model:
    """What a store should do, said as simply as possible."""

    def __init__(self) -> None:
        self.keys: dict[str, Known] = {}
        self.fences: dict[str, int] = {}

    def claim(self, key: str, owner: str, lease: timedelta, *, takeover: bool) -> tuple[str, int]:
        known = self.keys.get(key)
        if known is not None and known.state == "done":
            return "done", 0
        abandoned = known.abandoned if known is not None else 0
        if known is not None and known.state == "claimed" and known.owner != owner:
            if known.lease > timedelta() or not takeover:
                return "busy", 0
            abandoned += 1
        self.keys[key] = Known("claimed", owner, lease, abandoned, UNFINISHED)
        return "acquired", abandoned

    def is_owner(self, key: str, owner: str, *states: str) -> bool:
        known = self.keys.get(key)
        return known is None or (known.owner == owner and known.state in states)

    def renew(self, key: str, owner: str, lease: timedelta) -> bool:
        if not self.is_owner(key, owner, "claimed"):
            return False
        abandoned = self.keys[key].abandoned if key in self.keys else 0
        self.keys[key] = Known("claimed", owner, lease, abandoned, UNFINISHED)
        return True

    def complete(self, key: str, owner: str, keep: timedelta) -> bool:
        if not self.is_owner(key, owner, "claimed", "done"):
            return False
        self.keys[key] = Known("done", owner, timedelta(), 0, keep)
        return True

    def release(self, key: str, owner: str, *, forget: bool) -> bool:
        if key not in self.keys or not self.is_owner(key, owner, "claimed"):
            return False
        self.keys[key] = Known("free", "", timedelta(), 0 if forget else self.keys[key].abandoned, UNFINISHED)
        return True

    def let_pass(self, time: timedelta) -> None:
        self.keys = {
            key: known._replace(lease=known.lease - time, memory=known.memory - time)
            for key, known in self.keys.items()
            if known.memory > time
        }

    def check_fence(self, key: str, claim: Claim, is_new: bool) -> None:
        """A fence is that of the claim before only if that was the same owner's, and else greater."""
        if isinstance(claim, Acquired):
            before = self.fences.get(key, 0) if key in self.keys else 0
            assert claim.fence > before if is_new else claim.fence == before
            self.fences[key] = claim.fence


def shown(claim: Claim) -> tuple[str, int]:
    match claim:
        case Acquired(abandoned=abandoned):
            return "acquired", abandoned
        case Busy():
            return "busy", 0
        case Done():
            return "done", 0
        case Conflict():
            return "conflict", 0


class Step(NamedTuple):
    what: Literal["claim", "claim without takeover", "renew", "complete", "release", "forget", "let time pass"]
    key: str
    owner: str
    time: timedelta


# No sum of a few of the passing times is a lease or a keeping time: nothing is decided by a millisecond.
PASSING = st.sampled_from([timedelta(seconds=seconds) for seconds in (7, 7, 31, 5003, 90_001)])
LENGTHS = st.sampled_from([LEASE, timedelta(seconds=10)])
KEEPS = st.sampled_from([timedelta(hours=1), timedelta(days=7)])
WHO = {"key": st.sampled_from("ab"), "owner": st.sampled_from("xyz")}
STEPS = st.one_of(
    st.builds(Step, st.sampled_from(["claim", "claim", "claim without takeover", "renew"]), **WHO, time=LENGTHS),
    st.builds(Step, st.just("complete"), **WHO, time=KEEPS),
    st.builds(Step, st.sampled_from(["release", "release", "forget"]), **WHO, time=LENGTHS),
    st.builds(Step, st.just("let time pass"), **WHO, time=PASSING),
)


async def follow(bench: Bench, steps: list[Step]) -> None:
    """Take the steps in a store and in the model: they must answer alike, each time."""
    model, store = Model(), bench.store
    for what, key, owner, time in steps:
        match what:
            case "claim" | "claim without takeover":
                takeover = what == "claim"
                known = model.keys.get(key)
                is_new = known is None or known.state != "claimed" or known.owner != owner
                claim = await store.claim(key, owner, time, takeover=takeover)
                model.check_fence(key, claim, is_new)
                assert shown(claim) == model.claim(key, owner, time, takeover=takeover)
            case "renew":
                was_known = key in model.keys
                assert await store.renew(key, owner, time) == model.renew(key, owner, time)
                if not was_known:
                    model.fences[key] = await fence_of(store, key, owner, time)
            case "complete":
                assert await store.complete(key, owner, time) == model.complete(key, owner, time)
            case "release" | "forget":
                forget = what == "forget"
                released = await store.release(key, owner, forget=forget)
                assert released == model.release(key, owner, forget=forget)
            case "let time pass":
                await bench.let_pass(time)
                model.let_pass(time)


async def fence_of(store: Store, key: str, owner: str, lease: timedelta) -> int:
    claim = await store.claim(key, owner, lease)
    assert isinstance(claim, Acquired)
    return claim.fence


@given(st.lists(STEPS, max_size=40))
@settings(max_examples=400, deadline=None)
def test_a_memory_store_does_what_the_model_does(steps: list[Step]) -> None:
    asyncio.run(follow(MemoryBench(), steps))


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@given(steps=st.lists(STEPS, max_size=40))
@settings(max_examples=150, deadline=None)
def test_a_redis_store_does_what_the_model_does(shared_redis: RedisServer, steps: list[Step]) -> None:
    async def run() -> None:
        async with redis_bench(shared_redis) as bench:
            await bench.lose()
            await follow(bench, steps)

    asyncio.run(run())


# --- the memory store ------------------------------------------------------------------------------------------------


async def done(store: MemoryStore, *keys: str) -> None:
    for key in keys:
        await store.claim(key, "owner", LEASE)
        await store.complete(key, "owner", KEEP)


async def test_a_memory_store_forgets_by_itself_what_has_expired() -> None:
    bench = MemoryBench()
    await done(bench.store, *map(str, range(1000)))
    await bench.let_pass(KEEP + timedelta(seconds=1))

    await done(bench.store, "another")

    assert len(bench.store) == 1


async def test_a_full_memory_store_forgets_what_was_done_first_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore(limit=10)
    await store.claim("running", "owner", LEASE)

    await done(store, *map(str, range(30)))

    assert len(store) == 10
    assert isinstance(await store.claim("running", "other", LEASE), Busy)
    assert await store.claim("29", "other", LEASE) == Done()
    assert isinstance(await store.claim("0", "other", LEASE), Acquired)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "is full (limit=10)" in caplog.text


async def test_failed_events_do_not_fill_a_memory_store_beyond_its_limit() -> None:
    store = MemoryStore(limit=10)

    for key in map(str, range(100)):
        await store.claim(key, "owner", LEASE)
        await store.release(key, "owner")

    assert len(store) == 10


def test_a_memory_store_needs_room() -> None:
    with pytest.raises(ConfigurationError, match="limit=0"):
        MemoryStore(limit=0)

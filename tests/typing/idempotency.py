"""Idempotency as users write it: with a store of ours, and with one of their own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import assert_type

from redis.asyncio import Redis, RedisCluster

from rabbitevents import Bus, Delivery, Fact, Plugin, Router
from rabbitevents_idempotency import (
    AbandonedError,
    Acquired,
    Busy,
    Claim,
    Conflict,
    Done,
    Fenced,
    IdConflictError,
    Idempotency,
    KeyRefusedError,
    LeaseLost,
    MemoryStore,
    RedisStore,
    Store,
    StoreBack,
    StoreForbiddenError,
    StoreLost,
    StoreUnavailableError,
    Unclaimed,
)
from rabbitevents_idempotency.testing import Bench, StoreConformance

router = Router("shop")


@router.on("order.placed")
async def reserve(delivery: Delivery) -> None:
    assert_type(delivery.fence, int | None)


class OwnStore:
    """Keeps nothing, and wins every claim."""

    async def claim(self, key: str, owner: str, lease: timedelta, *, takeover: bool = True, digest: str = "") -> Claim:
        if not key:
            raise StoreUnavailableError("out of reach")
        return Acquired(fence=1)

    async def renew(self, key: str, owner: str, lease: timedelta) -> bool:
        return True

    async def complete(self, key: str, owner: str, keep: timedelta) -> bool:
        return True

    async def release(self, key: str, owner: str, *, forget: bool = False) -> bool:
        return True

    async def look(self) -> Sequence[str]:
        return ("it keeps nothing",)


class Watching(Plugin):
    def observe(self, fact: Fact) -> None:
        match fact:
            case Fenced() | LeaseLost() | Unclaimed():
                assert_type(fact.subscription, str)
            case StoreLost():
                assert_type(fact.reason, str)
            case StoreBack():
                assert_type(fact.downtime, float)
            case _:
                pass


class OwnBench:
    """What the conformance suite asks of an author."""

    store: Store = OwnStore()

    async def let_pass(self, time: timedelta) -> None: ...

    async def lose(self) -> None: ...


class TestOwnStore(StoreConformance):
    def bench(self) -> Bench:
        return OwnBench()


stores: list[Store] = [
    MemoryStore(limit=10_000),
    RedisStore(Redis(), prefix="shop:", timeout=1.0),
    RedisStore(RedisCluster(host="localhost")),
    OwnStore(),
]
plugin = Idempotency(
    stores[0], lease=timedelta(seconds=30), keep=timedelta(days=7), when_unavailable="proceed", abandoned=5
)
assert_type(plugin.unclaimed, int)


def of_order(delivery: Delivery) -> str | None:
    return delivery.routing_key or None


Idempotency(stores[0], key=of_order)
Idempotency(stores[0], key=len)  # type: ignore[arg-type]
Bus("memory://", router, plugins=[Watching(), plugin])
Idempotency(Redis())  # type: ignore[arg-type]
Idempotency(stores[0], when_unavailable="open")  # type: ignore[arg-type]


async def by_hand(store: Store) -> None:
    claim = await store.claim("key", "owner", timedelta(seconds=30))
    match claim:
        case Acquired():
            assert_type(claim.fence, int)
        case Busy():
            assert_type(claim.left, timedelta)
        case Done() | Conflict():
            pass


def is_given_up(error: BaseException) -> bool:
    return isinstance(error, (AbandonedError, IdConflictError, KeyRefusedError))


def is_away(error: BaseException) -> bool:
    return isinstance(error, StoreUnavailableError) and not isinstance(error, StoreForbiddenError) and error.partial

"""What every store must do: the suite that `MemoryStore` and `RedisStore` pass, and a third one's author runs.

Subclass `StoreConformance` as ``class TestMyStore(StoreConformance)``, with a fixture ``bench`` that returns a `Bench`.
The tests are coroutines (pytest-asyncio, ``asyncio_mode = "auto"``).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Protocol
from uuid import uuid4

from rabbitevents_idempotency.store import Acquired, Busy, Conflict, Done, Store

LEASE = timedelta(seconds=30)
KEEP = timedelta(days=7)


class Bench(Protocol):
    """A store under test, as its author provides it to the suite."""

    @property
    def store(self) -> Store:
        """The store."""
        ...

    async def let_pass(self, time: timedelta) -> None:
        """Let so much time pass on the store's clock, or have it look so."""
        ...

    async def lose(self) -> None:
        """Have the store lose all that it keeps."""
        ...


def new_key() -> str:
    """Return a key that no other test uses."""
    return f"shop.reserve:{uuid4()}"


async def acquire(bench: Bench, key: str, owner: str) -> Acquired:
    """Claim ``key``, which must be free."""
    claim = await bench.store.claim(key, owner, LEASE)
    assert isinstance(claim, Acquired), claim
    return claim


class StoreConformance:
    """The tests."""

    async def test_of_many_claims_of_a_key_one_wins(self, bench: Bench) -> None:
        """However many come at once."""
        key = new_key()

        claims = await asyncio.gather(*(bench.store.claim(key, f"owner-{i}", LEASE) for i in range(100)))

        assert sum(isinstance(claim, Acquired) for claim in claims) == 1
        assert sum(isinstance(claim, Busy) for claim in claims) == 99

    async def test_keys_do_not_touch_each_other(self, bench: Bench) -> None:
        """Each has its own owner."""
        keys = [new_key() for _ in range(300)]

        claims = await asyncio.gather(*(bench.store.claim(key, f"owner-of-{key}", LEASE) for key in keys))

        assert all(isinstance(claim, Acquired) for claim in claims)
        assert all([await bench.store.complete(key, f"owner-of-{key}", KEEP) for key in keys])

    async def test_another_s_claim_is_busy_for_the_rest_of_the_lease(self, bench: Bench) -> None:
        """And says how long that is."""
        key = new_key()
        await acquire(bench, key, "one")
        await bench.let_pass(timedelta(seconds=10))

        claim = await bench.store.claim(key, "other", LEASE)

        assert isinstance(claim, Busy)
        assert timedelta(seconds=15) < claim.left <= timedelta(seconds=20)

    async def test_what_is_done_stays_done(self, bench: Bench) -> None:
        """For as long as it is to be kept, and to its owner too."""
        key = new_key()
        await acquire(bench, key, "one")

        assert await bench.store.complete(key, "one", KEEP)

        await bench.let_pass(KEEP - timedelta(minutes=1))
        assert await bench.store.claim(key, "other", LEASE) == Done()
        assert await bench.store.claim(key, "one", LEASE) == Done()

    async def test_what_was_done_is_forgotten_when_it_has_been_kept_long_enough(self, bench: Bench) -> None:
        """As the documentation says: a copy that comes later still is handled again."""
        key = new_key()
        await acquire(bench, key, "one")
        await bench.store.complete(key, "one", KEEP)

        await bench.let_pass(KEEP + timedelta(minutes=1))

        assert (await acquire(bench, key, "other")).abandoned == 0

    async def test_what_is_claimed_or_done_is_in_conflict_with_another_digest(self, bench: Bench) -> None:
        """Who says no digest is not asked for one."""
        key, claim = new_key(), bench.store.claim
        assert isinstance(await claim(key, "one", LEASE, digest="a"), Acquired)

        for _ in range(2):
            assert await claim(key, "other", LEASE, digest="b") == Conflict()
            assert await bench.store.complete(key, "one", KEEP)
        assert await claim(key, "other", LEASE, digest="a") == Done()
        assert await claim(key, "other", LEASE) == Done()

    async def test_another_digest_takes_over_no_lease_that_is_over(self, bench: Bench) -> None:
        """Its owner may yet say what came of it."""
        key = new_key()
        assert isinstance(await bench.store.claim(key, "one", LEASE, digest="a"), Acquired)
        await bench.let_pass(LEASE * 2)
        assert await bench.store.renew(key, "one", LEASE)
        await bench.let_pass(LEASE * 2)

        assert await bench.store.claim(key, "other", LEASE, digest="b") == Conflict()
        assert isinstance(await bench.store.claim(key, "other", LEASE, digest="a"), Acquired)

    async def test_what_is_released_may_be_claimed_with_any_digest(self, bench: Bench) -> None:
        """Nothing has come of it yet."""
        key = new_key()
        assert isinstance(await bench.store.claim(key, "one", LEASE, digest="a"), Acquired)
        await bench.store.release(key, "one")

        assert isinstance(await bench.store.claim(key, "other", LEASE, digest="b"), Acquired)
        assert await bench.store.claim(key, "another", LEASE, digest="a") == Conflict()

    async def test_a_repeated_step_has_the_same_answer(self, bench: Bench) -> None:
        """Its first answer may have been lost on the way."""
        key = new_key()
        first = await acquire(bench, key, "one")
        await bench.let_pass(LEASE / 2)

        again = await acquire(bench, key, "one")

        await bench.let_pass(LEASE / 2 + timedelta(seconds=5))
        assert again == first
        assert isinstance(await bench.store.claim(key, "other", LEASE), Busy)
        assert [await bench.store.complete(key, "one", KEEP) for _ in range(2)] == [True, True]

    async def test_only_the_owner_may_renew_complete_or_release(self, bench: Bench) -> None:
        """Whatever another tries, the owner's claim stands."""
        key = new_key()
        await acquire(bench, key, "one")

        assert not await bench.store.renew(key, "other", LEASE)
        assert not await bench.store.complete(key, "other", KEEP)
        assert not await bench.store.release(key, "other")
        assert not await bench.store.release(key, "other", forget=True)

        assert isinstance(await bench.store.claim(key, "other", LEASE), Busy)
        assert await bench.store.complete(key, "one", KEEP)

    async def test_nothing_undoes_what_is_done(self, bench: Bench) -> None:
        """Neither the owner nor anybody else."""
        key = new_key()
        await acquire(bench, key, "one")
        await bench.store.complete(key, "one", KEEP)

        for owner in ("one", "other"):
            assert not await bench.store.renew(key, owner, LEASE)
            assert not await bench.store.release(key, owner)
        assert not await bench.store.complete(key, "other", KEEP)

        assert await bench.store.claim(key, "other", LEASE) == Done()

    async def test_what_is_released_can_be_claimed_at_once_and_is_nobody_s(self, bench: Bench) -> None:
        """The one who released it has no part in it any more."""
        key = new_key()
        first = await acquire(bench, key, "one")

        assert await bench.store.release(key, "one")

        assert not await bench.store.release(key, "one")
        assert not await bench.store.renew(key, "one", LEASE)
        assert not await bench.store.complete(key, "one", KEEP)
        assert not await bench.store.complete(key, "", KEEP)
        second = await acquire(bench, key, "other")
        assert second.fence > first.fence
        assert second.abandoned == 0

    async def test_a_lease_that_ends_lets_another_in_and_the_first_owner_out(self, bench: Bench) -> None:
        """The fence says who came later."""
        key = new_key()
        first = await acquire(bench, key, "one")
        await bench.let_pass(LEASE + timedelta(seconds=1))

        second = await acquire(bench, key, "other")

        assert second.fence > first.fence
        assert second.abandoned == 1
        assert not await bench.store.complete(key, "one", KEEP)
        assert not await bench.store.renew(key, "one", LEASE)
        assert not await bench.store.release(key, "one")
        assert await bench.store.complete(key, "other", KEEP)
        assert not await bench.store.complete(key, "one", KEEP)

    async def test_a_lease_that_is_renewed_does_not_end(self, bench: Bench) -> None:
        """However often."""
        key = new_key()
        await acquire(bench, key, "one")

        for _ in range(10):
            await bench.let_pass(LEASE * 0.9)
            assert isinstance(await bench.store.claim(key, "other", LEASE), Busy)
            assert await bench.store.renew(key, "one", LEASE)

        assert await bench.store.complete(key, "one", KEEP)

    async def test_an_owner_whose_lease_is_over_may_go_on_while_nobody_else_claimed(self, bench: Bench) -> None:
        """What it did is done, and nobody else did it."""
        renewed, completed = new_key(), new_key()
        await acquire(bench, renewed, "one")
        await acquire(bench, completed, "one")
        await bench.let_pass(LEASE * 3)

        assert await bench.store.renew(renewed, "one", LEASE)
        assert await bench.store.complete(completed, "one", KEEP)

        assert isinstance(await bench.store.claim(renewed, "other", LEASE), Busy)
        assert await bench.store.claim(completed, "other", LEASE) == Done()

    async def test_a_lease_that_is_over_is_busy_for_those_who_do_not_take_over(self, bench: Bench) -> None:
        """Its owner could not renew it, but may yet; what is free they may have."""
        key = new_key()
        await acquire(bench, key, "one")
        await bench.let_pass(LEASE * 2)

        assert await bench.store.claim(key, "other", LEASE, takeover=False) == Busy(timedelta())

        assert await bench.store.complete(key, "one", KEEP)
        assert isinstance(await bench.store.claim(new_key(), "other", LEASE, takeover=False), Acquired)

    async def test_how_often_a_key_was_abandoned_is_counted_until_that_is_forgotten(self, bench: Bench) -> None:
        """A release keeps the count, unless it is told not to."""
        key, counted = new_key(), list[int]()
        for number in range(3):
            counted.append((await acquire(bench, key, f"owner-{number}")).abandoned)
            await bench.let_pass(LEASE + timedelta(seconds=1))
        counted.append((await acquire(bench, key, "orderly")).abandoned)

        await bench.store.release(key, "orderly")
        counted.append((await acquire(bench, key, "next")).abandoned)
        await bench.store.release(key, "next", forget=True)
        counted.append((await acquire(bench, key, "last")).abandoned)

        assert counted == [0, 1, 2, 3, 3, 0]

    async def test_a_store_that_lost_its_data_learns_again_from_those_who_work(self, bench: Bench) -> None:
        """So that a loss costs no effect that is under way; and fences grow over it."""
        renewed, completed, other = new_key(), new_key(), new_key()
        first = await acquire(bench, renewed, "one")
        await acquire(bench, completed, "one")
        await acquire(bench, other, "one")
        await bench.let_pass(timedelta(seconds=1))
        await asyncio.sleep(0.01)
        await bench.lose()

        assert await bench.store.renew(renewed, "one", LEASE)
        assert await bench.store.complete(completed, "one", KEEP)
        assert not await bench.store.release(other, "one")

        assert isinstance(await bench.store.claim(renewed, "other", LEASE), Busy)
        assert await bench.store.claim(completed, "other", LEASE) == Done()
        assert (await acquire(bench, other, "other")).fence > first.fence

"""Claims and marks in Redis, for services of many processes."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Sequence
from datetime import timedelta
from typing import Any, Final, cast

from rabbitevents import ConfigurationError
from rabbitevents.arguments import Seconds, instance, seconds, wrong
from rabbitevents_idempotency.store import UNFINISHED, Acquired, Busy, Claim, Done, StoreUnavailableError

try:
    from redis.asyncio import Redis, RedisCluster
    from redis.exceptions import RedisError, ResponseError
except ModuleNotFoundError as _error:
    raise ConfigurationError("RedisStore needs redis-py: pip install 'rabbitevents[redis]'") from _error

from rabbitevents_idempotency.trips import RoundTrips

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")

_MS: Final = timedelta(milliseconds=1)


class RedisStore:
    """Keeps claims and marks in Redis, one string per event and handler, about 200 bytes each.

    Time is Redis's own, so that no clock of a worker matters.

    :param client: A `redis.asyncio.Redis` or `RedisCluster`. It stays yours: close it after the bus.
    :param prefix: What the keys begin with: "rabbitevents:".
    :param timeout: The deadline of a round trip, connecting included: seconds (2), or a timedelta.
    """

    def __init__(self, client: Redis | RedisCluster, *, prefix: str = "rabbitevents:", timeout: Seconds = 2.0) -> None:
        if not isinstance(cast("object", client), (Redis, RedisCluster)):
            raise wrong("RedisStore: client", client, "give a redis.asyncio.Redis or RedisCluster")
        self._client: Any = client  # whose annotations are partly unknown
        self._prefix = instance("RedisStore: prefix", prefix, str, "say a text, such as 'rabbitevents:'")
        self._timeout = seconds("RedisStore: timeout", timeout, positive=True)
        self._trips = RoundTrips(client, self._timeout)

    async def claim(self, key: str, owner: str, lease: timedelta, *, takeover: bool = True) -> Claim:
        """Make ``key`` the owner's for as long as ``lease``; see `Store.claim`."""
        word, *numbers = await self._ask(key, "claim" if takeover else "ask", owner, lease, max(2 * lease, UNFINISHED))
        if word == "acquired":
            return Acquired(int(numbers[0]), int(numbers[1]))
        if word == "busy":
            return Busy(timedelta(milliseconds=int(numbers[0])))
        return Done()

    async def renew(self, key: str, owner: str, lease: timedelta) -> bool:
        """Let the owner's lease begin anew; see `Store.renew`."""
        return await self._ask(key, "renew", owner, lease, max(2 * lease, UNFINISHED)) == ["yes"]

    async def complete(self, key: str, owner: str, keep: timedelta) -> bool:
        """Mark ``key`` as done for as long as ``keep``; see `Store.complete`."""
        return await self._ask(key, "complete", owner, timedelta(), keep) == ["yes"]

    async def release(self, key: str, owner: str, *, forget: bool = False) -> bool:
        """Give ``key`` back; see `Store.release`."""
        return await self._ask(key, "forget" if forget else "release", owner, timedelta(), UNFINISHED) == ["yes"]

    def _ask(self, key: str, step: str, owner: str, lease: timedelta, keep: timedelta) -> Awaitable[list[str]]:
        return self._trips.ask(self._prefix + key, f"{step} {-(-lease // _MS)} {-(-keep // _MS)} {owner}")

    async def look(self) -> Sequence[str]:
        """Make a claim that nobody waits for, and warn if Redis may evict keys. Raises `StoreUnavailableError`.

        Only a claim tells whether this user may make one; its key is gone after a second. Where it is forbidden to look
        at Redis's memory, nothing is said.
        """
        await self._ask(f"look:{secrets.token_urlsafe(9)}", "claim", "looks", _MS, timedelta(seconds=1))
        try:
            async with asyncio.timeout(self._timeout):
                memory: dict[str, Any] = await self._client.info("memory")
        except ResponseError as error:
            log.debug("whether Redis may evict keys is not known: %s", error)
            return ()
        except TimeoutError as error:
            raise StoreUnavailableError(f"Redis: no answer within {self._timeout:g} s") from error
        except (RedisError, OSError) as error:
            raise StoreUnavailableError(f"Redis: {type(error).__name__}: {error}") from error
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy == "noeviction" or not memory.get("maxmemory"):
            return ()
        return (
            f"Redis evicts keys when its memory is full (maxmemory-policy {policy}), and an event whose mark was evicted "
            "is handled again when it comes again: set maxmemory-policy to noeviction",
        )

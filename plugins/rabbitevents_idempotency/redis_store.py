"""Claims and marks in Redis, for services of many processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Final, Protocol

from rabbitevents import ConfigurationError
from rabbitevents.arguments import Seconds, instance, seconds, wrong
from rabbitevents_idempotency.store import (
    Acquired,
    Busy,
    Claim,
    Conflict,
    Done,
    KeyRefusedError,
    StoreForbiddenError,
    remembered,
)
from rabbitevents_idempotency.trips import Trips, untraced

if find_spec("redis") is None and find_spec("valkey") is None:
    raise ConfigurationError("RedisStore needs redis-py: pip install 'rabbitevents[redis]' (or valkey)")

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")

_MILLISECOND: Final = timedelta(milliseconds=1)

_LEAVES_BEHIND: Final = ("7.2.", "7.3.", "7.4.")

_NODES_FOUND_BY: Final = 512
"""So many keys reach every node of a cluster, if its share is not much below a hundredth."""


class Client(Protocol):
    """What is used of a client: ``redis.asyncio``'s, ``valkey.asyncio``'s, or another of the same make."""

    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]:
        """Send a command, and return its answer."""
        ...


class RedisStore:
    """Keeps claims and marks in Redis or Valkey, one string per event and handler, about 220 bytes each.

    Time is Redis's own, so that no clock of a worker matters. Each node of a cluster has round trips of its own.

    :param client: A ``redis.asyncio.Redis`` or ``RedisCluster``, or valkey's. It stays yours: close it after the bus.
    :param prefix: What the keys begin with: "rabbitevents:".
    :param timeout: The deadline of a round trip, connecting included: seconds (2), or a timedelta.
    """

    def __init__(self, client: Client, *, prefix: str = "rabbitevents:", timeout: Seconds = 2.0) -> None:
        if isinstance(client, type) or not (hasattr(client, "execute_command") and hasattr(client, "__aenter__")):
            raise wrong("RedisStore: client", client, "give a redis.asyncio.Redis or RedisCluster, or valkey.asyncio's")
        self._client: Any = client  # whose annotations are partly unknown
        self._prefix = instance("RedisStore: prefix", prefix, str, "say a text, such as 'rabbitevents:'")
        self._timeout = seconds("RedisStore: timeout", timeout, positive=True)
        self._is_cluster = hasattr(client, "get_node_from_key")
        self._nodes: dict[str, Trips] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def claim(self, key: str, owner: str, lease: timedelta, *, takeover: bool = True, digest: str = "") -> Claim:
        """Make ``key`` the owner's for as long as ``lease``; see `Store.claim`."""
        step = "claim" if takeover else "ask"
        word, *numbers = (await self._ask(key, step, owner, _lengths(lease), digest)).split()
        if word == "acquired":
            return Acquired(int(numbers[0]), int(numbers[1]))
        if word == "busy":
            return Busy(timedelta(milliseconds=int(numbers[0])))
        return Done() if word == "done" else Conflict()

    async def renew(self, key: str, owner: str, lease: timedelta) -> bool:
        """Let the owner's lease begin anew; see `Store.renew`."""
        return await self._ask(key, "renew", owner, _lengths(lease)) == "yes"

    async def complete(self, key: str, owner: str, keep: timedelta) -> bool:
        """Mark ``key`` as done for as long as ``keep``; see `Store.complete`."""
        return await self._ask(key, "complete", owner, _lengths(keep=keep)) == "yes"

    async def release(self, key: str, owner: str, *, forget: bool = False) -> bool:
        """Give ``key`` back; see `Store.release`."""
        return await self._ask(key, "forget" if forget else "release", owner, _lengths()) == "yes"

    def _ask(self, key: str, step: str, owner: str, lengths: str, digest: str = "") -> Awaitable[str]:
        key = self._prefix + key
        return self._trips(key).ask(key, f"{step} {lengths} {owner} {digest}\n")

    def _trips(self, key: str) -> Trips:
        """Return the round trips to the node that has ``key``; before a cluster's nodes are known, to all at once."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._nodes = loop, {}  # those of a loop that has ended took along who waited in it
        node = self._node(key) if self._is_cluster else ""
        trips = self._nodes.get(node)
        if trips is None:
            slot_of = self._client.keyslot if self._is_cluster else None
            self._nodes[node] = trips = Trips(self._client, self._timeout, slot_of=slot_of, partial=bool(node))
        return trips

    def _node(self, key: str) -> str:
        try:
            name: str = self._client.get_node_from_key(key).name
        except Exception:
            # Nothing is known yet, or this slot is nobody's now, which each client says in its own way.
            return ""
        return name

    async def look(self) -> Sequence[str]:
        """Write a key on each node. Warn if Redis may evict keys, and of a client that leaves connections behind.

        Where looking is forbidden, nothing is said of eviction.

        Raises `StoreUnavailableError`, `StoreForbiddenError`.
        """
        probes = [self._prefix + "probe"]
        if self._is_cluster:
            await self._aside("initialize")
            probes = [f"{self._prefix}probe:{number}" for number in range(_NODES_FOUND_BY)]
        nodes = {self._trips(key): key for key in probes}
        asked = [trips.ask(key, "probe 0 1  \n", anyway=True) for trips, key in nodes.items()]
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, KeyRefusedError):
                raise StoreForbiddenError(str(answer))
            if isinstance(answer, BaseException):
                raise answer
        return (*await self._eviction(), *(_left_behind(self._client) if self._is_cluster else ()))

    async def _eviction(self) -> Sequence[str]:
        memory: Mapping[str, Any] = await self._aside("info", "memory") or {}
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy == "noeviction" or not memory.get("maxmemory"):
            return ()
        return (
            f"Redis evicts keys when its memory is full (maxmemory-policy {policy}), and an event whose mark was evicted "
            "is handled again when it comes again: set maxmemory-policy to noeviction",
        )

    async def _aside(self, name: str, *words: str) -> Any:
        """Have the client do what is no claim, and return what comes of it; None where it fails: the probes will say."""

        async def take() -> Any:
            try:
                async with asyncio.timeout(self._timeout):
                    return await getattr(self._client, name)(*words)
            except Exception as error:
                # It may be forbidden, or no command of this server, and clients have no common root of such errors.
                log.debug("%s: the client failed with %s", name, error)

        return await asyncio.create_task(take(), context=untraced())


def _left_behind(client: object) -> Sequence[str]:
    """Warn of redis-py 7.2 to 7.4: https://github.com/redis/redis-py/issues/3572, which 8.0 mended."""
    if not any(each.__module__.startswith("redis.") for each in type(client).__mro__):
        return ()
    version = metadata.version("redis")
    if not version.startswith(_LEAVES_BEHIND):
        return ()
    return (
        f"the RedisCluster of redis-py {version} leaves its connections open each time that it asks for the cluster's "
        "nodes anew, as it does after each failure: take redis-py 8, or 6",
    )


@lru_cache
def _lengths(lease: timedelta = timedelta(), keep: timedelta | None = None) -> str:
    """Say how long a lease is, and for how long its record is kept, in milliseconds."""
    kept = remembered(lease) if keep is None else keep
    return f"{-(-lease // _MILLISECOND)} {-(-kept // _MILLISECOND)}"

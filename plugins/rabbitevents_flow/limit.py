"""`RateLimit`: no more events in a time than others can take."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from rabbitevents import REQUEUE, Check, ConfigurationError, Consume, Delivery, Host, Plugin, Settlement
from rabbitevents.arguments import Seconds, seconds, text, whole, wrong
from rabbitevents_flow.budget import Budget, Here, InRedis


class RateLimit(Plugin):
    """Handle no more events in a time than what the handlers call can take.

    ::

        @router.on(OrderPlaced, plugins=[RateLimit(900, per=60)])
        @router.on(OrderPlaced, prefetch=20, plugins=[RateLimit(900, per=60, redis=Redis.from_url(...))])

    They are spread evenly: 900 in a minute are one each 67 ms. An event waits for its turn in its worker, and so in the
    order in which it came; what else is delivered meanwhile waits behind it. An attempt is one too: it stands inside
    `DeadLetter` and `Retry`. All subscriptions of one instance share its limit.

    :param limit: How many events.
    :param per: In what time: seconds (1), or a timedelta.
    :param burst: How many may begin together after a quiet time: 1. A server that counts by the minute then sees up to
        ``limit + burst - 1`` in one.
    :param redis: A ``redis.asyncio.Redis`` (or valkey's), for a limit that all processes share, on Redis's own clock. It
        stays yours. While it is away each process keeps the limit alone, which is said once and in health.
    :param key: Whose limit it is in Redis: by default the bus's, or the one subscription's that it is for.

    Raises `ConfigurationError`, at start too: where what is delivered ahead would wait for longer than half of the
    broker's consumer timeout.
    """

    role: ClassVar[str] = "rate-limit"
    inside: ClassVar[frozenset[str]] = frozenset({"dead-letter", "retry"})

    def __init__(
        self, limit: int, *, per: Seconds = 1, burst: int = 1, redis: Any = None, key: str | None = None
    ) -> None:
        self._limit = whole("RateLimit: limit", limit)
        self._per = seconds("RateLimit: per", per, positive=True)
        self._burst = whole("RateLimit: burst", burst)
        self._key = None if key is None else text("RateLimit: key", key, such_as="payment-provider")
        if redis is not None and (isinstance(redis, type) or not hasattr(redis, "register_script")):
            raise wrong("RateLimit: redis", redis, "give a redis.asyncio.Redis, or valkey.asyncio's")
        if key is not None and redis is None:
            raise ConfigurationError(f"RateLimit: key={key!r} names a limit in Redis: say redis=, too")
        self._redis = redis
        self._budget: Budget = Here(self._interval, self._burst)
        self._host: Host | None = None

    @property
    def _interval(self) -> float:
        return self._per / self._limit

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look whether the waits fit into the broker's consumer timeout. Raises `ConfigurationError`."""
        mine = host.subscriptions_of(self)
        ahead = sum(each.options.prefetch for each in mine)
        most = host.consumer_timeout.total_seconds() / 2
        if ahead * self._interval > most:
            raise ConfigurationError(
                f"RateLimit({self._limit}, per={self._per:g}): of {ahead} events that are delivered ahead, the last would wait "
                f"{ahead * self._interval:,.0f} s, and the broker takes them away after {2 * most:,.0f} s: "
                f"say on(..., prefetch={max(1, int(most / self._interval / len(mine)))}) or less"
            )
        if self._redis is not None:
            key = self._key or (mine[0].name if len(mine) == 1 else host.name)
            self._budget = InRedis(self._redis, f"rabbitevents:rate:{key}", self._interval, self._burst)
        self._host = host
        yield

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Handle a delivery when it is its turn; when the bus stops before that, give it back."""
        wait = await self._budget.take()
        if wait > 0 and self._host is not None and not await self._host.wait(wait):
            return REQUEUE
        return await proceed(delivery)

    def health(self) -> Iterable[Check]:
        """Say whether the limit is shared as it should be."""
        if isinstance(self._budget, InRedis):
            away = self._budget.away
            yield Check(
                "rate limit", not away, f"each process keeps it alone: {away}" if away else "", degraded=bool(away)
            )

"""What the services remember of what they have handled: each process by itself, or all of them in one Redis."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

from yarl import URL

from rabbitevents import ConfigurationError
from rabbitevents_idempotency import MemoryStore, Store, StoreUnavailableError

PREFIX: Final = "rabbitevents-demo:"
"""What the keys in Redis begin with."""

LEASE: Final = timedelta(seconds=3)
"""How long an event stays claimed by a process that was killed."""

KEEP: Final = timedelta(hours=1)
"""How long it is remembered that an event was handled; a shop that is open longer says days."""

NO_URL: Final = "say where Redis is, such as redis://localhost:6379/0; in a password, write / and @ as %2F and %40"


@asynccontextmanager
async def opened(url: str | None) -> AsyncGenerator[Store]:
    """Yield a store in Redis, or in the memory of this process without a ``url``.

    Raises `ConfigurationError` for a Redis that cannot be used.
    """
    if url is None:
        yield MemoryStore()
        return
    try:
        from redis.asyncio import from_url
        from redis.exceptions import RedisError

        from rabbitevents_idempotency import RedisStore
    except ModuleNotFoundError as error:
        raise ConfigurationError("--redis needs redis-py: pip install 'rabbitevents[redis]'") from error
    try:
        client = from_url(url)
        pool: Any = client.connection_pool  # whose annotations are missing
        pool.make_connection()  # connects to nothing yet, and is the first to look at the URL's options
    except ValueError as error:  # whose text quotes what it took for a port, and may be of the password
        raise ConfigurationError(f"--redis: {NO_URL}") from error
    except (TypeError, RedisError) as error:
        raise ConfigurationError(f"--redis {_shown(url)}: {error}") from error
    async with client:
        store = RedisStore(client, prefix=PREFIX)
        try:
            await store.look()
        except StoreUnavailableError as error:
            raise ConfigurationError(f"--redis {_shown(url)} cannot be used: {error}") from error
        yield store


def _shown(url: str) -> str:
    """Return a URL without its password, which may be among its options."""
    try:
        return str(URL(url).with_password(None).with_query(None))
    except ValueError:
        return "(a URL that cannot be read)"

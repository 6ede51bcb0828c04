"""The database that ``--store`` says: what leads to it, and what is said where it does not."""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rabbitevents import ConfigurationError
from rabbitevents_sql import prepare_sqlite

NO_URL: Final = "say where the database is: sqlite:///shop.db, or postgresql://localhost/shop"

DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
"""The drivers that there are, by what a URL begins with."""


def shown(url: str) -> str:
    """Return a URL without its password, which may be among its options."""
    try:
        return make_url(url).set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "(a URL that cannot be read)"


def engine_of(url: str, pool: int) -> AsyncEngine:
    """Return an engine with up to ``pool`` connections. Raises `ConfigurationError` for a URL that leads to none."""
    try:
        told = make_url(url)
    except (ArgumentError, ValueError) as error:  # whose text quotes the URL
        raise ConfigurationError(f"--store: {NO_URL}") from error
    driver = DRIVERS.get(told.drivername, told.drivername)
    if driver not in DRIVERS.values():
        raise ConfigurationError(f"--store: {told.drivername!r} is neither sqlite nor postgresql: {NO_URL}")
    if driver.startswith("sqlite"):
        if told.database in (None, "", ":memory:"):
            raise ConfigurationError(f"--store {shown(url)} names no file: {NO_URL}")
        engine = create_async_engine(told.set(drivername=driver))
        prepare_sqlite(engine)
        return engine
    return create_async_engine(told.set(drivername=driver), pool_size=pool)

"""The databases that a test can ask for by name."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rabbitevents_outbox import Tables, prepare_sqlite
from tests.bed.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests of a process; each makes a database of its own. Nobody kills it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server that only this test has."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
async def postgres_engine(postgres: PostgresServer) -> AsyncIterator[AsyncEngine]:
    """An engine for an empty PostgreSQL database that has the tables of outbox and inbox."""
    made = create_async_engine(postgres.url(database=postgres.database()), pool_size=30)
    await Tables().create(made)
    yield made
    await made.dispose()


@pytest.fixture
async def sqlite_engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """An engine for an empty SQLite database that has the tables of outbox and inbox."""
    made = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/test.db")
    prepare_sqlite(made)
    await Tables().create(made)
    yield made
    await made.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> AsyncEngine:
    """An engine for an empty database of either kind that has the tables of outbox and inbox."""
    name = "sqlite_engine" if request.param == "sqlite" else "postgres_engine"
    made: AsyncEngine = request.getfixturevalue(name)
    return made

"""Outbox and inbox under kills: the long run is ``python -m tests.committed``, this is a share of it."""

from __future__ import annotations

import pytest

from rabbitevents_outbox import Tables
from tests.bed.postgres import PostgresServer
from tests.committed import handlers, relays
from tests.committed_service import EFFECTS, engine_of


async def _made(url: str) -> None:
    engine = engine_of(url)
    await Tables().create(engine)
    async with engine.begin() as connection:
        await connection.run_sync(EFFECTS.metadata.create_all)
    await engine.dispose()


@pytest.mark.timeout(180)
async def test_relays_and_the_database_are_killed_and_what_was_committed_is_published(
    rabbit_url: str, postgres_server: PostgresServer
) -> None:
    await _made(postgres_server.url())

    counts = await relays(rabbit_url, postgres_server.url(), postgres_server, rows=600, kills=4, crashes=1, number=2)

    assert (counts.lost, counts.unexpected, counts.inversions) == (0, 0, 0), counts
    assert counts.published >= 600
    assert counts.rolled_back > 0


@pytest.mark.timeout(180)
async def test_on_sqlite_a_relay_is_killed_and_what_was_committed_is_published(
    rabbit_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('committed')}/test.db"
    await _made(url)

    counts = await relays(rabbit_url, url, None, rows=300, kills=3, crashes=0, number=1)

    assert (counts.lost, counts.unexpected, counts.inversions) == (0, 0, 0), counts
    assert counts.published >= 300


@pytest.mark.timeout(180)
async def test_handlers_are_killed_and_each_event_has_one_effect_and_one_event_downstream(
    rabbit_url: str, postgres: PostgresServer
) -> None:
    url = postgres.url(database=postgres.database())
    await _made(url)

    counts = await handlers(rabbit_url, url, rows=300, kills=4, number=2)

    assert (counts.effects, counts.downstream, counts.doubled) == (300, 300, 0), counts

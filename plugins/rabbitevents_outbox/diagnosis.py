"""What `rabbitevents doctor` finds of an outbox: tables, dead rows, rows that wait, and a relay that is nowhere."""

from __future__ import annotations

import asyncio
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents import ConfigurationError, Finding
from rabbitevents_outbox.shards import COUNTED, Shards
from rabbitevents_outbox.tables import Tables
from rabbitevents_sql import AWAY, now, reason, where

PATIENCE: Final = 2.5
"""Seconds that the look may take."""

LATE: Final = 60.0
"""Seconds for which a row may wait while a relay is there, before that is a risk."""

RELAY: Final = "run a bus with this outbox, or `rabbitevents relay MODULE:BUS`"
LIST: Final = "`rabbitevents outbox list` says why each does"


async def diagnose(engine: AsyncEngine, tables: Tables, shards: int) -> list[Finding]:
    """Look at the outbox in a database, change nothing, and leave no connection."""
    place = f"{tables.outbox.fullname} in {where(engine)}"
    try:
        async with asyncio.timeout(PATIENCE):
            return await _look(engine, tables, shards, place)
    except ConfigurationError as error:
        return [Finding("wrong", place, str(error))]
    except AWAY as error:
        return [Finding("wrong", place, f"the database does not answer: {reason(error)}", "is it running there?")]
    finally:
        await engine.dispose()


async def _look(engine: AsyncEngine, tables: Tables, shards: int, place: str) -> list[Finding]:
    lease = tables.lease.c
    async with engine.connect() as connection:
        await connection.run_sync(tables.check, tables.outbox, tables.lease)
        held = await connection.scalar(
            select(func.count()).where(lease.until >= now(), lease.owner.is_not(None), lease.shard < shards)
        )
    seen = await Shards(engine, tables, PATIENCE).backlog(range(shards))
    found: list[Finding] = []
    if seen.dead:
        what = f"{_rows(seen.dead)} dead, and later events of their entities wait for them"
        found.append(Finding("wrong", place, what, f"{LIST}; then `rabbitevents outbox retry`, or `drop`"))
    waits = f"{_rows(seen.pending)} waiting, the oldest for {seen.lag:,.0f} s"
    if seen.pending and (held or 0) < shards:
        nowhere = "no relay is there" if not held else f"{held} of {shards} shards have a relay"
        found.append(Finding("wrong", place, f"{nowhere}, and {waits}", RELAY))
    elif seen.pending and seen.lag > LATE:
        found.append(Finding("risk", place, f"{waits}, though a relay is there", f"its log says why, and {LIST}"))
    return found


def _rows(number: int) -> str:
    return f"{number:,}{' or more' if number >= COUNTED else ''} row{'' if number == 1 else 's'} {'is' if number == 1 else 'are'}"

"""What PostgreSQL keeps. `python -m tables` creates what is missing; it may run again, and in several places at once."""

import asyncio
import os
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The tables of this file."""


class Shelf(Base):
    """How many of an article are left."""

    __tablename__ = "shelf"
    article: Mapped[str] = mapped_column(primary_key=True)
    left: Mapped[int]


class Reservation(Base):
    """What came of an order; its key is the id of the event that it is the effect of."""

    __tablename__ = "reservation"
    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    order_id: Mapped[str] = mapped_column(index=True)
    reserved: Mapped[bool]


class Payment(Base):
    """A payment that the bank has confirmed, by the id of the event that it is the effect of."""

    __tablename__ = "payment"
    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    order_id: Mapped[str] = mapped_column(index=True)
    receipt: Mapped[str]


def engine() -> AsyncEngine:
    """Connect to the database that the environment names."""
    return create_async_engine(os.environ["DATABASE_URL"], pool_pre_ping=True)


async def create() -> None:
    """Create the tables, and fill the shelves."""
    database = engine()
    async with database.begin() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(4711)"))  # one at a time
        await connection.run_sync(Base.metadata.create_all)
        shelves = [{"article": "lamp", "left": 100}, {"article": "chair", "left": 1}]
        await connection.execute(insert(Shelf).values(shelves).on_conflict_do_nothing())
    await database.dispose()


if __name__ == "__main__":
    asyncio.run(create())

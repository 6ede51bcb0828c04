"""The store: a database in which services write their state, their events and what counts, in one transaction."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from decimal import Decimal
from functools import partial
from typing import Any, Final, Generic, Self, TypeVar

import msgspec
from sqlalchemy import Column, Table, Text, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rabbitevents import ConfigurationError, Plugin, RabbitEventsError, Router
from rabbitevents.demo import past
from rabbitevents.demo.books import Sums, no_sums
from rabbitevents.demo.database import engine_of, shown
from rabbitevents.demo.ledger import Handled, Published, Record, Records
from rabbitevents.demo.orders import Order
from rabbitevents.demo.shop import paying
from rabbitevents.demo.shop.order import placed
from rabbitevents_eventstore import EventStore, Projections
from rabbitevents_outbox import Inbox, Outbox, Tables
from rabbitevents_sql import reason, turn_of

V = TypeVar("V")

LEASE: Final = 3
"""Seconds for which nobody else sends what a process that was killed was to send."""

CONNECTIONS: Final = 24
"""The most connections that a service has: each of two handlers ten, and what its outbox and the counting need."""

SUMS: Final = "sums"
"""The name of the book that has a service's sums."""


class Base(DeclarativeBase):
    """The tables of the demonstration, beside those of outbox and inbox."""


class Line(Base):
    """A line of the ledger, until the one who counts has taken it out."""

    __tablename__ = "rabbitevents_demo_ledger"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    record: Mapped[str] = mapped_column(Text)


BOOKS: Final = Table(
    "rabbitevents_demo_books",
    Base.metadata,
    Column("service", Text, primary_key=True),
    Column("book", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""All that services know: values are JSON."""

_OPEN: ContextVar[AsyncSession | None] = ContextVar("rabbitevents_demo_session", default=None)
"""The session of orders that are placed."""


class StoreUnavailableError(RabbitEventsError):
    """The database has not done as it was told."""


class Store:
    """A database, and what a run does with it, on up to ``pool`` connections.

    Raises `ConfigurationError` for a URL that leads to none, and ModuleNotFoundError without the driver.
    """

    def __init__(self, url: str, pool: int) -> None:
        self.engine: AsyncEngine = engine_of(url, pool)
        self.shown: str = shown(url)
        self._sessions = async_sessionmaker(self.engine)
        self._insert: Any = sqlite.insert if self.engine.dialect.name == "sqlite" else postgresql.insert

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Self]:
        """Yield itself; its connections are closed at the end."""
        try:
            yield self
        finally:
            await self.engine.dispose()

    async def prepare(self) -> None:
        """Make the tables that are missing, and empty the shop. Raises `ConfigurationError`."""
        try:
            await Tables().create(self.engine)
            await past.TABLES.create(self.engine)
            await paying.TABLES.create(self.engine)
            async with self.engine.begin() as connection:
                for tables in (Base.metadata, past.Base.metadata):
                    await connection.run_sync(tables.create_all)
                emptied = (
                    BOOKS,
                    Line,
                    past.TABLES.events,
                    past.TABLES.projections,
                    past.Customer,
                    paying.TABLES.process,
                )
                for table in emptied:
                    await connection.execute(delete(table))
        except ConfigurationError:
            raise
        except Exception as error:  # a driver raises what it likes, until there is a connection
            raise ConfigurationError(f"--store {self.shown} cannot be used: {reason(error)}") from error

    def routers(self, service: str) -> Sequence[Router]:
        """Return what a service handles beside what it does without a store: payments are waited for here."""
        return (paying.paying, paying.router) if service == "payment" else ()

    def plugins(self, service: str, recorder: Plugin) -> list[Plugin]:
        """Return what makes one transaction of a handling: its mark, its state, its events and what ``recorder`` notes."""
        # The analytics need nobody to listen; an order that nobody hears of counts as lost.
        outbox = Outbox(self.engine, lease=LEASE, unroutable="ignore")
        plugins = [Inbox(self._sessions), recorder, outbox]
        if service != "order":
            return plugins
        events = EventStore(self.engine, events=past.EVENTS, outbox=outbox, tables=past.TABLES)
        return [events, Projections(events, [past.customers], lease=LEASE), *plugins]

    def session(self) -> AsyncSession | None:
        """Return the session whose transaction is under way here, if one is."""
        return _OPEN.get() or Inbox.session()

    def ledger(self, beside: Records) -> StoreLedger:
        """Return a ledger that is written in the transaction that is under way, and otherwise ``beside`` it."""
        return StoreLedger(self, beside)

    def shelf(self, service: str) -> StoreShelf:
        """Return a service's books."""
        return StoreShelf(self, service)

    def orders(self, plugins: Sequence[Plugin]) -> past.SourcedBook:
        """Return the orders in the event store among ``plugins``."""
        return past.SourcedBook(next(each for each in plugins if isinstance(each, EventStore)), self.session)

    def placing(self, plugins: Sequence[Plugin]) -> Callable[[Sequence[Order]], Awaitable[None]]:
        """Return what places orders by the event store among ``plugins``."""
        return partial(self.place, self.orders(plugins))

    async def place(self, book: past.SourcedBook, batch: Sequence[Order]) -> None:
        """Place orders, all of them or none. Raises `StoreUnavailableError`."""
        try:
            async with turn_of(self.engine), self._sessions.begin() as session:
                token = _OPEN.set(session)
                try:
                    for each in batch:
                        await book.open(placed(each))
                finally:
                    _OPEN.reset(token)
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailableError(f"--store {self.shown}: orders cannot be placed: {reason(error)}") from error

    async def take(self) -> list[bytes]:
        """Take out the lines of the ledger whose transactions have committed. Raises `StoreUnavailableError`."""
        try:
            async with turn_of(self.engine), self._sessions.begin() as session:
                rows = (await session.execute(delete(Line).returning(Line.id, Line.record))).all()
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailableError(f"--store {self.shown}: the ledger cannot be read: {reason(error)}") from error
        return [record.encode() for _, record in sorted((id, record) for id, record in rows)]

    async def replay(self, timeout: float) -> past.Replay:
        """Make the read models anew from the stored events, and compare. Raises `StoreUnavailableError`."""
        try:
            return await past.replay(self.engine, timeout)
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailableError(f"--store {self.shown}: events cannot be replayed: {reason(error)}") from error

    async def fetch(self, service: str, book: str, key: str) -> str | None:
        """Return a value."""
        found: str | None = await self._here().scalar(select(BOOKS.c.value).where(*_is(service, book, key)))
        return found

    async def add(self, service: str, book: str, key: str, value: str) -> bool:
        """Note a value; False if one is noted already."""
        row = self._insert(BOOKS).values(service=service, book=book, key=key, value=value)
        return await self._here().scalar(row.on_conflict_do_nothing().returning(BOOKS.c.key)) is not None

    async def lock(self, service: str, book: str, key: str, default: str) -> str:
        """Return a value, and keep it from others until the transaction ends; ``default`` is noted if there is none."""
        row = self._insert(BOOKS).values(service=service, book=book, key=key, value=default)
        row = row.on_conflict_do_update(index_elements=list(BOOKS.primary_key), set_={"value": BOOKS.c.value})
        found: str | None = await self._here().scalar(row.returning(BOOKS.c.value))
        assert found is not None
        return found

    async def change(self, service: str, book: str, key: str, value: str) -> None:
        """Note another value."""
        await self._here().execute(update(BOOKS).where(*_is(service, book, key)).values(value=value))

    def _here(self) -> AsyncSession:
        session = self.session()
        if session is None:
            raise RuntimeError("the books are open in a handler alone, and while orders are placed")
        return session


class StoreShelf:
    """A service's books in the database, read and written in the transaction that is under way."""

    def __init__(self, store: Store, service: str) -> None:
        self.store = store
        self.service = service

    def book(self, name: str, kind: type[V], sums: Sums[V] = no_sums) -> StoreBook[V]:
        """Open a book."""
        return StoreBook(self, name, kind, sums)

    async def sum(self, name: str) -> Decimal:
        """Return a sum."""
        return Decimal(await self.store.fetch(self.service, SUMS, name) or 0)

    async def hold(self, name: str) -> Decimal:
        """Return a sum, whose row is locked until the handler's transaction ends."""
        return Decimal(await self.store.lock(self.service, SUMS, name, "0"))

    async def add(self, name: str, amount: Decimal) -> None:
        """Add to a sum."""
        held = await self.hold(name)
        await self.store.change(self.service, SUMS, name, str(held + amount))


class StoreBook(Generic[V]):
    """A book whose entries are rows."""

    def __init__(self, shelf: StoreShelf, name: str, kind: type[V], sums: Sums[V]) -> None:
        self._shelf = shelf
        self._where = shelf.service, name
        self._kind = kind
        self._sums = sums

    async def get(self, key: str) -> V | None:
        """Return what is noted."""
        found = await self._shelf.store.fetch(*self._where, key)
        return None if found is None else msgspec.json.decode(found, type=self._kind)

    async def keep(self, key: str, value: V) -> V:
        """Note the first word."""
        if await self._shelf.store.add(*self._where, key, _json(value)):
            for name, amount in self._sums(value).items():
                await self._shelf.add(name, amount)
            return value
        noted = await self.get(key)
        return value if noted is None else noted

    async def put(self, key: str, value: V) -> None:
        """Note the last word."""
        if not await self._shelf.store.add(*self._where, key, _json(value)):
            await self._shelf.store.change(*self._where, key, _json(value))


class StoreLedger:
    """A ledger in the transaction that is under way: what is rolled back was neither published nor handled.

    An event counts as published once its row is committed, an effect once what it changed is. What happens outside of
    any transaction (what is tried again, and given up on) is noted ``beside`` it, in a file.
    """

    def __init__(self, store: Store, beside: Records) -> None:
        self._store = store
        self._beside = beside

    def note(self, record: Record) -> None:
        """Write what was published into the transaction, and all else into the file."""
        if isinstance(record, Published | Handled) and (session := self._store.session()) is not None:
            session.add(Line(record=_json(record)))
        else:
            self._beside.note(record)

    async def record(self, record: Record) -> None:
        """Write it into the transaction: what is committed later is there in full, or not at all."""
        self.note(record)

    async def close(self) -> None:
        """Close the file."""
        await self._beside.close()


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _is(service: str, book: str, key: str) -> Iterable[Any]:
    return BOOKS.c.service == service, BOOKS.c.book == book, BOOKS.c.key == key

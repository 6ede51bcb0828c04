"""The event store: append what happened to a thing, load it, read everything in order, decide on what is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any, ClassVar, Final, Literal, TypeVar, cast

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from rabbitevents import Check, ConfigurationError, Event, Host, Plugin, Writer, arguments
from rabbitevents_eventstore.appending import LAST, Database, Expected, Ledger, conflict, version_of
from rabbitevents_eventstore.appending import ConflictError as _ConflictError
from rabbitevents_eventstore.asking import (
    Transactional,
    check_entity,
    check_session,
    check_word,
    outbox_of,
    several,
    snapshots_of,
)
from rabbitevents_eventstore.checkpoints import Checkpoints, standing
from rabbitevents_eventstore.errors import ConcurrencyError, ProjectionBehindError
from rabbitevents_eventstore.folding import Apply, Folding
from rabbitevents_eventstore.reading import Reader
from rabbitevents_eventstore.snapshots import Album, Snapshots
from rabbitevents_eventstore.stored import Shelf, Stored
from rabbitevents_eventstore.tables import EventTables
from rabbitevents_eventstore.watermark import OFTEN, StoreHeldBack, Watermark
from rabbitevents_sql import AWAY, Channel, Notifier, after_commit, backend_of, reason, short_turn_of, where

S = TypeVar("S")

Decision = Callable[[S], Any]
"""What follows from a state: an event, several, or None."""

_TRIES: Final = 100
"""How often an append of `ANY` version is tried while others are faster; each time at least one of them got through."""

_MOST: Final = 10_000
"""How many events can be appended at once: as many as a statement has room for the ids of."""

_AT_ONCE: Final = 500
"""How many events are written by one statement, whatever the driver: SQLAlchemy divides more than 1,000 rows."""

_DEADLINE: Final = 10.0
"""Seconds that the database has at start."""

_SELDOM: Final = 0.05
"""Seconds between two looks at how far a projection is, at last."""

Wake = Literal["process", "notify"]
"""Whom a commit wakes: the projections of its own process, or those of any, by NOTIFY."""

log: logging.Logger = logging.getLogger("rabbitevents.eventstore")


class EventStore(Plugin):
    """Keep what happened, thing by thing and in one order, as the source of what is.

    ::

        store = EventStore(engine, events=[OrderPlaced, OrderPaid], outbox=outbox)
        bus = Bus(url, orders, plugins=[DeadLetter(), Retry(), store, outbox])

    Without a bus it works as well. In a bus's plugins it checks its tables at start, handlers may ask for an ``EventStore``,
    and `Bus.health` says when somebody holds its readers back.

    :param engine: A SQLAlchemy engine for PostgreSQL or SQLite, async; that of the outbox.
    :param events: The `@event` classes that are stored. Events of other types are never read, but for those of an entity
        that is loaded, where each one counts.
    :param outbox: By what appended events are published, in the same transaction and with the same ids. By default they
        are not published.
    :param tables: Where the events are.
    :param name: The events' source: a service's name. By default the bus's, and unknown without one.
    :param patience: For how long an append may be open that readers wait for, until it is said who it is: 10 s.
    :param wake: Whom a commit wakes: "process" (the default), the readers and projections of its own process; "notify", the
        projections of any process too, by PostgreSQL's NOTIFY, at most one in 10 ms. To be said where events are appended
        and where projections run.

    Raises `ConfigurationError`; at start too, for tables that are missing or not as they must be.
    """

    role: ClassVar[str] = "event-store"

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        events: Iterable[type],
        outbox: Transactional | None = None,
        tables: EventTables | None = None,
        name: str | None = None,
        patience: arguments.Seconds = 10,
        wake: Wake = "process",
    ) -> None:
        self.engine: AsyncEngine = arguments.instance(
            "EventStore: engine",
            engine,
            AsyncEngine,
            'give one that create_async_engine("postgresql+asyncpg://...") makes',
        )
        backend_of(engine)
        self.tables: EventTables = (
            EventTables()
            if tables is None
            else arguments.instance("EventStore: tables", tables, EventTables, "say EventTables(schema='events')")
        )
        self._outbox = outbox_of(outbox)
        self.shelf: Shelf = Shelf(arguments.several("EventStore: events", events, type, "[OrderPlaced, OrderPaid]"))
        self._source = None if name is None else arguments.text("EventStore: name", name, such_as="shop")
        self._writer = Writer(source=self._source)
        self._host: Host | None = None
        self._ledger = Ledger(self.tables)
        statements = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._statements = statements if outbox is None and backend_of(engine) == "postgresql" else None
        """By what an append is made that is one statement and nothing else: it commits by itself, two round trips earlier."""
        self.watermark: Watermark = Watermark(
            statements, self.tables, arguments.seconds("EventStore: patience", patience), self._report
        )
        self.checkpoints: Checkpoints = Checkpoints(engine, self.tables)
        self.reader: Reader = Reader(statements, self.tables, self.watermark)
        self._folding = Folding(self.reader, self.shelf, Album(engine, self.tables))
        self.channel: Channel | None = self._channel(wake)
        """Where projections listen for what other processes append."""
        self._notifier = None if self.channel is None else Notifier(self.channel)

    def _channel(self, wake: object) -> Channel | None:
        if arguments.one_of("EventStore: wake", wake, Wake) == "process":
            return None
        return Channel(self.engine, self.tables.events, plugin="EventStore", who="who follows", log=log)

    # --- as a plugin ---

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look at the tables, and let handlers ask for the store."""
        try:
            async with asyncio.timeout(_DEADLINE), self.engine.connect() as connection:
                await connection.run_sync(self.tables.check)
        except AWAY as error:
            raise ConfigurationError(
                f"the event store's database {where(self.engine)} does not answer: {reason(error)}"
            ) from error
        host.provide(EventStore, self)
        self._host, self._writer = host, Writer(source=self._source or host.name)
        try:
            yield
        finally:
            await self._folding.settled()
            self._host, self._writer = None, Writer(source=self._source)

    def health(self) -> Iterable[Check]:
        """Say whether readers are held back."""
        held = self.watermark.held_back
        yield Check("event store", held is None, "" if held is None else held.describe(), degraded=held is not None)

    def _report(self, fact: StoreHeldBack) -> None:
        if self._host is not None:
            self._host.report(fact)

    # --- writing ---

    async def append(
        self,
        entity_type: str,
        entity_id: str,
        events: Sequence[Any],
        *,
        expected: Expected,
        session: Database | None = None,
    ) -> list[Stored[Any]]:
        """Append events to an entity, all of them or none; return them as they are stored.

        The same events again (in their envelopes, so with the same ids) are a success, and change nothing.

        :param entity_type: The kind of thing that it happened to: "order".
        :param entity_id: That thing's id: "42".
        :param events: Instances of `@event` classes, or `Event` values; at least one.
        :param expected: The version that the entity must be at: that of the last event that was loaded, `NEW` for an entity
            without events, `ANY` for whatever it is.
        :param session: An `AsyncSession` or `AsyncConnection` with a transaction under way, which the events become part of.
            A failure leaves it as it was. By default a transaction of its own.

        Raises `ConcurrencyError` for another version than expected, `EncodeError` for an event that cannot be written, and
        `ConfigurationError` for what cannot be meant.
        """
        version = version_of(expected)
        prepared = self._prepared(entity_type, entity_id, events)
        check_session(session, self.engine)
        actual = 0
        for _ in range(_TRIES if version is None else 1):
            try:
                async with self._part(session, len(prepared)) as part:
                    rows, positions = await self._append(part, entity_type, entity_id, prepared, version)
                self._committed(rows, positions, session)
                return [
                    Stored(at, row["version"], event)
                    for at, row, (event, _) in zip(positions, rows, prepared, strict=True)
                ]
            except (IntegrityError, _ConflictError):
                async with self._part(session, 0) as part:
                    same = await self._ledger.same(part, entity_type, entity_id, [event.id for event, _ in prepared])
                    actual = await self._ledger.version(part, entity_type, entity_id)
            if same:
                return [Stored(*place, event) for place, (event, _) in zip(same, prepared, strict=True)]
        raise conflict(entity_type, entity_id, version, actual)

    def _prepared(self, entity_type: str, entity_id: str, events: object) -> list[tuple[Event[Any], bytes]]:
        check_entity(entity_type, entity_id)
        if not isinstance(events, (list, tuple)):
            raise arguments.wrong("append: events", events, "say a list of at least one event")
        given = cast("Sequence[Any]", events)
        if not 1 <= len(given) <= _MOST:
            raise ConfigurationError(
                f"append: events has {len(given):,} events: say 1 to {_MOST:,}, and append more in several parts"
            )
        prepared = [self.shelf.envelope(each, self._writer, entity_type, entity_id) for each in given]
        if len({event.id for event, _ in prepared}) < len(prepared):
            raise ConfigurationError("append: two of the events have the same id")
        return prepared

    async def _append(
        self,
        session: Database,
        entity_type: str,
        entity_id: str,
        prepared: Sequence[tuple[Event[Any], bytes]],
        expected: int | None,
    ) -> tuple[list[dict[str, Any]], list[int]]:
        if expected and len(prepared) == 1:
            rows = [self.shelf.row(*prepared[0], expected + 1)]
            positions = await self._ledger.insert_next(session, rows[0], expected)
        else:
            base = await self._ledger.base(session, entity_type, entity_id, expected)
            rows = [self.shelf.row(event, body, base + n) for n, (event, body) in enumerate(prepared, 1)]
            positions = await self._ledger.insert(session, rows)
        if self._outbox is not None:
            await self._outbox.publish(session, *(event for event, _ in prepared))
        return rows, positions

    def _committed(self, rows: list[dict[str, Any]], positions: list[int], session: Database | None) -> None:
        """Wake this process's readers: at once, or once the transaction that the events are part of has committed.

        Of such a transaction it is only known then that it has ended: a savepoint in it may have been rolled back.
        """
        notify = None if self._notifier is None else self._notifier.poke
        if session is None:
            self.reader.committed(rows, positions)
            if notify is not None:
                notify()
        elif isinstance(session, AsyncSession):
            ended = partial(self.watermark.committed, positions[0], positions[-1], len(positions))
            after_commit(session.sync_session, ended)
            if notify is not None:
                after_commit(session.sync_session, notify)

    def _part(self, session: Database | None, count: int) -> AbstractAsyncContextManager[Database]:
        """Return a transaction of its own for so many events, or a savepoint in the one that is given."""
        return self._own(count) if session is None else _savepoint(session)

    @asynccontextmanager
    async def _own(self, count: int) -> AsyncGenerator[Database]:
        if self._statements is not None and count <= _AT_ONCE:
            async with self._statements.connect() as connection:
                yield connection
        else:
            async with short_turn_of(self.engine), AsyncSession(self.engine) as session, session.begin():
                yield session

    # --- reading ---

    async def load(
        self, entity_type: str, entity_id: str, *, after: int = 0, session: Database | None = None
    ) -> AsyncIterator[Stored[Any]]:
        """Yield the events of an entity, in their order.

        :param entity_type: The kind of thing.
        :param entity_id: Its id.
        :param after: Behind which version: 0, all of them.
        :param session: In whose transaction to read. By default in none.

        Raises `DecodeError` for one that cannot be read, be it that the store does not know its type.
        """
        check_entity(entity_type, entity_id)
        arguments.whole("load: after", after, least=0, most=LAST)
        async for row in self.reader.load(entity_type, entity_id, after, session):
            yield self.shelf.stored(row)

    async def read(
        self, *, after: int = 0, types: Iterable[type] | None = None, entity_type: str | None = None, live: bool = False
    ) -> AsyncIterator[Stored[Any]]:
        """Yield the events of all entities in one order, that of their positions, each of them once it is certain.

        An event is yielded once everything before it has committed or never will: what commits late is never passed over.

        :param after: Behind which position: 0, from the beginning.
        :param types: Events of which classes: those of the store.
        :param entity_type: Of which kind of thing: any.
        :param live: Whether to go on with what comes, without an end. By default it ends with what was committed when it
            began, for which an append that is open at that moment is waited for.

        Raises `StoreRestoredError` where ``after`` is more than there is, `DecodeError` for an event that cannot be read,
        and `ConfigurationError` for a replica.
        """
        arguments.whole("read: after", after, least=0, most=LAST)
        arguments.flag("read: live", live)
        names = self.shelf.names(
            None if types is None else arguments.several("read: types", types, type, "[OrderPaid]")
        )
        if entity_type is not None:
            check_word("entity_type", entity_type, "order")
        async for row in (self.reader.live if live else self.reader.until)(after, names, entity_type):
            yield self.shelf.stored(row)

    async def caught_up(self, name: str, position: int, *, timeout: arguments.Seconds = 5) -> None:
        """Wait until a projection has applied everything up to a position: what was written is to be read there.

        ::

            appended = await store.append("order", "42", [OrderPaid("42", 7)], expected=2)
            await store.caught_up("order_summary", appended[-1].position)

        :param name: The projection's.
        :param position: That of the event that was appended.
        :param timeout: Seconds to wait at most: 5.

        Raises `ProjectionBehindError` after the timeout, and at once where the projection stands; `ConfigurationError` for
        one that is not there.
        """
        arguments.whole("caught_up: position", position, least=0, most=LAST)
        until = monotonic() + arguments.seconds("caught_up: timeout", timeout)
        pause = OFTEN
        while True:
            found = await self.checkpoints.live(arguments.text("caught_up: name", name, such_as="order_summary"))
            if found is None:
                raise ConfigurationError(f"caught_up: there is no projection {name!r}, or it has never run")
            if found.position >= position:
                return
            trouble = standing(found, found.version)
            if trouble or monotonic() + pause > until:
                raise ProjectionBehindError(name, position, found.position, trouble or "there was no more time")
            await asyncio.sleep(pause)
            pause = min(_SELDOM, pause * 2)

    # --- state ---

    async def rebuild(
        self,
        entity_type: str,
        entity_id: str,
        apply: Apply[S],
        initial: S,
        *,
        session: Database | None = None,
        snapshots: Snapshots | None = None,
    ) -> S:
        """Return an entity's state: ``initial``, and each of its events applied to it.

        :param entity_type: The kind of thing.
        :param entity_id: Its id.
        :param apply: What an event makes of a state: ``apply(state, payload)`` returns the new state. Must be pure.
        :param initial: The state before the first event.
        :param session: In whose transaction to read. By default in none.
        :param snapshots: How its state is kept now and then, so that not all events are read. By default it is not.

        Raises as `load` does.
        """
        check_entity(entity_type, entity_id)
        state, _ = await self._folding.fold(entity_type, entity_id, apply, initial, session, snapshots_of(snapshots))
        return state

    async def decide(
        self,
        entity_type: str,
        entity_id: str,
        decision: Decision[S],
        *,
        apply: Apply[S],
        initial: S,
        session: Database | None = None,
        snapshots: Snapshots | None = None,
        attempts: int = 3,
    ) -> list[Stored[Any]]:
        """Load an entity, decide on its state, and append what was decided; again where somebody else was faster.

        ::

            await store.decide("order", "42", lambda order: order.pay(100), apply=apply, initial=Order())

        :param entity_type: The kind of thing.
        :param entity_id: Its id.
        :param decision: Is given the state, and returns an event, a list of events, or None; or raises, which ends it. May
            be called several times, and so must be pure.
        :param apply: As for `rebuild`.
        :param initial: The state before the first event.
        :param session: In whose transaction to read and to append. By default in one of its own.
        :param snapshots: As for `rebuild`.
        :param attempts: How often it is tried: 3.

        Returns what was appended. Raises `ConcurrencyError` where others were faster each time, and as `append` and `load`.
        """
        check_entity(entity_type, entity_id)
        kept = snapshots_of(snapshots)
        again = AsyncRetrying(
            stop=stop_after_attempt(arguments.whole("decide: attempts", attempts)),
            wait=wait_random_exponential(multiplier=0.01, max=0.5),
            retry=retry_if_exception_type(ConcurrencyError),
            reraise=True,
        )

        async def once() -> list[Stored[Any]]:
            state, version = await self._folding.fold(entity_type, entity_id, apply, initial, session, kept)
            decided = several(decision(state))
            if not decided:
                return []
            return await self.append(entity_type, entity_id, decided, expected=version, session=session)

        return await again(once)


@asynccontextmanager
async def _savepoint(session: Database) -> AsyncGenerator[Database]:
    async with session.begin_nested():
        yield session

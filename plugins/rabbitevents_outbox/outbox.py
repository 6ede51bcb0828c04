"""The outbox: what is published in a transaction is a row of it, and goes out once it is committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Literal, TypeVar, cast, overload

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from rabbitevents import Check, ConfigurationError, Event, Finding, Host, Limits, Look, Message, Plugin, Publish, Writer
from rabbitevents.arguments import Seconds, flag, instance, one_of, span, text, whole
from rabbitevents_outbox.diagnosis import diagnose
from rabbitevents_outbox.relay import Relay
from rabbitevents_outbox.rows import Style, row_of, statement_of
from rabbitevents_outbox.shards import DEADLINE
from rabbitevents_outbox.tables import Tables
from rabbitevents_outbox.tenure import Settings, log
from rabbitevents_outbox.transaction import CURRENT, TransactionError, collecting
from rabbitevents_sql import AWAY, Channel, Notifier, after_commit, backend_of, reason, where

P = TypeVar("P")

Database = AsyncSession | AsyncConnection
"""What a transaction is under way on."""

Unroutable = Literal["raise", "ignore"]
"""What a row is that no queue is bound for: one that failed, and is kept; or one that is done with."""

Wake = Literal["process", "notify"]
"""Whom a commit wakes: the relay of its own process, or that of any, by NOTIFY."""


class Outbox(Plugin):
    """Publish events in your transaction: they are sent if it commits, and only then.

    ::

        outbox = Outbox(engine)
        bus = Bus(url, orders, plugins=[DeadLetter(), Retry(), outbox])

        async with sessions.begin() as session:
            session.add(Order(...))
            await outbox.publish(session, OrderPlaced(...))

    In a bus's plugins, the last one of them, it relays what was committed while the bus runs. Of several processes one
    relays; another one takes over within ``lease``. Events of one entity go in the order of their writing, each once the
    one before it is confirmed. At a crash some are sent twice, with the same id.

    :param engine: A SQLAlchemy engine for PostgreSQL or SQLite, which the relay uses, async.
    :param tables: Where the rows are.
    :param name: The events' source where no bus runs: a service's name. By default the bus's, and unknown without one.
    :param relay: Whether this process relays: True.
    :param batch: How many rows are in the relay's hands at a time, at least: 500.
    :param poll: How often the relay looks for what other processes have written: 0.1 s; up to ten times as often while
        they write, and up to ten times as seldom while there is nothing.
    :param keep: For how long a row is kept once it is sent. By default it is deleted.
    :param max_attempts: How often a row may fail by itself before it is dead: 10, over 17 minutes.
    :param unroutable: What a row is that no queue is bound for: "raise" (the default) keeps it as failed; "ignore" takes it
        as sent.
    :param shards: Into how many parts the rows are divided, each with a relay of its own: 1. To be said alike everywhere.
    :param lease: For how long a relay has its shards that does not renew them: 30 s.
    :param wake: Whom a commit wakes: "process" (the default), the relay of its own process; "notify", that of any process
        too, by PostgreSQL's NOTIFY, at most one in 10 ms. To be said where events are written and where they are relayed.

    Raises `ConfigurationError`; at start too, for tables that are missing or of another version.
    """

    role: ClassVar[str] = "outbox"
    inside: ClassVar[frozenset[str]] = frozenset({"dead-letter", "retry", "trace", "metrics", "once"})

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        tables: Tables | None = None,
        name: str | None = None,
        relay: bool = True,
        batch: int = 500,
        poll: Seconds = 0.1,
        keep: Seconds | None = None,
        max_attempts: int = 10,
        unroutable: Unroutable = "raise",
        shards: int = 1,
        lease: Seconds = 30,
        wake: Wake = "process",
    ) -> None:
        self.engine: AsyncEngine = instance(
            "Outbox: engine", engine, AsyncEngine, 'give one that create_async_engine("postgresql+asyncpg://...") makes'
        )
        self.tables: Tables = (
            Tables() if tables is None else instance("Outbox: tables", tables, Tables, "say Tables(schema='messaging')")
        )
        self.settings: Settings = Settings(
            batch=whole("Outbox: batch", batch, most=5000),
            poll=span("Outbox: poll", poll, positive=True).total_seconds(),
            keep=None if keep is None else span("Outbox: keep", keep),
            max_attempts=whole("Outbox: max_attempts", max_attempts, most=10_000),
            keeps_unroutable=one_of("Outbox: unroutable", unroutable, Unroutable) == "raise",
            shards=whole("Outbox: shards", shards, most=1000),
            lease=span("Outbox: lease", lease, least=1.0).total_seconds(),
        )
        self.relays: bool = flag("Outbox: relay", relay)
        """Whether a bus that runs with it sends its rows."""
        self._backend = backend_of(engine)
        self._writer = Writer(source=None if name is None else text("Outbox: name", name, such_as="shop"))
        self._limits = Limits()
        self._host: Host | None = None
        self._relay: Relay | None = None
        notifies = one_of("Outbox: wake", wake, Wake) == "notify"
        told: dict[str, Any] = {"plugin": "Outbox", "who": "the relay of", "log": log}
        self._channel = Channel(engine, self.tables.outbox, **told) if notifies else None
        self._notifier = None if self._channel is None else Notifier(self._channel)

    # --- as a plugin ---

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look at the tables, and relay as long as the bus runs."""
        await self._look()
        self._host, self._limits = host, host.limits
        if self._notifier is not None:
            self._notifier.bind()
        try:
            if not self.relays:
                yield
                return
            relay = self._relay = Relay(self.engine, self.tables, host, self.settings, self._channel)
            async with relay.running():
                yield
        finally:
            self._host = self._relay = None

    async def _look(self) -> None:
        """Raise `ConfigurationError` where the database cannot be used."""
        try:
            async with asyncio.timeout(DEADLINE), self.engine.connect() as connection:
                await connection.run_sync(self.tables.check, self.tables.outbox, self.tables.lease)
        except AWAY as error:
            raise ConfigurationError(
                f"the outbox's database {where(self.engine)} does not answer: {reason(error)}"
            ) from error

    def health(self) -> Iterable[Check]:
        """Say whether the rows are sent, and how many are dead."""
        return () if self._relay is None else self._relay.checks()

    async def diagnose(self, look: Look) -> Iterable[Finding]:
        """Say which rows are dead, how long others wait, and whether no relay is there."""
        return await diagnose(self.engine, self.tables, self.settings.shards)

    def busy(self) -> str:
        """Say how many rows are still to be sent."""
        return "" if self._relay is None else self._relay.busy()

    # --- writing ---

    @overload
    async def publish(self, proceed: Publish, message: Message, /) -> None: ...

    @overload
    async def publish(self, session: Database, payload: P | Event[P], /, **told: Any) -> Event[P]: ...

    @overload
    async def publish(
        self, session: Database, first: Any, second: Any, /, *more: Any, **told: Any
    ) -> list[Event[Any]]: ...

    @overload
    async def publish(self, session: Database, /, *payloads: Any, **told: Any) -> Any: ...

    async def publish(self, session: Any, /, *payloads: Any, **told: Any) -> Any:
        """Write events into the transaction that is under way on ``session``; return them in their envelopes.

        They are sent once that has committed. No broker is needed. Ids, causes and what plugins add are as those of
        `Bus.publish`. (As a plugin's hook it is given the rest of the chain in place of a session: what is published in an
        `Inbox`'s transaction becomes a row of it.)

        :param session: An `AsyncSession` or `AsyncConnection` of the outbox's database, with a transaction under way.
        :param payloads: Instances of `@event` classes, or `Event` values. One is returned as itself, several as a list.
        :param told: What `Bus.publish` may be told, but for its timeout: ``delay=``, ``id=``, ``exchange=``, ``key=``,
            ``metadata=``, ``correlation_id=``.

        Raises `TransactionError` without a transaction, `EncodeError` for what cannot be written, and
        `ConfigurationError` for what cannot be meant.
        """
        if not isinstance(session, (AsyncSession, AsyncConnection)):
            if callable(session) and len(payloads) == 1 and isinstance(payloads[0], Message):
                return await self._hook(cast("Publish", session), payloads[0])
            raise TransactionError(_no_session(session))
        if not payloads:
            raise ConfigurationError("outbox.publish(session) has no events: say at least one")
        self._check(session.sync_session if isinstance(session, AsyncSession) else session.sync_connection)
        events, rows = await self._written(payloads, told)
        await session.run_sync(self._insert, rows)
        if isinstance(session, AsyncSession):
            self._wake_after(session.sync_session)
        return events[0] if len(payloads) == 1 else events

    def write(self, session: Session | Connection, /, *payloads: Any, **told: Any) -> list[Event[Any]]:
        """Write events as `publish` does, for what is not async: a plain ``def`` handler, or a view.

        :param session: A `Session` or `Connection` of the outbox's database, with a transaction under way.
        :param payloads: As for `publish`.
        :param told: As for `publish`.
        """
        if not isinstance(cast("object", session), (Session, Connection)):
            raise TransactionError(_no_session(session))
        self._check(session)
        prepared = self._prepare(payloads, told)
        self._insert(session, [self._row(message, told) for _, message in prepared])
        if isinstance(session, Session):
            self._wake_after(session)
        return [event for event, _ in prepared]

    def insert(self, *payloads: Any, style: Style = "format", **told: Any) -> tuple[str, Any]:
        """Return one INSERT and its parameters, which write events through a driver of any kind.

        ::

            cursor.execute(*outbox.insert(OrderPlaced(...)))                       # psycopg, Django
            sql, parameters = outbox.insert(OrderPlaced(...), style="numeric")
            await connection.execute(sql, *parameters)                             # asyncpg

        :param payloads: As for `publish`; at least one.
        :param style: How the driver names parameters: "format" (``%s``), "numeric" (``$1``), "qmark" (``?``) or "named"
            (``:name``).
        :param told: As for `publish`.
        """
        one_of("insert: style", style, Style)
        if not payloads:
            raise ConfigurationError("insert() has no events: say at least one")
        rows = [self._row(message, told) for _, message in self._prepare(payloads, told)]
        return statement_of(self.engine.dialect.identifier_preparer.format_table(self.tables.outbox), rows, style)

    async def _hook(self, proceed: Publish, message: Message) -> None:
        transaction = CURRENT.get()
        if transaction is None or transaction.over:
            await proceed(message)
            return
        if transaction.outbox not in (None, self):
            raise ConfigurationError("one transaction has two outboxes: a service's events go out through one")
        self._limits.check_message(message)
        transaction.rows.append(row_of(message, self.settings.shards))
        transaction.outbox = self
        transaction.wake = self._wake

    async def _written(self, payloads: tuple[Any, ...], told: dict[str, Any]) -> tuple[list[Event[Any]], list[Any]]:
        """Return events and their rows; where the bus runs, its plugins have seen them."""
        prepared = self._prepare(payloads, told)
        host = self._host
        if host is None or self not in host.plugins:
            return [event for event, _ in prepared], [self._row(message, told) for _, message in prepared]
        with collecting() as transaction:
            transaction.outbox = self
            for _, message in prepared:
                await host.publish_message(message)
        if len(transaction.rows) != len(prepared):
            raise TransactionError(
                "outbox.publish(session, ...): a plugin, or a handler that is without this outbox, did not let the event come "
                "here, so it is not in the transaction"
            )
        return [event for event, _ in prepared], transaction.rows

    def _prepare(self, payloads: tuple[Any, ...], told: dict[str, Any]) -> list[tuple[Event[Any], Message]]:
        if "timeout" in told:
            raise ConfigurationError("timeout=: what is written into a transaction waits for nothing; leave it out")
        if len(payloads) > 1 and told.get("id") is not None:
            raise ConfigurationError("id=: an id is one event's alone, and several are given: publish them one by one")
        writer = self._host or self._writer
        return [writer.prepare(payload, **told) for payload in payloads]

    def _row(self, message: Message, told: dict[str, Any]) -> dict[str, Any]:
        self._limits.check_message(message)
        own = self._host is None and told.get("exchange") is None
        return row_of(message, self.settings.shards, own_exchange=own)

    def _insert(self, session: Session | Connection, rows: list[Any]) -> None:
        """Write rows on the session's own connection: it has nothing to add to them."""
        (session.connection() if isinstance(session, Session) else session).execute(self.tables.writing, rows)

    def _check(self, session: Any) -> None:
        """Raise `TransactionError` where no transaction is under way on this database."""
        if session is None or not session.in_transaction():
            raise TransactionError(
                "outbox.publish(session, ...): no transaction is under way on this session, so nothing would be committed; "
                "publish inside `async with sessions.begin() as session:`"
            )
        engine = (session.get_bind() if isinstance(session, Session) else session).engine
        theirs, ours = engine.url, self.engine.url
        if (engine.dialect.name, theirs.database) != (self._backend, ours.database):
            raise TransactionError(
                f"outbox.publish(session, ...): the session is of {where(engine)}, and the outbox's tables are in "
                f"{where(self.engine)}: one transaction is in one database"
            )
        if isinstance(session, Connection) and session.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            raise TransactionError(
                "outbox.publish(connection, ...): the connection commits each statement by itself (AUTOCOMMIT); publish in a "
                "transaction"
            )

    def _wake_after(self, session: Session) -> None:
        if self._relay is not None or self._notifier is not None:
            after_commit(session, self._wake)

    def _wake(self) -> None:
        """Have what was committed sent: by the relay here, or by that of another process."""
        if self._relay is not None:
            self._relay.wake()
        if self._notifier is not None and (self._relay is None or not self._relay.sends):
            self._notifier.poke()


def _no_session(given: object) -> str:
    return (
        f"outbox.publish(session, ...) was given {type(given).__name__}: it takes an AsyncSession or an AsyncConnection with a "
        "transaction under way; outbox.write(session, ...) takes a Session or a Connection"
    )

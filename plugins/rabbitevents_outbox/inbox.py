"""The inbox: each handler handles each event once, since its mark commits with all that the handler did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, ClassVar, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from rabbitevents import (
    ACK,
    ConfigurationError,
    Consume,
    ConsumeBatch,
    Delivery,
    Host,
    Outcome,
    Plugin,
    Settlement,
    Subscription,
    event_fields,
    facts,
    forward,
    undone,
)
from rabbitevents.arguments import Seconds, instance, span
from rabbitevents_outbox.marks import Mark, Marks
from rabbitevents_outbox.outbox import Outbox
from rabbitevents_outbox.sessions import Pool, Unit
from rabbitevents_outbox.tables import Tables
from rabbitevents_outbox.tenure import log
from rabbitevents_outbox.transaction import Transaction, collecting
from rabbitevents_sql import AWAY, reason, turn_of

PURGING: Final = 3600.0
"""Seconds between two looks for marks that were kept long enough."""

_SESSION: ContextVar[Any] = ContextVar("rabbitevents_session", default=None)
"""The session of the handling that is under way."""


class Inbox(Plugin):
    """Handle each event in one transaction: the mark that it is handled, the handler's writes, and what it publishes.

    ::

        bus = Bus(url, orders, plugins=[DeadLetter(), Retry(), Inbox(sessions), Outbox(engine)])

        @orders.on(OrderPlaced)
        async def reserve(order: OrderPlaced, session: AsyncSession) -> StockReserved: ...

    They commit together or not at all, so the effects in this database are exactly once, however often an event is
    delivered. What a handler does elsewhere is not covered: a mail, or a call over HTTP, is repeated with the attempt.
    ``bus.send`` goes past it. A handler may use savepoints (``session.begin_nested()``); the transaction is not its own to
    end.

    :param sessions: What makes the sessions that handlers get: an ``async_sessionmaker``; or a ``sessionmaker``, for plain
        ``def`` handlers that ask for a ``Session``, each in a thread.
    :param tables: Where the marks are.
    :param keep: How long it is known that an event was handled: 30 days by default. Say longer than dead letters live.
    :param busy: After how long an event comes back that another worker has under way: 1 s.

    Raises `ConfigurationError`; at start too, for tables that are missing or of another version, for a pool that is smaller
    than what is handled at a time, and where no `Outbox` stands further in.
    """

    role: ClassVar[str] = "once"
    inside: ClassVar[frozenset[str]] = frozenset({"dead-letter", "retry", "trace", "metrics"})

    def __init__(
        self,
        sessions: async_sessionmaker[Any] | sessionmaker[Any],
        *,
        tables: Tables | None = None,
        keep: Seconds = timedelta(days=30),
        busy: Seconds = 1.0,
    ) -> None:
        self._pool = Pool(sessions)
        self._tables = (
            Tables() if tables is None else instance("Inbox: tables", tables, Tables, "say Tables(schema='messaging')")
        )
        self._keep = span("Inbox: keep", keep, positive=True)
        self._busy = span("Inbox: busy", busy, least=0.1)
        self._marks = Marks(self._tables, self._pool.backend)
        self._host: Host | None = None
        self._identities: dict[str, str] = {}
        """What marks are made for, by the queues."""
        self._without_id: set[str] = set()
        self._turn = turn_of(self._pool.engine)

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        """Look at the tables and the pool, let handlers ask for sessions, and forget old marks."""
        if not any(isinstance(plugin, Outbox) for plugin in host.plugins):
            raise ConfigurationError(
                "Inbox() needs an Outbox() further in, or what a handler publishes would leave its transaction: write "
                "plugins=[..., Inbox(sessions), Outbox(engine)]"
            )
        self._pool.check(sum(each.options.concurrency for each in host.subscriptions_of(self)))
        unit = self._pool.unit()
        try:
            await unit.run(lambda session: self._tables.check(session.connection(), self._tables.inbox))
        finally:
            await unit.close()
        host.provide(self._pool.kind, factory=_session_of)
        self._host = host
        self._identities = {each.queue: each.identity for each in host.subscriptions}
        purging = asyncio.create_task(self._purge(), name="rabbitevents inbox purge")
        try:
            yield
        finally:
            self._host = None
            purging.cancel()
            await asyncio.wait({purging})

    def waits(self, subscription: Subscription) -> Iterable[tuple[timedelta, timedelta]]:
        """Say how long an event waits that another worker has under way."""
        yield self._busy, self._busy

    @staticmethod
    def session() -> Any:
        """Return the session of the handling that is under way here; None outside of one.

        For what is between a handler and its rows, and is not given the session: a repository, or another plugin.
        """
        return _SESSION.get()

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Mark, handle, and commit all of it. Raises what the handling raises, and what the database does."""
        host = self._host
        if host is None:
            raise ConfigurationError("Inbox() has no bus: put it into Bus(plugins=[...])")
        if delivery.oversize:  # which cannot be handled
            return await proceed(delivery)
        async with self._turn:
            unit = self._pool.unit()
            try:
                mark = await unit.run(self._begin, unit, delivery)
                if mark == "new":
                    return await self._handle(proceed, unit, delivery)
            finally:
                await unit.close()
        return self._known(host, delivery, mark)

    async def batch(self, proceed: ConsumeBatch, deliveries: Sequence[Delivery]) -> list[Settlement | BaseException]:
        """Mark, handle, and commit what is handled together in one transaction, without the marks of those that failed.

        Raises what the handling raises, and what the database does.
        """
        if self._host is None:
            raise ConfigurationError("Inbox() has no bus: put it into Bus(plugins=[...])")
        async with self._turn:
            unit = self._pool.unit()
            try:
                marks = await unit.run(self._begin_all, unit, deliveries)
                new = [delivery for delivery, mark in zip(deliveries, marks, strict=True) if mark == "new"]
                answers = iter(await self._handle_all(proceed, unit, new) if new else [])
            finally:
                await unit.close()
        return [
            next(answers) if mark == "new" else self._known(self._host, delivery, mark)
            for delivery, mark in zip(deliveries, marks, strict=True)
        ]

    def _begin_all(self, session: Session, unit: Unit, deliveries: Sequence[Delivery]) -> list[Mark]:
        connection = unit.begun(session)
        named = [each for each in deliveries if each.properties.message_id is not None]
        for delivery in (each for each in deliveries if each.properties.message_id is None):
            self._say_without_id(delivery)
        marks = iter(
            self._marks.make_all(connection, [each.id for each in named], self._whose(deliveries[0])) if named else []
        )
        return ["new" if each.properties.message_id is None else next(marks) for each in deliveries]

    async def _handle_all(
        self, proceed: ConsumeBatch, unit: Unit, deliveries: list[Delivery]
    ) -> list[Settlement | BaseException]:
        token = _SESSION.set(unit.session)
        try:
            with collecting() as transaction:
                answers = await proceed(deliveries)
        finally:
            _SESSION.reset(token)
        failed = [
            each
            for each, answer in zip(deliveries, answers, strict=True)
            if isinstance(answer, BaseException) or answer.outcome is not Outcome.ACK
        ]
        if len(failed) < len(deliveries):
            await unit.run(self._unmark, [each.id for each in failed], self._whose(deliveries[0]))
            await unit.run(self._end, unit, transaction)
            if transaction.wake is not None:
                transaction.wake()
        return answers

    def _unmark(self, session: Session, ids: list[UUID], subscription: str) -> None:
        if ids:
            self._marks.unmake(session.connection(), ids, subscription)

    def _known(self, host: Host, delivery: Delivery, mark: Mark) -> Settlement:
        if mark == "busy":
            return forward(delivery.replace(attempt=delivery.attempt, after=self._busy))
        host.report(facts.Duplicate(delivery.queue, delivery.type, str(delivery.id)))
        return ACK

    def _begin(self, session: Session, unit: Unit, delivery: Delivery) -> Mark:
        connection = unit.begun(session)
        if delivery.properties.message_id is None:
            self._say_without_id(delivery)
            return "new"
        return self._marks.make(connection, delivery.id, self._whose(delivery))

    def _whose(self, delivery: Delivery) -> str:
        """Return what an event's mark is made for: the subscription, whatever its queue is called."""
        return self._identities.get(delivery.queue, delivery.queue)

    async def _handle(self, proceed: Consume, unit: Unit, delivery: Delivery) -> Settlement:
        token = _SESSION.set(unit.session)
        done = False
        try:
            with collecting() as transaction:
                settlement = await proceed(delivery)
            if settlement.outcome is Outcome.ACK:
                await unit.run(self._end, unit, transaction)
                done = True
        finally:
            _SESSION.reset(token)
            if not done:
                undone()
        if transaction.wake is not None and done:
            transaction.wake()
        return settlement

    def _end(self, session: Session, unit: Unit, transaction: Transaction) -> None:
        if isinstance(transaction.outbox, Outbox):
            session.connection().execute(transaction.outbox.tables.writing, transaction.rows)
        unit.commit(session)

    def _say_without_id(self, delivery: Delivery) -> None:
        if delivery.queue not in self._without_id:
            self._without_id.add(delivery.queue)
            log.warning(
                "%s is handled as often as it comes, as is everything without an id in this queue (said once)",
                delivery.describe(),
                extra=event_fields(delivery),
            )

    async def _purge(self) -> None:
        """Forget old marks, hour by hour; a database that is away is asked again the next time."""
        while True:
            unit = self._pool.unit()
            purged = 0
            try:
                purged = await unit.run(self._marks.purge, self._keep)
                await unit.run(unit.commit)
            except AWAY as error:
                log.warning("old marks of the inbox are kept for another hour: %s", reason(error))
            finally:
                await unit.close()
            await asyncio.sleep(0.1 if purged else PURGING)


async def _session_of(_delivery: Delivery) -> Any:
    """Give a handler the session of its transaction, to be left as it is."""
    yield _SESSION.get()

"""Sessions whose transaction is the inbox's: async ones, and plain ones in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, TypeVar, cast

from sqlalchemy import Connection, Engine, ExceptionContext, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import QueuePool

from rabbitevents import ConfigurationError
from rabbitevents.arguments import wrong
from rabbitevents_outbox.transaction import TransactionError
from rabbitevents_sql import Backend, backend_of

P = ParamSpec("P")
T = TypeVar("T")

_FAILED: Final = "rabbitevents_failed"
"""Where a connection notes that a statement has failed on it. PostgreSQL answers the COMMIT of a transaction in which one
has with a ROLLBACK, and without an error."""

_LOOK: Final = text("SELECT 1")

SPARE: Final = 2
"""Connections beside those of handlers: the relay's, and one for the application."""


class Unit:
    """One transaction on a session of its own, begun by the first statement."""

    def __init__(self, session: AsyncSession | Session, plain: type[Session]) -> None:
        self.session: AsyncSession | Session = session
        self._plain = plain

    async def run(self, function: Callable[Concatenate[Session, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what takes a plain session, with this one: in a greenlet, or in a thread."""
        session = self.session
        if isinstance(session, AsyncSession):
            return await session.run_sync(function, *args, **kwargs)
        return await asyncio.to_thread(function, session, *args, **kwargs)

    def begun(self, session: Session) -> Connection:
        """Begin, and return the connection, on which nothing has failed yet."""
        connection = session.connection()
        connection.info.pop(_FAILED, None)
        return connection

    def commit(self, session: Session) -> None:
        """Commit. Raises what SQLAlchemy does, and never rolls back silently."""
        session.flush()
        if _FAILED in session.connection().info:
            session.execute(_LOOK)
        self._plain.commit(session)

    async def close(self) -> None:
        """Give the connection back; what is not committed is rolled back."""
        await self.run(self._plain.close)


class Pool:
    """The sessions that an inbox has, from what the service's own are made with."""

    def __init__(self, sessions: async_sessionmaker[Any] | sessionmaker[Any]) -> None:
        if not isinstance(cast("object", sessions), (async_sessionmaker, sessionmaker)):
            raise wrong(
                "Inbox: sessions",
                sessions,
                "give an async_sessionmaker(engine), or a sessionmaker(engine) for def handlers",
            )
        bind = sessions.kw.get("bind")
        if not isinstance(bind, (AsyncEngine, Engine)):
            raise ConfigurationError("Inbox: sessions has no engine: say async_sessionmaker(engine)")
        self.engine: Engine = bind.sync_engine if isinstance(bind, AsyncEngine) else bind
        self.backend: Backend = backend_of(bind)
        self.kind: type[Any] = AsyncSession if isinstance(sessions, async_sessionmaker) else Session
        """What handlers ask for."""
        if isinstance(sessions, async_sessionmaker):
            told = sessions.kw.get("sync_session_class")
            self._plain: type[Session] = told or sessions.class_.sync_session_class
            guarded = _guarded(self._plain)
            self._make: Callable[[], AsyncSession | Session] = lambda: sessions(sync_session_class=guarded)
        else:
            self._plain = sessions.class_
            self._make = sessionmaker(class_=_guarded(self._plain), **sessions.kw)
        if not event.contains(self.engine, "handle_error", _failed):
            event.listen(self.engine, "handle_error", _failed)

    def unit(self) -> Unit:
        """Return a transaction that has not begun."""
        return Unit(self._make(), self._plain)

    def check(self, handlers: int) -> None:
        """Raise `ConfigurationError` for a pool that has fewer connections than ``handlers`` and those beside need."""
        pool = self.engine.pool
        if not isinstance(pool, QueuePool) or self.backend == "sqlite":
            return
        most = cast("int", getattr(pool, "_max_overflow", 0))
        has, needs = pool.size() + most, handlers + SPARE
        if most >= 0 and has < needs:
            raise ConfigurationError(
                f"Inbox: the engine's pool has {has} connections (pool_size={pool.size()}, max_overflow={most}), and "
                f"{handlers} events are handled at a time, each with one: say create_async_engine(..., pool_size={needs}), or "
                "a lower concurrency= of the handlers"
            )


def _guarded(plain: type[Session]) -> type[Session]:
    """Return a session class whose transaction a handler cannot end."""

    def refuse(self: Session, *_args: object, **_kwargs: object) -> NoReturn:
        raise TransactionError(
            "the handler's session is in the Inbox's transaction, which commits when the handler has returned and is rolled "
            "back when it raises: leave commit(), rollback(), close() and begin() to it; begin_nested() makes a savepoint"
        )

    def begin(self: Session, nested: bool = False) -> Any:
        return plain.begin(self, nested=True) if nested else refuse(self)

    ways = {"commit": refuse, "rollback": refuse, "close": refuse, "begin": begin}
    return type(plain.__name__, (plain,), ways)


def _failed(context: ExceptionContext) -> None:
    if context.connection is not None and not context.connection.invalidated:
        context.connection.info[_FAILED] = True

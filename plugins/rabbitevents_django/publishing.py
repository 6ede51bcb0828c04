"""Publishing in a transaction of Django's: an event is a row of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict, TypeVar, Unpack, overload
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.asyncio import async_unsafe

from rabbitevents import ConfigurationError, Event
from rabbitevents.arguments import Seconds
from rabbitevents_django.configuration import writer_for
from rabbitevents_django.databases import connection_to
from rabbitevents_outbox import TransactionError

P = TypeVar("P")

PART: Final = 500
"""How many events one INSERT has: SQLite takes 32,766 parameters."""

MISSING: Final = frozenset({"42P01", "42703"})
"""PostgreSQL's codes for a table, and for a column, that is not there."""

IN_A_COROUTINE: Final = (
    "publish() was called where an event loop runs, and Django's transactions are not for there: put what writes and publishes "
    "into one plain function with `with transaction.atomic():`, and `await sync_to_async(that_function)(...)`"
)


class Told(TypedDict, total=False):
    """What may be said of an event, as for `rabbitevents.Bus.publish`."""

    id: UUID | str | None
    exchange: str | None
    key: str | None
    delay: Seconds | None
    metadata: Mapping[str, str] | None
    correlation_id: str | UUID | None


@overload
def publish(payload: Event[P], /, *, using: str = ..., **told: Unpack[Told]) -> Event[P]: ...


@overload
def publish(payload: P, /, *, using: str = ..., **told: Unpack[Told]) -> Event[P]: ...


@overload
def publish(first: Any, second: Any, /, *more: Any, using: str = ..., **told: Unpack[Told]) -> list[Event[Any]]: ...


@async_unsafe(IN_A_COROUTINE)
def publish(*payloads: Any, using: str = DEFAULT_DB_ALIAS, **told: Any) -> Any:
    """Write events into the transaction that is under way; return them in their envelopes.

    ::

        with transaction.atomic():
            order.save()
            publish(OrderPlaced(...))

    They are sent by ``manage.py relay_events`` once that has committed, and never if it is rolled back. No broker is
    needed here.

    :param payloads: Instances of `@event` classes, or `Event` values. One is returned as itself, several as a list.
    :param using: The alias of the database, "default" by default; RABBITEVENTS names it in DATABASES.
    :param told: What `Bus.publish` may be told, but for its timeout: ``delay=``, ``id=``, ``exchange=``, ``key=``,
        ``metadata=``, ``correlation_id=``.

    Raises `TransactionError` outside of ``atomic`` (also in a TestCase, whose own one does not count), `EncodeError` for
    what cannot be written, and `ConfigurationError` for what cannot be meant, and for a table that is not there. In a
    coroutine Django's SynchronousOnlyOperation.
    """
    connection = connection_to(using)
    _check_atomic(connection)
    if told.get("id") is not None and len(payloads) > 1:
        raise ConfigurationError(
            "publish(id=...) with several events: an id is one event's alone; publish each by itself"
        )
    if any(isinstance(each, (list, tuple)) for each in payloads):
        raise ConfigurationError("publish() was given a list: publish(*events) publishes several")
    writer, outbox = writer_for(connection.vendor)
    events = [writer.prepare(payload, **told)[0] for payload in payloads]
    place = {key: told[key] for key in told.keys() & {"delay", "exchange", "key", "timeout"}}
    for start in range(0, max(1, len(events)), PART):
        _insert(connection, *outbox.insert(*events[start : start + PART], **place))
    return events[0] if len(events) == 1 else events


def _insert(connection: BaseDatabaseWrapper, sql: str, parameters: Any) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
    except DatabaseError as error:
        if not _is_missing(error):
            raise
        raise ConfigurationError(
            f"the database {connection.alias!r} has no table for events, or an older one: run `manage.py migrate "
            f"rabbitevents_django --database {connection.alias}`"
        ) from error


def _is_missing(error: DatabaseError) -> bool:
    cause = error.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code in MISSING or "no such table" in str(error) or "has no column named" in str(error)


def _check_atomic(connection: BaseDatabaseWrapper) -> None:
    """Raise `TransactionError` where no transaction of the application's own is under way."""
    if _is_atomic(connection):
        return
    others = [each.alias for each in connections.all(initialized_only=True) if _is_atomic(each)]
    hint = f"; one is under way on {others[0]!r}: say using={others[0]!r}" if others else ""
    raise TransactionError(
        f"publish(): no transaction is under way on the database {connection.alias!r}, so that the event would be of none: "
        f"publish inside `with transaction.atomic(using={connection.alias!r}):`, beside what it tells of{hint}"
    )


def _is_atomic(connection: BaseDatabaseWrapper) -> bool:
    """Say whether ``atomic`` is entered, by another than a TestCase, which stands around all and never commits."""
    blocks = getattr(connection, "atomic_blocks", [])
    return connection.in_atomic_block and any(not getattr(each, "_from_testcase", False) for each in blocks)

"""What a store is asked with: each thing is looked at before anything is done, and an error says what was meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from rabbitevents import ConfigurationError, arguments
from rabbitevents_eventstore.snapshots import Snapshots
from rabbitevents_sql import where


class Transactional(Protocol):
    """What writes events into a transaction, to be sent once it has committed: `rabbitevents_outbox.Outbox`."""

    async def publish(self, session: Any, /, *events: Any) -> Any:
        """Write events into the transaction that is under way on ``session``.

        :param session: An `AsyncSession` or `AsyncConnection`.
        :param events: The events in their envelopes.
        """
        ...


def several(decided: Any) -> list[Any]:
    """Return what was decided as a list of events."""
    if decided is None:
        return []
    if isinstance(decided, (list, tuple)):
        return list(cast("Sequence[Any]", decided))
    return [decided]


def outbox_of(given: Any) -> Transactional | None:
    """Return an outbox, or none. Raises `ConfigurationError`."""
    if given is not None and not callable(getattr(given, "publish", None)):
        raise arguments.wrong("EventStore: outbox", given, "say Outbox(engine)")
    return cast("Transactional | None", given)


def snapshots_of(given: object) -> Snapshots | None:
    """Return how snapshots are kept, or that they are not. Raises `ConfigurationError`."""
    return None if given is None else arguments.instance("snapshots", given, Snapshots, "say Snapshots(Order)")


def check_entity(entity_type: object, entity_id: object) -> None:
    """Raise `ConfigurationError` for what names no entity."""
    check_word("entity_type", entity_type, "order")
    check_word("entity_id", entity_id, "42")


def check_word(name: str, word: object, such_as: str) -> None:
    """Raise `ConfigurationError` for what is no text, or one that a database cannot hold."""
    said = arguments.text(name, word, such_as=such_as)
    if "\0" in said or (not said.isprintable() and any("\ud800" <= sign <= "\udfff" for sign in said)):
        raise ConfigurationError(f"{name} has a NUL or half a surrogate pair in it, which no database can hold")


def check_session(session: object, engine: AsyncEngine) -> None:
    """Raise `ConfigurationError` where no transaction is under way on the store's database."""
    if session is None:
        return
    if not isinstance(session, (AsyncSession, AsyncConnection)):
        raise arguments.wrong("append: session", session, "say an AsyncSession or an AsyncConnection, or leave it out")
    if not session.in_transaction():
        raise ConfigurationError(
            "append(session=...): no transaction is under way on this session, so nothing would be committed; append inside "
            "`async with sessions.begin() as session:`"
        )
    theirs = (session.get_bind() if isinstance(session, AsyncSession) else session.sync_connection or engine).engine.url
    if (theirs.get_backend_name(), theirs.database) != (engine.url.get_backend_name(), engine.url.database):
        raise ConfigurationError(
            f"append(session=...): the session is of {theirs.render_as_string()}, and the store's tables are in "
            f"{where(engine)}: one transaction is in one database"
        )

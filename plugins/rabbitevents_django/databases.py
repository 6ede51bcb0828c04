"""Django's databases, as they are known here, and as SQLAlchemy's engines for the relay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.connection import ConnectionDoesNotExist
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rabbitevents import ConfigurationError
from rabbitevents_django.configuration import DIALECTS, configured
from rabbitevents_outbox import prepare_sqlite

DJANGOS_OWN: Final = frozenset({"client_encoding", "context", "cursor_factory"})
"""What Django adds to a driver's arguments for the sake of its own connections."""

TLS_AND_FILES: Final = frozenset(
    {
        *("gsslib", "krbsrvname", "passfile", "service", "servicefile", "sslcert", "sslcrl", "sslkey", "sslmode"),
        *("sslnegotiation", "sslpassword", "sslrootcert", "ssl_max_protocol_version", "ssl_min_protocol_version"),
        "target_session_attrs",
    }
)
"""What asyncpg takes by libpq's names, in its DSN."""

SESSION: Final = frozenset({"application_name", "options"})
"""What PostgreSQL itself is told as a connection begins."""


def connection_to(alias: str) -> BaseDatabaseWrapper:
    """Return Django's connection to a database that events are published in.

    Raises `ConfigurationError` for one that the settings do not name, and for one of another kind.
    """
    if alias not in configured().databases:
        raise ConfigurationError(
            f"{alias!r} is none of the databases that events are published in: add it to RABBITEVENTS, as in "
            f'"DATABASES": {[*configured().databases, alias]}, and migrate it'
        )
    try:
        connection = connections[alias]
        kind = connection.vendor
    except (ConnectionDoesNotExist, ImproperlyConfigured) as error:
        raise ConfigurationError(f"RABBITEVENTS: the database {alias!r} cannot be had: {error}") from error
    if kind not in DIALECTS:
        raise ConfigurationError(
            f"RABBITEVENTS: the database {alias!r} is {connection.display_name}: events are published in PostgreSQL or SQLite"
        )
    return connection


def engine_for(alias: str) -> AsyncEngine:
    """Return an engine that connects to where Django does, as the same user. Raises `ConfigurationError`."""
    connection = connection_to(alias)
    if connection.vendor == "sqlite":
        return _sqlite(connection)
    told = {key: value for key, value in connection.get_connection_params().items() if key not in DJANGOS_OWN}
    role = connection.settings_dict["OPTIONS"].get("assume_role")
    if role:
        told["options"] = f"{told.get('options', '')} -c role={_escaped(role)}".strip()
    if "prepare_threshold" in told:  # psycopg 3, which Django has, and whose arguments these are; the URL is for people
        url = URL.create("postgresql+psycopg", told.get("user"), host=told.get("host"), database=told.get("dbname"))
        return create_async_engine(url, connect_args=told)
    url = URL.create(
        "postgresql+asyncpg",
        username=told.pop("user", None),
        password=told.pop("password", None),
        host=told.pop("host", None),
        port=_port(alias, told.pop("port", None)),
        database=told.pop("dbname", None),
    )
    return create_async_engine(url, connect_args=asyncpg_arguments(alias, told))


def asyncpg_arguments(alias: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return libpq's arguments as asyncpg takes them. Raises `ConfigurationError` for those that it has no word for."""
    arguments: dict[str, Any] = {}
    for key in told.keys() - TLS_AND_FILES - SESSION - {"connect_timeout"}:
        raise ConfigurationError(
            f"DATABASES[{alias!r}]: OPTIONS has {key!r}, which asyncpg does not know: install psycopg 3, or leave it out"
        )
    if "connect_timeout" in told:
        arguments["timeout"] = float(told["connect_timeout"])
    if files := {key: told[key] for key in sorted(told.keys() & TLS_AND_FILES)}:
        arguments["dsn"] = f"postgresql://?{urlencode(files)}"
    if session := {key: str(told[key]) for key in sorted(told.keys() & SESSION)}:
        arguments["server_settings"] = session
    return arguments


def _sqlite(connection: BaseDatabaseWrapper) -> AsyncEngine:
    """Return an engine for the same file. Django's OPTIONS are about its own connections, and do not matter here."""
    name = str(connection.settings_dict["NAME"])
    if name == ":memory:" or "mode=memory" in name:
        raise ConfigurationError(
            f"DATABASES[{connection.alias!r}] is in memory, which no other process sees: give it a file as its NAME"
        )
    query = {"uri": "true"} if name.startswith("file:") else {}
    engine = create_async_engine(URL.create("sqlite+aiosqlite", database=name, query=query))
    prepare_sqlite(engine)
    return engine


def _port(alias: str, said: object) -> int | None:
    try:
        return None if said is None else int(str(said))
    except ValueError:
        raise ConfigurationError(
            f"DATABASES[{alias!r}]: PORT is no number, as asyncpg needs it: install psycopg 3, or say one"
        ) from None


def _escaped(word: object) -> str:
    """Return a word as one of PostgreSQL's ``options``, which are divided at blanks."""
    return str(word).replace("\\", "\\\\").replace(" ", "\\ ")

"""What ``RABBITEVENTS`` says in Django's settings, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, cast

import msgspec
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rabbitevents import Bus, ConfigurationError, Plugin, Writer
from rabbitevents.arguments import several, text, wrong
from rabbitevents_outbox import Outbox

OUTBOX: Final = ("BATCH", "KEEP", "LEASE", "MAX_ATTEMPTS", "POLL", "SHARDS", "UNROUTABLE")
"""What the outbox is told, each by the argument of that name."""

OWN: Final = ("NAME", "URL", "EXCHANGE", "DATABASES")

SUCH_AS: Final = 'RABBITEVENTS = {"NAME": "shop", "URL": "amqp://localhost"}'

DIALECTS: Final[Mapping[str, str]] = {"postgresql": "postgresql+asyncpg://", "sqlite": "sqlite+aiosqlite://"}
"""The databases that there is an outbox for, by what Django calls them, and SQLAlchemy's names of what speaks to them."""


class Configuration(msgspec.Struct, frozen=True):
    """What the settings say."""

    name: str
    """The service's name: its events' source."""
    url: str | Sequence[str] | None
    """The broker that the relay sends to; None where its command line has to say it."""
    exchange: str
    databases: tuple[str, ...]
    """The aliases of the databases that events are published in."""
    outbox: Mapping[str, Any]
    """What the outbox is told."""

    def bus(self, url: str | Sequence[str] | None = None, plugins: Sequence[Plugin] = ()) -> Bus:
        """Return a bus to ``url``, or else to where the settings say. Raises `ConfigurationError`."""
        there = url or self.url
        if not there:
            raise ConfigurationError(f"no broker is said: add URL, as in {SUCH_AS}, or say --url amqp://localhost")
        bus = Bus(there, name=self.name, exchange=self.exchange, plugins=plugins)
        if bus.address.startswith("memory:"):
            raise ConfigurationError(
                "memory:// is a broker inside of one process: what is relayed to it ends with it; say amqp://"
            )
        return bus


def read(given: object) -> Configuration:
    """Read the settings. Raises `ConfigurationError` that names what is wrong, and the way out."""
    if given is None:
        raise ConfigurationError(f"RABBITEVENTS is missing in the settings: say {SUCH_AS}")
    if not isinstance(given, Mapping):
        raise wrong("RABBITEVENTS", given, f"say a dict: {SUCH_AS}")
    told = cast("Mapping[str, Any]", given)
    for key in told:
        if key not in (*OWN, *OUTBOX):
            raise ConfigurationError(f"RABBITEVENTS has {str(key)[:40]!r}: it takes {', '.join((*OWN, *OUTBOX))}")
    if "NAME" not in told:
        raise ConfigurationError(f"RABBITEVENTS has no NAME, which is its events' source: say {SUCH_AS}")
    databases = told.get("DATABASES", [DEFAULT_DB_ALIAS])
    return Configuration(
        name=text("RABBITEVENTS: NAME", told["NAME"], such_as="shop"),
        url=told.get("URL"),
        exchange=text("RABBITEVENTS: EXCHANGE", told.get("EXCHANGE", "events"), such_as="events"),
        databases=several("RABBITEVENTS: DATABASES", databases, str, '["default"]'),
        outbox={key.lower(): told[key] for key in OUTBOX if key in told},
    )


@cache
def configured() -> Configuration:
    """Return what the settings say. Raises `ConfigurationError`."""
    return read(getattr(settings, "RABBITEVENTS", None))


@cache
def writer_for(vendor: str) -> tuple[Writer, Outbox]:
    """Return what puts events into their envelopes, and what writes them as rows of one kind of database."""
    told = configured()
    return Writer(source=told.name), outbox_on(create_async_engine(DIALECTS[vendor]), relay=False)


def outbox_on(engine: AsyncEngine, *, relay: bool) -> Outbox:
    """Return an outbox as the settings want it. Raises `ConfigurationError`."""
    told = configured()
    return Outbox(engine, name=told.name, relay=relay, **told.outbox)


def forget() -> None:
    """Read the settings anew."""
    configured.cache_clear()
    writer_for.cache_clear()

"""``manage.py relay_events``: send what was published in transactions, and committed."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections

from rabbitevents import Bus, ConfigurationError, RabbitEventsError
from rabbitevents.health import HealthServer
from rabbitevents_django.databases import connection_to
from rabbitevents_django.models import OutboxRow
from rabbitevents_django.relaying import relay_bus
from rabbitevents_outbox import Outbox


class Command(BaseCommand):
    """Relay one database's events to RabbitMQ, until SIGTERM or Ctrl-C."""

    help = (
        "Send what was published in transactions to RabbitMQ, until SIGTERM or Ctrl-C. Of several processes one sends; "
        "another one takes over when it is gone."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Say what the command line may say."""
        parser.add_argument("--url", help="The broker, instead of RABBITEVENTS['URL'] in the settings.")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="Whose events: an alias (default).")
        parser.add_argument(
            "--health",
            metavar="PORT",
            type=int,
            help="Answer /live, /ready, /health and /metrics over HTTP on this port, of every address.",
        )

    def handle(self, *args: Any, url: str | None, database: str, health: int | None, **options: Any) -> None:
        """Relay. Raises CommandError for what is written wrong, and when no broker or no database can be used."""
        try:
            bus = relay_bus(database, url=url)
            _look(database)
            asyncio.run(self._relay(bus, database, health))
        except (ImproperlyConfigured, RabbitEventsError) as error:
            raise CommandError(str(error)) from error

    async def _relay(self, bus: Bus, database: str, health: int | None) -> None:
        async with AsyncExitStack() as stack:
            for plugin in bus.plugins:
                if isinstance(plugin, Outbox):
                    stack.push_async_callback(plugin.engine.dispose)
            if health is not None:
                server = await stack.enter_async_context(HealthServer(bus.health, health))
                self.stdout.write(f"health on port {server.port}")
            await bus.serve(started=lambda: self._say(f"relaying events from {database!r} to {bus.address}"))

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def _look(database: str) -> None:
    """Raise `ConfigurationError` where the table is not there. Django's connection is closed again."""
    connection = connection_to(database)
    try:
        with connection.cursor() as cursor:
            tables = connection.introspection.table_names(cursor)
    except DatabaseError as error:
        raise ConfigurationError(f"the database {database!r} cannot be used: {error}") from error
    finally:
        connections.close_all()
    if OutboxRow._meta.db_table not in tables:
        raise ConfigurationError(
            f"the database {database!r} has no table for events: run `manage.py migrate rabbitevents_django --database "
            f"{database}`"
        )

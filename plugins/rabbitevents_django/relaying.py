"""The bus that relays: without handlers, its outbox on a database of Django's."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import DEFAULT_DB_ALIAS

from rabbitevents import Bus, Plugin
from rabbitevents_django.configuration import configured, outbox_on
from rabbitevents_django.databases import engine_for


def relay_bus(
    using: str = DEFAULT_DB_ALIAS, *, url: str | Sequence[str] | None = None, plugins: Sequence[Plugin] = ()
) -> Bus:
    """Return a bus that sends what was published in one of Django's databases, as ``manage.py relay_events`` runs it.

    ::

        django.setup()
        bus = relay_bus(plugins=[Metrics()])

    ``rabbitevents relay MODULE:bus`` runs it, and ``rabbitevents outbox list | show | retry | drop MODULE:bus`` looks after
    its rows. Its connections are the bus's own, and none of Django's.

    :param using: The alias of the database, "default" by default.
    :param url: The broker, or several of one cluster; by default RABBITEVENTS['URL'].
    :param plugins: What stands around every event that is sent: metrics, tracing. None by default.

    Raises `ConfigurationError`.
    """
    outbox = outbox_on(engine_for(using), relay=True)
    return configured().bus(url, [*plugins, outbox])

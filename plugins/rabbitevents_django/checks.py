"""What Django's system checks look at: the settings, and the databases that they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps.config import AppConfig
from django.core.checks import CheckMessage, Error, Warning
from django.db.backends.base.base import BaseDatabaseWrapper

from rabbitevents import ConfigurationError
from rabbitevents_django.configuration import configured, writer_for
from rabbitevents_django.databases import connection_to


def check_settings(
    *, app_configs: Sequence[AppConfig] | None = None, databases: Sequence[str] | None = None, **_said: Any
) -> list[CheckMessage]:
    """Return what is wrong with ``RABBITEVENTS``, and with the databases that it names.

    :param app_configs: As Django says it: not looked at.
    :param databases: As Django says it: not looked at.
    """
    try:
        told = configured()
        if told.url is not None:
            told.bus()
    except ConfigurationError as error:
        return [Error(str(error), id="rabbitevents.E001")]
    found: list[CheckMessage] = []
    for alias in told.databases:
        try:
            connection = connection_to(alias)
        except ConfigurationError as error:
            found.append(Error(str(error), id="rabbitevents.E002"))
        else:
            found += _of(connection)
    return found


def _of(connection: BaseDatabaseWrapper) -> list[CheckMessage]:
    try:
        writer_for(connection.vendor)
    except ConfigurationError as error:
        return [Error(f"RABBITEVENTS: {error}", id="rabbitevents.E003")]
    if connection.vendor == "sqlite" and connection.settings_dict["OPTIONS"].get("transaction_mode") is None:
        return [
            Warning(
                f"DATABASES[{connection.alias!r}]: a transaction that reads, and publishes then, fails at once ('database is "
                "locked') where another process has written meanwhile, such as the relay",
                hint='Say "OPTIONS": {"transaction_mode": "IMMEDIATE"}.',
                id="rabbitevents.W001",
            )
        ]
    return []

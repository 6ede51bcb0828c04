"""The log of a service: one line per record, on stderr, without passwords."""

from __future__ import annotations

import logging

from rabbitevents import logs
from rabbitevents.cli.console import say
from rabbitevents.cli.relay import RecordFormatter
from rabbitevents.cli.settings import Settings
from rabbitevents.logs import TextFormatter

log: logging.Logger = logging.getLogger("rabbitevents.cli")


def configure(settings: Settings) -> None:
    """Write what is logged to stderr, in the form that was asked for; else the user's module has its word."""
    logs.configure(settings.log, worker=settings.worker)
    if settings.outputs is not None:
        for handler in logging.getLogger().handlers:
            if type(handler.formatter) is TextFormatter:
                handler.setFormatter(RecordFormatter(settings.worker))
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # we name the files that have changed


def tell(line: str) -> None:
    """Log a line that must be seen; print it where the user's own logging leaves it out."""
    if log.isEnabledFor(logging.INFO):
        log.info("%s", line)
    else:
        say.print(line)

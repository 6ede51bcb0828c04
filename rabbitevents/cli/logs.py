"""The log of a service: one line per record, on stderr, without passwords."""

from __future__ import annotations

import logging
import sys

from rabbitevents.cli.console import redacted, say
from rabbitevents.cli.settings import Settings

log: logging.Logger = logging.getLogger("rabbitevents")


class Text(logging.Formatter):
    """Writes a record as text: time, level, which process, what."""

    def format(self, record: logging.LogRecord) -> str:
        """Write it. The lines that a traceback quotes may have passwords in URLs; they are taken out."""
        return redacted(super().format(record))


def configure(settings: Settings) -> None:
    """Write what is logged to stderr, unless the user's module has set up logging: its word stands."""
    handler = logging.StreamHandler(sys.stderr)
    who = f"worker {settings.worker}: " if settings.worker else ""
    handler.setFormatter(Text(f"%(asctime)s %(levelname)s {who}%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # we name the files that have changed


def tell(line: str) -> None:
    """Log a line that must be seen; print it where the user's own logging leaves it out."""
    if log.isEnabledFor(logging.INFO):
        log.info("%s", line)
    else:
        say.print(line)

"""What exporters say while the collector is away: once, and not with every batch and every span.

OpenTelemetry's exporter writes three to five records for every batch that it cannot send, one a second or so; the
batch processor makes one for each span that it has no room for (8 us of the event loop's time, be it written or not).
Left to that, the log of a service says little else while its collector restarts.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

QUIET: Final = 600.0
"""Seconds after a complaint in which no further one is let through."""

_EXPORTERS = "opentelemetry.exporter."
_PROCESSORS = "opentelemetry.sdk."
_ABOUT_EXPORTING = ("Queue full", "Exception while exporting")


class OnceInAWhile(logging.Filter):
    """Lets one complaint through, and the next ones only after ten minutes. All loggers share it.

    That spans are dropped since the processor's queue is full is said once: what would be held back is not even made.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._quiet_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether ``record`` is written. What is not about exporting always is."""
        if record.levelno < logging.WARNING or not _is_complaint(record):
            return True
        with self._lock:
            now = time.monotonic()
            if now < self._quiet_until:
                if record.levelno == logging.WARNING and not record.name.startswith(_EXPORTERS):
                    logging.getLogger(record.name).setLevel(logging.ERROR)  # it was said, and is not made any more
                return False
            self._quiet_until = now + QUIET
        record.msg = f"{record.msg} (more of this is not said for {QUIET / 60:g} min)"
        return True


def _is_complaint(record: logging.LogRecord) -> bool:
    return record.name.startswith(_EXPORTERS) or str(record.msg).startswith(_ABOUT_EXPORTING)


_FILTER: Final = OnceInAWhile()


def calm() -> None:
    """Have exporters complain once in a while. Loggers of exporters that are imported later are left as they are."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith((_EXPORTERS, _PROCESSORS)):
            logging.getLogger(name).addFilter(_FILTER)

"""Loggers that are hushed while the demonstration runs, since it says the same in a better place."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

HUSHED: Final = (
    "rabbitevents.deadletter",  # what is given up on is in the tables, and one of them in the story
    "opentelemetry.exporter",  # a collector that is away is said in one line
)


@contextmanager
def quiet() -> Generator[None]:
    """Hush them for as long as the context is open."""
    loggers = [logging.getLogger(name) for name in HUSHED]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

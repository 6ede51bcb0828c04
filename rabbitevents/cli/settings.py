"""What ``rabbitevents run`` was told: a value that goes to every process that it starts."""

from __future__ import annotations

from typing import Self

import msgspec

from rabbitevents.logs import Form


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a bus. An option of ``run`` is a field here, and reaches each worker by itself."""

    reference: str
    """MODULE:BUS."""
    workers: int = 1
    """How many processes."""
    grace: float | None = None
    """Seconds that running handlers have at a stop; None: as the bus says."""
    log: Form | None = None
    """How what is logged is written; None: as text, unless the user's module has set up logging."""
    health: int | None = None
    """The port on which health is served; None: it is not."""
    hang: float = 10.0
    """Seconds without a turn of its event loop after which one of several workers is replaced; 0: never."""
    debug: bool = False
    """Whether tracebacks are asked for."""
    worker: int = 0
    """Which of the processes this is, from 1; 0 is the only one."""
    lifeline: int | None = None
    """A worker's file descriptor of its end of the line to its supervisor."""
    outputs: tuple[int, int] | None = None
    """A worker's file descriptors of its supervisor's stdout and stderr; None: it writes there itself."""

    def as_json(self) -> str:
        """Write the settings for a process's command line."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `as_json` wrote. Raises `msgspec.ValidationError` and `msgspec.DecodeError`."""
        return msgspec.json.decode(text, type=cls)

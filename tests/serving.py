"""A bus that ``rabbitevents run`` runs beside a test, as long as it is entered, and between a stop and a start."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.bed.loopback import free_port
from tests.test_cli import environment


class Service:
    """A bus that ``rabbitevents run`` runs in ``folder``, with its metrics on ``port``."""

    def __init__(self, folder: Path, reference: str, workers: int, **settings: str) -> None:
        self.port = free_port()
        self._folder, self._reference, self._settings = folder, reference, settings
        self._log = folder / f"{reference}.log"
        self._options = ["--workers", str(workers), "--health", str(self.port)]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "rabbitevents", "run", self._reference, *self._options),
                cwd=self._folder,
                env=environment(**self._settings),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=log,
            )

    async def stop(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self.stop()
        if kind is not None:
            print(self._log.read_text()[-5000:], file=sys.stderr)

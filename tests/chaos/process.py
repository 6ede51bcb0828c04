"""The processes under test, each with a session of its own, so that what it starts is reached too, in whichever group."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path


class Process:
    """One of our processes, which can be started again, with those that it starts itself. It ends with us."""

    def __init__(
        self, words: list[str], environment: Mapping[str, str], output: Path, sources: Path, python: str
    ) -> None:
        self.output = output
        self.told = words
        """The module that is run, and its words."""
        self._python = python
        paths = {"PYTHONPATH": f"{sources}{os.pathsep}{sources / 'plugins'}", "PYTHONDONTWRITEBYTECODE": "1"}
        self._environment = {**os.environ, **environment, **paths}
        self._sources = sources
        self._process: asyncio.subprocess.Process | None = None
        self._from = 0

    async def start(self) -> None:
        """Start it."""
        self._from = self.output.stat().st_size if self.output.exists() else 0
        with self.output.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", "--", self._python, "-m", *self.told),
                env=self._environment,
                cwd=self._sources,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def say(self, **environment: str) -> None:
        """Have its environment say something else from its next start on."""
        self._environment.update(environment)

    @property
    def said(self) -> str:
        """What it has printed since it was last started."""
        return self.output.read_bytes()[self._from :].decode(errors="replace") if self.output.exists() else ""

    @property
    def pid(self) -> int:
        """Its id, 0 while there is none."""
        return 0 if self._process is None else self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return None if self._process is None else self._process.returncode

    @property
    def pids(self) -> list[int]:
        """The ids of all of its session: a worker has a group of its own."""
        files = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [int(path.name) for path in files if self.pid and _session_of(path) == self.pid]

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to it, and to all that it has started."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def ended(self, seconds: float) -> bool:
        """Wait for its end; say whether it came in time."""
        if self._process is None:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    async def kill(self) -> None:
        """End it at once, with all that it has started."""
        self.send_all(signal.SIGKILL)
        await self.ended(10)


def _session_of(process: Path) -> int:
    """Return the session of a process, by its folder in /proc; 0 when it is gone."""
    try:
        return int((process / "stat").read_text().rpartition(") ")[2].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return 0

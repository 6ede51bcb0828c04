"""A PostgreSQL server that belongs to the tests: killed, suspended, and started again with its data."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from asyncio import to_thread
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.processes import spawn, suspend, unpin

_numbers = itertools.count(1)

ACCOUNT = "postgres"
"""Who the server runs as where the tests are root's, which it refuses to be."""

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
"""Where Debian has the programs, by version."""


class PostgresError(Exception):
    """A server did not do what it was told; the text is what it said."""


class PostgresServer:
    """One PostgreSQL with its data; what it has committed survives a kill (though not a machine's: fsync is off).

    `settings` are lines of postgresql.conf. Every method blocks; `astart` and `akill` leave the event loop running.
    """

    def __init__(self, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"rbt-{os.getpid()}-postgres-{next(_numbers)}-"))
        self.port = free_port()
        self._settings = {
            "fsync": "off",
            "max_connections": "200",
            "unix_socket_directories": "",
            "listen_addresses": LOOPBACK,
            **settings,
        }
        self._server: subprocess.Popen[bytes] | None = None
        self._databases = itertools.count(1)

    def url(self, driver: str = "asyncpg", database: str = "postgres") -> str:
        """Return SQLAlchemy's URL of a database; with an empty driver, a plain one."""
        return f"postgresql{'+' if driver else ''}{driver}://test@{LOOPBACK}:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The process id of the postmaster; raises PostgresError when it was never started."""
        if self._server is None:
            raise PostgresError("the server was not started")
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether the process is there, suspended or not."""
        return self._server is not None and self._server.poll() is None

    def start(self, timeout: float = 60) -> Self:
        """Start the server and wait until it answers; raises PostgresError with what it printed if it does not."""
        if self.running:
            raise PostgresError("the server runs already")
        data = self.folder / "data"
        if not data.exists():
            self._make(data)
        (data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed: its number may be another's by now
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        command = as_account([str(_program("postgres")), "-D", str(data), "-p", str(self.port), *options])
        self._server = spawn(command, _ENVIRONMENT, self.folder / "output")
        deadline = time.monotonic() + timeout
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                raise PostgresError(f"the server did not start:\n{(self.folder / 'output').read_text()[-2000:]}")
            time.sleep(0.02)
        unpin(self.pid)
        return self

    def database(self) -> str:
        """Make an empty database, and return its name."""
        name = f"test_{next(self._databases)}"
        self.run(f"CREATE DATABASE {name}")
        return name

    def run(self, sql: str, database: str = "postgres") -> str:
        """Run SQL by psql, and return what it printed, without headers."""
        command = [str(_program("psql")), "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-c", sql, self.url("", database)]
        done = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise PostgresError(done.stderr.strip())
        return done.stdout.strip()

    def kill(self) -> None:
        """End all of its processes at once by SIGKILL."""
        if self.running:
            for pid in [*_children(self.pid), self.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._wait(10)

    def suspend(self) -> None:
        """Stop all of its processes (SIGSTOP): its sockets stay open and nothing answers."""
        for pid in [self.pid, *_children(self.pid)]:
            with contextlib.suppress(ProcessLookupError):
                suspend(pid)

    def resume(self) -> None:
        """Let suspended processes go on (SIGCONT)."""
        for pid in [self.pid, *_children(self.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill the server and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def astart(self, timeout: float = 60) -> Self:
        """See `start`."""
        return await to_thread(self.start, timeout)

    async def akill(self) -> None:
        """See `kill`."""
        await to_thread(self.kill)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except PostgresError:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, data: Path) -> None:
        if os.getuid() == 0:
            shutil.chown(self.folder, ACCOUNT)
            self.folder.chmod(0o755)
        command = as_account(
            [str(_program("initdb")), "-D", str(data), "-U", "test", "-A", "trust", "-E", "UTF8", "--no-sync"]
        )
        done = subprocess.run(
            command, env=_ENVIRONMENT, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise PostgresError(done.stderr)

    def _answers(self) -> bool:
        command = [str(_program("pg_isready")), "-q", "-h", LOOPBACK, "-p", str(self.port)]
        return subprocess.run(command, env=_ENVIRONMENT, timeout=10, check=False).returncode == 0

    def _wait(self, timeout: float) -> None:
        if self._server is not None:
            self._server.wait(timeout)


_ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def _program(name: str) -> Path:
    if not BINARIES:
        raise PostgresError("PostgreSQL is not installed here: apt-get install postgresql")
    return BINARIES[-1] / name


def as_account(command: Sequence[str]) -> list[str]:
    """Return a command as it runs as another account than root; killed, all the same, when its parent is gone."""
    if os.getuid() != 0:
        return list(command)
    return ["setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--init-groups", "--pdeathsig=KILL", "--", *command]


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []

"""pgbouncer between a test and its PostgreSQL, in transaction mode."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.postgres import ACCOUNT, PostgresServer, as_account
from tests.bed.processes import spawn


class PgBouncer:
    """A pooler that gives each transaction whichever connection is free."""

    @staticmethod
    @contextmanager
    def before(server: PostgresServer, database: str) -> Generator[str]:
        """Run one, and yield SQLAlchemy's URL (asyncpg) that leads through it."""
        port = free_port()
        with tempfile.TemporaryDirectory(prefix=f"rbt-{os.getpid()}-pgbouncer-") as name:
            folder = Path(name)
            folder.chmod(0o755)
            settings = folder / "pgbouncer.ini"
            settings.write_text(
                f"[databases]\n{database} = host={LOOPBACK} port={server.port} user=test\n"
                f"[pgbouncer]\nlisten_addr = {LOOPBACK}\nlisten_port = {port}\nauth_type = any\nunix_socket_dir =\n"
                "pool_mode = transaction\ndefault_pool_size = 5\nmax_client_conn = 100\n"
            )
            settings.chmod(0o644)
            process = spawn(as_account(["/usr/sbin/pgbouncer", str(settings)]), {"LANG": "C.UTF-8"}, folder / "output")
            try:
                _listening(port, process, folder / "output")
                yield f"postgresql+asyncpg://test@{LOOPBACK}:{port}/{database}"
            finally:
                process.kill()
                process.wait(10)


def _listening(port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    for _ in range(200):
        with suppress(OSError), socket.create_connection((LOOPBACK, port), 1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"pgbouncer did not start as {ACCOUNT}:\n{output.read_text()[-2000:]}")

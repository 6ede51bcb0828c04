"""A service that shows its metrics on a port, its workers, and the tools beside it: nobody takes another's port."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.bed.loopback import free_port
from tests.documents import CHECKOUT, blocks
from tests.shop import eventually
from tests.test_cli import environment, started
from tests.test_cli_run import service


def documented_service() -> str:
    """The service of the page, on the test's broker."""
    (file,) = (b for b in blocks(CHECKOUT / "docs" / "howto" / "metrics.md", "python") if b.file == "inventory.py")
    return f"import os\n{file.text}\nmake_bus, bus = bus, bus()\n".replace('"amqp://localhost"', 'os.environ["URL"]')


def shows_the_consumers_of(port: int, workers: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except URLError:
        return False  # nobody listens yet
    running = [line for line in lines if line.startswith("rabbitevents_consumers_running{")]
    return len({line.partition('worker="')[2][0] for line in running}) == workers


async def test_one_page_is_all_workers_and_the_dead_letter_tools_run_beside_it(rabbit_url: str, tmp_path: Path) -> None:
    port = free_port()
    options = ("--workers", "2", "--health", str(port))

    async with service(tmp_path, *options, url=rabbit_url, source=documented_service()) as running:
        await running.until_said("inventory runs on", 2)
        await eventually(lambda: shows_the_consumers_of(port, 2), "both workers on the page", 20)
        looked = [
            await asyncio.to_thread(
                started,
                *("dlq", "list", f"parcels:{name}", "-q", "inventory.reserve"),
                folder=tmp_path,
                env=environment(URL=rabbit_url),
            )
            for name in ("bus", "make_bus")
        ]
        running.process.terminate()
        code = await running.ends(10)

    assert [(each.returncode, each.stdout.strip()) for each in looked] == [(0, "no dead letters")] * 2, looked
    assert code == 0

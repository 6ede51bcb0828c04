"""``rabbitevents run`` in one process: what it says, how it stops, and what it does where there is no broker to use."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from yarl import URL

from rabbitevents import Bus
from tests.bed.loopback import free_port
from tests.bed.rabbitmq import RabbitNode
from tests.loops import INSTALLED
from tests.shop import OrderPlaced, eventually
from tests.test_cli import PASSWORD, environment, started, the_line

GRACE = 2.0

SERVICE = f'''
"""A service as a user writes it; what its handlers do goes to the file "ledger", one fsynced line each."""
import asyncio, os, threading, time
from rabbitevents import Bus, Router
from tests.shop import OrderPlaced

ledger = os.open("ledger", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
store = Router("store")

def note(*words):
    os.write(ledger, (" ".join(map(str, (*words, os.getpid()))) + "\\n").encode())
    os.fsync(ledger)

@store.on(OrderPlaced, concurrency=2, prefetch=2)
async def pack(order: OrderPlaced) -> None:
    note("begins", order.order_id)
    match order.order_id.partition("-")[0]:
        case "long":
            await asyncio.sleep(1)
        case "endless":
            await asyncio.sleep(600)
        case "stubborn":
            while True:
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    pass
        case "threaded":
            await asyncio.to_thread(time.sleep, 600)
        case "blocking":
            time.sleep(600)
        case "deadly":
            os._exit(3)
    await asyncio.sleep(0.01)
    note("ended", order.order_id)

@store.on("parcel.*", "letter.#", name="count")
async def anything() -> None: ...

bus = Bus(os.environ["URL"], store, grace={GRACE}, start_timeout=1.5)
'''


class Service:
    """A service that runs: its process, what it says on stderr, and what its handlers wrote down."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder

    @property
    def said(self) -> str:
        return (self.folder / "stderr").read_text()

    def noted(self, word: str, *, beginning: str = "") -> list[tuple[str, int]]:
        """The orders, and the process ids, of one kind of line."""
        ledger = self.folder / "ledger"
        lines = [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []
        return [(order, int(pid)) for kind, order, pid in lines if kind == word and order.startswith(beginning)]

    async def until_said(self, text: str, times: int = 1, seconds: float = 30) -> None:
        """Wait until it has said `text`."""
        try:
            await eventually(lambda: self.said.count(text) >= times, f"{times} of {text!r}", seconds)
        except BaseException:
            print(self.said)
            raise

    async def until_noted(self, word: str, number: int, *, beginning: str = "", seconds: float = 30) -> None:
        """Wait until its handlers have written down as many different orders."""
        try:
            await eventually(
                lambda: len({order for order, _ in self.noted(word, beginning=beginning)}) >= number,
                f"{number} lines of {word}",
                seconds,
            )
        except BaseException:
            print(self.said, self.noted(word))
            raise

    async def ends(self, within: float) -> int:
        """Wait for its end; return the exit code."""
        return await asyncio.wait_for(self.process.wait(), within)


@asynccontextmanager
async def service(
    folder: Path, *options: str, url: str = "memory://", source: str | None = SERVICE
) -> AsyncGenerator[Service]:
    """Run the bus of a module in `folder`, in a session of its own; it is killed at the end."""
    if source is not None:
        (folder / "parcels.py").write_text(source)
    with (folder / "stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rabbitevents", "run", "parcels:bus", *options),
            cwd=folder,
            env=environment(URL=url),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        yield Service(process, folder)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def publish(url: str, *orders: str) -> None:
    """Publish orders as somebody else."""
    async with Bus(url, name="customers") as bus:
        await bus.publish_many([OrderPlaced(order) for order in orders])


@pytest.fixture
def private_url(rabbit_url: str, rabbit_node: RabbitNode) -> str:
    """The test's virtual host, for a user whose password must not be seen."""
    keeper = f"keeper-of-{URL(rabbit_url).name}"
    url = rabbit_node.add_user(rabbit_url, keeper, PASSWORD)
    rabbit_node.set_permissions(rabbit_url, user=keeper)
    return url


# --- running -------------------------------------------------------------------------------------------------------


async def test_at_the_start_it_says_what_is_connected_and_which_queues_feed_which_handlers(
    private_url: str, tmp_path: Path
) -> None:
    async with service(tmp_path, url=private_url) as running:
        await running.until_said("queue store.count")
        running.process.terminate()

        assert await running.ends(GRACE + 5) == 0

    address = str(URL(private_url).with_password(None))
    assert f"connecting to {address}" in running.said
    assert f"store runs on {address} (pid {running.process.pid}, {INSTALLED}); 2 queues" in running.said
    assert "queue store.pack feeds pack (order.placed)" in running.said
    assert "queue store.count feeds count (parcel.* letter.#)" in running.said
    assert PASSWORD not in running.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_one_signal_lets_running_handlers_end_and_gives_back_the_rest(
    number: signal.Signals, private_url: str, rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    async with service(tmp_path, url=private_url) as running:
        await running.until_said("queue store.count")
        await publish(rabbit_url, "long-1", "long-2", "long-3", "long-4")
        await running.until_noted("begins", 2)
        running.process.send_signal(number)

        assert await running.ends(GRACE + 5) == 0

    begun, ended = running.noted("begins"), running.noted("ended")
    assert begun == ended
    assert (await rabbit_node.aqueue_counts("store.pack", rabbit_url)).ready == 4 - len(ended)


async def test_the_second_signal_leaves_at_once_and_gives_back_what_ran(
    rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    async with service(tmp_path, "--grace", "500", url=rabbit_url) as running:
        await running.until_said("queue store.count")
        await publish(rabbit_url, "endless-1")
        await running.until_noted("begins", 1)
        running.process.send_signal(signal.SIGINT)
        await running.until_said("running handlers have 500 s to end")
        running.process.send_signal(signal.SIGINT)

        assert await running.ends(5) == 0

    assert "Traceback" not in running.said
    assert (await rabbit_node.aqueue_counts("store.pack", rabbit_url)).ready == 1


@pytest.mark.parametrize("order", ["stubborn", "threaded"])
async def test_a_handler_that_will_not_end_does_not_hold_up_the_exit(
    order: str, rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    async with service(tmp_path, "--grace", "1", url=rabbit_url) as running:
        await running.until_said("queue store.count")
        await publish(rabbit_url, order)
        await running.until_noted("begins", 1)
        running.process.terminate()

        assert await running.ends(1 + 5) == 0

    assert "running handlers have 1 s to end" in running.said
    assert (await rabbit_node.aqueue_counts("store.pack", rabbit_url)).ready == 1


async def test_a_module_that_sets_up_logging_keeps_its_own_and_the_lines_at_the_start_are_seen(tmp_path: Path) -> None:
    source = "import logging\nlogging.basicConfig(level='WARNING', format='MINE %(message)s')\n" + SERVICE
    async with service(tmp_path, source=source) as running:
        await running.until_said("queue store.count")
        running.process.terminate()
        await running.ends(5)

    assert "\nstore runs on memory:// " in running.said
    assert "INFO" not in running.said


async def test_a_bus_without_handlers_says_that_it_only_publishes(tmp_path: Path) -> None:
    source = "from rabbitevents import Bus\nbus = Bus('memory://', name='feeder')"
    async with service(tmp_path, source=source) as running:
        await running.until_said("feeder runs on memory://")
        running.process.send_signal(signal.SIGINT)

        assert await running.ends(5) == 0

    assert "it only publishes: there is no router" in running.said


async def test_ctrl_c_while_the_broker_is_looked_for_ends_it_at_once(tmp_path: Path) -> None:
    source = SERVICE.replace("start_timeout=1.5", "start_timeout=300")
    async with service(tmp_path, url=f"amqp://127.0.0.1:{free_port()}/", source=source) as running:
        await running.until_said("connecting to")
        running.process.send_signal(signal.SIGINT)

        assert await running.ends(5) == 0


async def test_ctrl_c_while_the_module_is_imported_ends_it_without_a_traceback(tmp_path: Path) -> None:
    async with service(tmp_path, source="open('begun', 'w')\nimport time\ntime.sleep(60)") as running:
        await eventually((tmp_path / "begun").exists, "the import", 30)
        running.process.send_signal(signal.SIGINT)

        assert await running.ends(5) == 130

    assert running.said.strip() == ""


async def test_a_defect_in_a_plugin_is_a_crash_with_its_traceback(tmp_path: Path) -> None:
    source = (
        "from rabbitevents import Bus, Plugin\nclass P(Plugin):\n    def lifespan(self, host): raise LookupError('x')\n"
    )
    async with service(tmp_path, source=f"{source}bus = Bus('memory://', plugins=[P()])") as running:
        assert await running.ends(30) == 1

    assert "Traceback" in running.said
    assert "LookupError: x" in running.said


async def test_a_thread_that_hangs_does_not_hold_up_a_failure(tmp_path: Path) -> None:
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=[600], name='sleeper').start()\n1 / 0"
    async with service(tmp_path, source=source) as running:
        assert await running.ends(30) == 2

    assert "parcels.py, line 3: importing parcels failed with ZeroDivisionError" in running.said
    assert "threads that will not end: sleeper; leaving them" in running.said


# --- not running ---------------------------------------------------------------------------------------------------


def refused(folder: Path, url: str, *options: str) -> str:
    """Run a service that cannot; return the one line that ends what it says."""
    (folder / "parcels.py").write_text(SERVICE)

    result = started("run", "parcels:bus", *options, folder=folder, env=environment(URL=url))

    *before, last = result.stderr.splitlines()
    assert result.returncode == 2, result.stderr
    assert all("connecting to" in line for line in before), result.stderr
    assert last.startswith("rabbitevents run: ")
    assert PASSWORD not in result.stderr
    assert result.stdout == ""
    return last


def test_a_broker_that_is_not_there_is_said_with_where_it_was_looked_for(tmp_path: Path) -> None:
    port = free_port()

    said = refused(tmp_path, f"amqp://me:{PASSWORD}@127.0.0.1:{port}/")

    assert f"no broker could be used within 1.5 s: connecting to amqp://me@127.0.0.1:{port}/" in said
    assert "nobody listens there (connection refused); is RabbitMQ running there?" in said


def test_a_host_that_is_not_there_is_said(tmp_path: Path) -> None:
    said = refused(tmp_path, f"amqp://me:{PASSWORD}@nowhere.invalid/")

    assert "amqp://me@nowhere.invalid:5672/" in said
    assert "is RabbitMQ running there?" in said


def test_a_wrong_password_is_said_at_once(rabbit_url: str, tmp_path: Path) -> None:
    began = time.monotonic()

    said = refused(tmp_path, rabbit_url.replace(":guest@", f":{PASSWORD}@"))

    assert time.monotonic() - began < 20
    assert "amqp://guest@127.0.0.1" in said
    assert "check the user and the password in the URL" in said


def test_a_virtual_host_that_is_not_there_is_said(rabbit_url: str, tmp_path: Path) -> None:
    said = refused(tmp_path, rabbit_url.rpartition("/")[0] + "/nowhere")

    assert "/nowhere: the broker refused" in said
    assert "check the virtual host in the URL" in said


def test_a_user_who_may_not_use_the_virtual_host_is_said(
    rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    said = refused(tmp_path, rabbit_node.add_user(rabbit_url, "stranger", PASSWORD))

    assert "check the virtual host in the URL, and what the user may do there" in said


def test_a_url_that_cannot_be_meant_is_said_with_the_line(tmp_path: Path) -> None:
    said = refused(tmp_path, f"localhost:{PASSWORD}")

    assert "parcels.py, line" in said
    assert "write amqp://user:password@host:5672/vhost" in said


def test_a_parameter_that_nobody_serves_is_said(tmp_path: Path) -> None:
    (tmp_path / "store.py").write_text(
        "from rabbitevents import Bus, Router\nr = Router('r')\n@r.on('a.b')\nasync def f(db: str) -> None: ...\n"
        "bus = Bus('memory://', r)\n"
    )

    result = started("run", "store:bus", folder=tmp_path)

    assert result.returncode == 2
    assert "r.f" in result.stderr.splitlines()[-1]
    assert "bus.provide" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_several_processes_on_the_embedded_broker_are_refused_once(tmp_path: Path) -> None:
    said = refused(tmp_path, "memory://", "--workers", "3")

    assert "parcels:bus is on memory://, a broker inside of one process: leave out --workers, or use amqp://" in said


def test_a_bus_that_its_module_has_run_already_is_said(tmp_path: Path) -> None:
    (tmp_path / "store.py").write_text(
        "import asyncio\nfrom rabbitevents import Bus\nbus = Bus('memory://')\n"
        "async def main():\n    async with bus: ...\nasyncio.run(main())\n"
    )

    result = started("run", "store:bus", folder=tmp_path)

    assert result.returncode == 2
    assert "has run while its module was imported: put what runs it under if __name__ ==" in the_line(result)

"""``rabbitevents run --workers``: workers whose event loop hangs, that are told twice, that cannot be started."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from rabbitevents.cli import orphans, supervisor
from rabbitevents.cli.relay import Relay
from rabbitevents.cli.settings import Settings
from rabbitevents.cli.supervisor import Supervisor
from rabbitevents.health import answer
from tests.abused import abuse
from tests.bed.loopback import free_port
from tests.bed.rabbitmq import RabbitNode
from tests.shop import eventually
from tests.test_cli import ROOT, environment, started, the_line
from tests.test_cli_health import asked, until
from tests.test_cli_run import GRACE, SERVICE, Service, publish, service
from tests.test_cli_workers import is_there, until_running

HANG = ("--hang", "3")


def hangs(told: Service) -> list[str]:
    return [line for line in told.said.splitlines() if " hangs: " in line]


# --- an event loop that does not turn ------------------------------------------------------------------------------


async def test_a_worker_that_hangs_is_said_with_its_place_and_replaced_while_live_stays_green(
    rabbit_url: str, tmp_path: Path
) -> None:
    port = free_port()
    async with service(tmp_path, "--workers", "2", "--health", str(port), *HANG, url=rabbit_url) as told:
        pids = await until_running(told, 2)
        await until(port, "ready", 200, 10)
        await publish(rabbit_url, "blocking")
        await told.until_noted("begins", 1)
        began, hung = time.monotonic(), told.noted("begins")[0][1]
        live = set[int]()
        while is_there(hung):
            live.add((await asked(port, "live"))[0])
            assert time.monotonic() - began < 3 + 5
            await asyncio.sleep(0.1)
        await eventually(lambda: len({pid for _, pid in told.noted("begins")}) == 2, "the other to hang", 10)

    assert live == {200}
    assert hung in pids
    assert re.search(
        r"\(pid \d+\) hangs: its event loop has not turned for 3 s \(parcels.py, line \d+, in pack\)", told.said
    )
    assert f"(pid {hung}) was killed by SIGKILL; starting another one in 0.5 s" in told.said
    assert all("ERROR" in line for line in hangs(told))
    assert len([line for line in told.said.splitlines() if "ERROR" in line]) == len(hangs(told))


async def test_an_event_that_hangs_every_worker_is_dead_in_the_end(
    rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    source = SERVICE.replace("start_timeout=1.5", "delivery_limit=4")
    async with service(tmp_path, "--workers", "2", *HANG, url=rabbit_url, source=source) as told:
        await until_running(told, 2)
        await publish(rabbit_url, "blocking", *(f"quick-{number}" for number in range(20)))
        await eventually(lambda: rabbit_node.queue_counts("store.pack.dead", rabbit_url).ready == 1, "its death", 60)
        await told.until_noted("ended", 20)

    assert len(told.noted("begins", beginning="blocking")) == 5
    assert len(hangs(told)) == 5


async def test_a_worker_that_hangs_while_all_stop_is_not_waited_for_as_long_as_the_grace_period(
    rabbit_url: str, tmp_path: Path
) -> None:
    async with service(tmp_path, "--workers", "2", "--grace", "500", *HANG, url=rabbit_url) as told:
        await until_running(told, 2)
        await publish(rabbit_url, "blocking")
        await told.until_noted("begins", 1)
        told.process.terminate()

        assert await told.ends(3 + 6) == 1

    assert len(hangs(told)) == 1


async def test_a_worker_that_waits_for_its_log_to_be_read_does_not_hang(rabbit_url: str, tmp_path: Path) -> None:
    source = SERVICE.replace('note("begins"', 'print("much " * 100_000) or note("begins"')
    (tmp_path / "parcels.py").write_text(source)
    with (tmp_path / "stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rabbitevents", "run", "parcels:bus", "--workers", "2", *HANG),
            cwd=tmp_path,
            env=environment(URL=rabbit_url),
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    told = Service(process, tmp_path)
    assert process.stdout is not None
    await until_running(told, 2)
    await publish(rabbit_url, *(f"quick-{number}" for number in range(20)))
    await asyncio.sleep(8)  # nobody reads what is printed, for longer than a loop may hang
    waited = len(told.noted("ended"))
    reading = asyncio.create_task(process.stdout.read())
    await told.until_noted("ended", 20)
    process.terminate()
    code = await told.ends(GRACE + 5)

    assert waited < 20
    assert hangs(told) == []
    assert (await reading).count(b"much ") == 20 * 100_000
    assert code == 0


@asynccontextmanager
async def supervised(
    folder: Path, monkeypatch: pytest.MonkeyPatch, url: str, source: str
) -> AsyncGenerator[Supervisor]:
    """A supervisor of two workers in this process."""
    (folder / "parcels.py").write_text(source)
    monkeypatch.chdir(folder)
    for name, value in environment(URL=url).items():
        monkeypatch.setenv(name, value)
    relay = Relay()
    found = Supervisor(Settings(reference="parcels:bus", workers=2, hang=2.0, health=0), relay)
    running = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, 30)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
        relay.close()


def well(found: Supervisor) -> Callable[[], bool]:
    return lambda: found.health().ready


@pytest.mark.asyncio_loop
async def test_an_import_that_does_not_end_is_a_hang_too(
    rabbit_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "START", 3)
    source = SERVICE + "\nif os.environ['RABBITEVENTS_WORKER'] == '2' and not os.path.exists('once'):\n"
    source += "    open('once', 'w')\n    time.sleep(600)\n"

    async with supervised(tmp_path, monkeypatch, rabbit_url, source) as found:
        await eventually(well(found), "two workers", 40)

    (said,) = [record for record in caplog.records if "hangs" in record.getMessage()]
    assert said.levelname == "ERROR"
    assert "worker 2" in said.getMessage()
    assert re.search(r"it has no event loop .* for 6 s \(parcels.py, line \d+, in <module>\)", said.getMessage())


@pytest.mark.asyncio_loop
async def test_live_fails_while_a_worker_cannot_be_replaced(
    rabbit_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervised(tmp_path, monkeypatch, rabbit_url, SERVICE) as found:

        def live() -> int:
            return answer(found.health, "/live").status.value

        await eventually(well(found), "two workers", 40)
        pid = next(int(each) for each in _children() if each != str(os.getpid()))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nowhere")
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: live() == 503, "red", 10)
            said = json.loads(answer(found.health, "/live").body)["checks"]
        await eventually(lambda: live() == 200, "green", 20)

    assert [check["name"] for check in said] == ["supervisor"]
    assert "could not be started" in said[0]["detail"]


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1:]


def test_a_hang_that_is_too_short_or_of_nobody_is_refused(tmp_path: Path) -> None:
    (tmp_path / "parcels.py").write_text("from rabbitevents import Bus\nbus = Bus('memory://', name='x')\n")

    short = the_line(started("run", "parcels:bus", "--workers", "2", "--hang", "0.5", folder=tmp_path))
    alone = the_line(started("run", "parcels:bus", "--hang", "5", folder=tmp_path))

    assert "say 3 or more, or 0" in short
    assert "--hang is for several processes: add --workers" in alone


# --- signals to all at once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_every_process_drains_as_one_to_the_supervisor(
    number: signal.Signals, rabbit_url: str, tmp_path: Path
) -> None:
    async with service(tmp_path, "--workers", "2", "--grace", "20", url=rabbit_url) as told:
        pids = await until_running(told, 2)
        await publish(rabbit_url, "long-1", "long-2", "long-3", "long-4")
        await told.until_noted("begins", 4)
        for pid in (*pids, told.process.pid, *pids):
            os.kill(pid, number)

        assert await told.ends(10) == 0

    assert len(told.noted("ended")) == 4
    assert "at once" not in told.said


async def test_the_second_signal_to_every_process_leaves_at_once(rabbit_url: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "2", "--grace", "500", url=rabbit_url) as told:
        pids = await until_running(told, 2)
        await publish(rabbit_url, "endless-1", "endless-2", "endless-3")
        await told.until_noted("begins", 3)
        for pid in (told.process.pid, *pids):
            os.kill(pid, signal.SIGTERM)
        await told.until_said("running handlers have 500 s to end", 2)
        for pid in (told.process.pid, *pids):
            os.kill(pid, signal.SIGTERM)

        assert await told.ends(5) == 0


async def test_a_worker_that_dies_before_it_hears_of_the_stop_does_not_change_the_exit_code(
    rabbit_url: str, tmp_path: Path
) -> None:
    async with service(tmp_path, "--workers", "2", url=rabbit_url) as told:
        pids = await until_running(told, 2)
        os.kill(pids[0], signal.SIGSTOP)
        told.process.terminate()
        await told.until_said("a second signal does not wait")
        os.kill(pids[0], signal.SIGKILL)

        assert await told.ends(GRACE + 5) == 0

    assert f"(pid {pids[0]}) was killed by SIGKILL before it heard of the stop" in told.said


async def test_a_worker_that_hangs_ends_when_its_supervisor_is_gone(rabbit_url: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "2", "--grace", "0", url=rabbit_url) as told:
        pids = await until_running(told, 2)
        await publish(rabbit_url, "blocking")
        await told.until_noted("begins", 1)
        told.process.kill()
        await told.process.wait()

        await eventually(lambda: not any(map(is_there, pids)), "the end of the processes", GRACE + 15)


# --- what all measure ----------------------------------------------------------------------------------------------


async def test_one_page_has_what_all_workers_measure_and_one_that_hangs_does_not_hold_it_up(
    rabbit_url: str, tmp_path: Path
) -> None:
    port = free_port()
    source = SERVICE + "\nfrom prometheus_client import Gauge\nGauge('shelves', 'Shelves.').set(7)\n"
    async with (
        service(tmp_path, "--workers", "2", "--health", str(port), url=rabbit_url, source=source) as told,
        httpx.AsyncClient(timeout=10) as client,
    ):
        pids = await until_running(told, 2)
        await until(port, "ready", 200, 10)
        page = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        os.kill(pids[1], signal.SIGSTOP)
        began = time.monotonic()
        without = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        took = time.monotonic() - began
        os.kill(pids[1], signal.SIGCONT)
        told.process.terminate()
        code = await told.ends(GRACE + 5)

    assert 'shelves{worker="1"} 7.0\nshelves{worker="2"} 7.0\n' in page
    assert 'rabbitevents_worker_answered{worker="2"} 1.0' in page
    assert 'rabbitevents_worker_answered{worker="2"} 0.0' in without
    assert 'shelves{worker="1"} 7.0' in without
    assert 'shelves{worker="2"}' not in without
    assert took < 5
    assert code == 0


# --- orphans, and all of it together -------------------------------------------------------------------------------


ORPHANS = """
import ctypes, os, subprocess, sys, time
from rabbitevents.cli import orphans
ctypes.CDLL(None).prctl(36, 1)
subprocess.run(["sh", "-c", "sleep 0.1 & exit"])
own = subprocess.Popen(["sh", "-c", "exit 7"])
time.sleep(0.5)
orphans.take_up({own.pid})
print(own.wait())
orphans.take_up(set())
print(open(f"/proc/self/task/{os.getpid()}/children").read().split())
"""


def test_orphans_are_taken_up_and_the_exit_codes_of_our_own_are_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS], env=environment(), capture_output=True, text=True, timeout=30, check=True
    )

    assert done.stdout.split() == ["7", "[]"]
    orphans.take_up(set())  # there need not be any


@pytest.mark.timeout(200)
@pytest.mark.parametrize("well", [True, False], ids=["ends well", "ends while one hangs"])
@pytest.mark.sampled
async def test_a_round_of_abuse_leaves_nothing_to_find_fault_with(
    well: bool, rabbit_node: RabbitNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)

    found = await abuse(rabbit_node, tmp_path / "round", workers=2, seconds=4, well=well, hang=3, longest=1)

    assert found["faults"] == {}
    assert found["lines"] > 0

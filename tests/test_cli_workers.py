"""``rabbitevents run --workers`` and ``--reload``: processes that are started again, and stopped together."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.bed.loopback import free_port
from tests.bed.proxy import Proxy
from tests.bed.rabbitmq import RabbitNode
from tests.shop import eventually
from tests.test_cli import PASSWORD
from tests.test_cli_run import GRACE, SERVICE, Service, publish, service


def running(told: Service) -> list[int]:
    """The ids of the processes whose bus runs, in the order in which they said so, without those that are gone."""
    pids = [int(pid) for pid in re.findall(r"store runs on \S+ \(pid (\d+), \w+\)", told.said)]
    return [pid for pid in pids if is_there(pid)]


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_running(told: Service, number: int, seconds: float = 60) -> list[int]:
    """Wait until as many processes run; return their ids."""
    try:
        await eventually(lambda: len(running(told)) == number, f"{number} processes", seconds)
    except BaseException:
        print(told.said)
        raise
    return running(told)


def orders(kind: str, count: int) -> list[str]:
    return [f"{kind}-{number}" for number in range(count)]


# --- several processes ---------------------------------------------------------------------------------------------


async def test_three_processes_share_a_queue_and_one_that_is_killed_is_started_again(
    rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    url = rabbit_node.add_user(rabbit_url, "crew", PASSWORD)
    rabbit_node.set_permissions(rabbit_url, user="crew")
    async with service(tmp_path, "--workers", "3", url=url) as told:
        first = await until_running(told, 3)
        await publish(rabbit_url, *orders("quick", 300))
        await told.until_noted("ended", 300)
        took_part = {pid for _, pid in told.noted("ended")}

        os.kill(first[1], signal.SIGKILL)
        await publish(rabbit_url, *orders("again", 100))
        await told.until_said("was killed by SIGKILL; starting another one in 0.5 s")
        second = await until_running(told, 3)
        await told.until_noted("ended", 100, beginning="again")
        told.process.terminate()
        code = await told.ends(GRACE + 5)

    left = await rabbit_node.aqueue_counts("store.pack", rabbit_url)
    assert took_part == set(first)
    assert f"(pid {first[1]}) was killed by SIGKILL" in told.said
    assert set(first) - set(second) == {first[1]}
    assert code == 0
    assert (left.ready, left.unacked) == (0, 0)
    assert not any(is_there(pid) for pid in second)
    assert PASSWORD not in told.said


async def test_the_line_of_queues_and_handlers_is_said_once_for_all_processes(rabbit_url: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "2", url=rabbit_url) as told:
        await until_running(told, 2)
        told.process.send_signal(signal.SIGINT)
        await told.ends(GRACE + 5)

    assert told.said.count("queue store.pack feeds pack") == 1
    assert "worker 1: store runs on" in told.said
    assert "worker 2: store runs on" in told.said


async def test_a_process_that_crashes_at_every_start_is_given_a_growing_pause(rabbit_url: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "2", url=rabbit_url) as told:
        await until_running(told, 2)
        await publish(rabbit_url, "deadly")
        await told.until_said("ended with exit code 3; starting another one in 0.5 s", seconds=60)
        await told.until_said("ended with exit code 3; starting another one in 1 s", seconds=60)
        told.process.terminate()

        assert await told.ends(GRACE + 5) == 0


async def test_sigterm_lets_the_handlers_of_all_processes_end_within_the_grace_period_and_five_seconds(
    rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    async with service(tmp_path, "--workers", "2", "--grace", "3", url=rabbit_url) as told:
        await until_running(told, 2)
        await publish(rabbit_url, *orders("long", 3), "endless-1", *orders("waiting", 20))
        await told.until_noted("begins", 4)
        began = time.monotonic()
        told.process.terminate()
        code = await told.ends(3 + 5)

    ended = {order for order, _ in told.noted("ended")}
    assert code == 0
    assert time.monotonic() - began < 3 + 5
    assert set(orders("long", 3)) <= ended
    assert (await rabbit_node.aqueue_counts("store.pack", rabbit_url)).ready == 24 - len(ended)


async def test_ctrl_c_at_a_terminal_reaches_each_process_once(
    rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    async with service(tmp_path, "--workers", "2", url=rabbit_url) as told:
        await until_running(told, 2)
        await publish(rabbit_url, "long-1", "long-2", "long-3", "long-4")
        await told.until_noted("begins", 4)
        os.killpg(told.process.pid, signal.SIGINT)  # what a terminal does: to the whole group

        assert await told.ends(GRACE + 5) == 0

    assert len(told.noted("ended")) == 4
    assert "at once" not in told.said


async def test_the_second_ctrl_c_leaves_at_once(rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "2", "--grace", "500", url=rabbit_url) as told:
        await until_running(told, 2)
        await publish(rabbit_url, *orders("endless", 3))
        await told.until_noted("begins", 3)
        told.process.send_signal(signal.SIGINT)
        await told.until_said("running handlers have 500 s to end", 2)
        told.process.send_signal(signal.SIGINT)

        assert await told.ends(5) == 0

    assert (await rabbit_node.aqueue_counts("store.pack", rabbit_url)).ready == 3


async def test_a_process_that_does_not_listen_is_killed_in_time_and_the_exit_code_says_so(
    rabbit_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    async with service(tmp_path, "--workers", "2", "--grace", "0.5", url=rabbit_url) as told:
        pids = await until_running(told, 2)
        await publish(rabbit_url, "blocking")
        await told.until_noted("begins", 1)
        told.process.terminate()

        assert await told.ends(0.5 + 5 + 1) == 1

    assert "did not leave in time; killing it" in told.said
    assert "was killed by SIGKILL" in told.said
    assert not any(map(is_there, pids))
    await eventually(
        lambda: rabbit_node.queue_counts("store.pack", rabbit_url).ready == 1, "the order to come back", 30
    )


async def test_a_process_that_crashes_while_it_drains_makes_the_exit_code_1(rabbit_url: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "2", "--grace", "30", url=rabbit_url) as told:
        pids = await until_running(told, 2)
        await publish(rabbit_url, "endless-1")
        await told.until_noted("begins", 1)
        told.process.terminate()
        await told.until_said("running handlers have 30 s to end", 2)
        os.kill(told.noted("begins")[0][1], signal.SIGKILL)

        assert await told.ends(10) == 1

    assert "was killed by SIGKILL" in told.said
    assert not any(map(is_there, pids))


async def test_the_third_signal_kills(rabbit_url: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "2", "--grace", "500", url=rabbit_url) as told:
        pids = await until_running(told, 2)
        await publish(rabbit_url, "blocking")
        await told.until_noted("begins", 1)
        for line in ("a second signal does not wait", "a third signal kills", "killing it"):
            told.process.send_signal(signal.SIGINT)
            await told.until_said(line)

        assert await told.ends(5) == 1

    assert not any(map(is_there, pids))


async def test_processes_end_when_their_supervisor_is_gone(rabbit_url: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "2", url=rabbit_url) as told:
        pids = await until_running(told, 2)
        told.process.kill()
        await told.process.wait()

        await eventually(lambda: not any(map(is_there, pids)), "the end of the processes", GRACE + 5)

    assert told.said.count("the supervisor is gone; stopping") == 2


async def test_a_process_that_is_stopped_by_itself_is_replaced(rabbit_url: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "2", url=rabbit_url) as told:
        pids = await until_running(told, 2)
        os.kill(pids[0], signal.SIGTERM)
        await told.until_said(f"(pid {pids[0]}) left; starting another one in 0.5 s")

        assert pids[0] not in await until_running(told, 2)


async def test_what_is_written_wrong_is_said_once_and_ends_all(tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "3", source="bus = 3") as told:
        assert await told.ends(30) == 2

    assert told.said == "rabbitevents run: parcels:bus is an int, not a Bus; " + told.said.partition("; ")[2]
    assert len(told.said.splitlines()) == 1


async def test_a_broker_that_is_not_there_at_the_start_is_said_once_and_ends_all(tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "3", url=f"amqp://me:{PASSWORD}@127.0.0.1:{free_port()}/") as told:
        assert await told.ends(30) == 2

    assert told.said.count("no publish connection: ") == 1  # after the first try
    assert told.said.count("no broker could be used within") == 1  # at the end
    assert PASSWORD not in told.said


async def test_a_first_process_that_dies_before_its_bus_runs_ends_all(tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "3", source="import os\nos._exit(7)") as told:
        assert await told.ends(30) == 1

    assert "worker 1" in told.said
    assert "ended with exit code 7 before its bus ran" in told.said


async def test_a_broker_that_is_away_while_a_process_starts_again_is_waited_for(
    rabbit_url: str, tmp_path: Path
) -> None:
    async with (
        Proxy.before(rabbit_url) as proxy,
        service(tmp_path, "--workers", "2", url=proxy.url_for(rabbit_url)) as told,
    ):
        pids = await until_running(told, 2)
        await proxy.refuse()
        os.kill(pids[0], signal.SIGKILL)
        await told.until_said("ended with exit code 2; starting another one")
        await proxy.accept()

        assert pids[1] in await until_running(told, 2)


# --- reloading -----------------------------------------------------------------------------------------------------


def feeder(name: str) -> str:
    return f"from rabbitevents import Bus\nbus = Bus('memory://', name='{name}')\n"


async def test_a_changed_file_is_picked_up_and_an_error_in_it_shown_until_the_next_change(tmp_path: Path) -> None:
    module = tmp_path / "parcels.py"
    async with service(tmp_path, "--reload", source=feeder("one")) as told:
        await told.until_said("one runs on memory://")
        module.write_text(feeder("two"))
        await told.until_said("parcels.py changed; starting anew")
        await told.until_said("two runs on memory://")
        module.write_text("1 / 0\n")
        await told.until_said("parcels.py, line 1: importing parcels failed with ZeroDivisionError")
        await told.until_said("waiting for a change below")
        module.write_text(feeder("six"))
        await told.until_said("six runs on memory://")
        told.process.send_signal(signal.SIGINT)

        assert await told.ends(10) == 0

    assert "Traceback" not in told.said
    assert not (tmp_path / "__pycache__").exists()  # it may be stale: two changes within a second look alike


async def test_a_module_that_another_one_imports_is_watched_too_and_other_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "rack").mkdir()
    (tmp_path / "rack" / "names.py").write_text("NAME = 'one'\n")
    source = "from rabbitevents import Bus\nfrom rack.names import NAME\nbus = Bus('memory://', name=NAME)\n"
    async with service(tmp_path, "--reload", source=source) as told:
        await told.until_said("one runs on memory://")
        (tmp_path / "notes.txt").write_text("not a module")
        (tmp_path / "rack" / "names.py").write_text("NAME = 'two'\n")
        await told.until_said("two runs on memory://")
        told.process.terminate()

        assert await told.ends(10) == 0

    assert "rack/names.py changed; starting anew" in told.said
    assert "notes.txt" not in told.said


async def test_a_mistake_at_the_first_start_waits_for_a_change(tmp_path: Path) -> None:
    async with service(tmp_path, "--reload", source="bus = 3") as told:
        await told.until_said("parcels:bus is an int, not a Bus")
        await told.until_said("waiting for a change below")
        (tmp_path / "parcels.py").write_text(feeder("one"))
        await told.until_said("one runs on memory://")
        told.process.terminate()

        assert await told.ends(10) == 0


async def test_a_running_handler_ends_before_the_process_is_started_anew(rabbit_url: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--reload", url=rabbit_url) as told:
        await told.until_said("queue store.count")
        await publish(rabbit_url, "long-1")
        await told.until_noted("begins", 1)
        (tmp_path / "parcels.py").write_text(SERVICE.replace('Router("store")', 'Router("shelf")'))
        await told.until_said("queue shelf.count")
        told.process.terminate()

        assert await told.ends(GRACE + 5) == 0

    assert told.noted("begins") == told.noted("ended")


async def test_ctrl_c_twice_leaves_a_reloading_service_at_once(rabbit_url: str, tmp_path: Path) -> None:
    async with service(tmp_path, "--reload", "--grace", "500", url=rabbit_url) as told:
        await told.until_said("queue store.count")
        await publish(rabbit_url, "endless-1")
        await told.until_noted("begins", 1)
        os.killpg(told.process.pid, signal.SIGINT)
        await told.until_said("running handlers have 500 s to end")
        os.killpg(told.process.pid, signal.SIGINT)

        assert await told.ends(5) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_a_reloading_service_that_waits_for_a_change(
    number: signal.Signals, tmp_path: Path
) -> None:
    async with service(tmp_path, "--reload", source="1 / 0") as told:
        await told.until_said("waiting for a change below")
        told.process.send_signal(number)

        assert await told.ends(5) == 0

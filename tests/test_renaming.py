"""A handler that is renamed, on a real broker: old and new code side by side, back again, and the queue led over to its new name."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from rabbitevents import Bus, ConfigurationError, Router
from rabbitevents.cli.former import refuse_former_names
from rabbitevents.cli.seeing import HTTP_URL
from rabbitevents.operations.applying import consumers_of
from rabbitevents.operations.moving.acting import Done, migrate
from rabbitevents.operations.moving.beforehand import outlook, renaming_of
from rabbitevents.operations.moving.contents import move
from rabbitevents.operations.planning import at_work, planned
from rabbitevents_deadletter import DeadLetters
from tests.migrated import INTERVAL
from tests.operating import Place, StockReserved, about
from tests.renamed import NEW, OLD, Ledger, service
from tests.shop import eventually
from tests.stepwise import NOW_AND_THEN, killed_on_the_way
from tests.test_cli import environment
from tests.test_topology_migrate import publishing
from tests.test_topology_plan import nobody, said

ROOT = Path(__file__).parent.parent


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


class Replicas:
    """Two processes of the service, of one generation after the other; all end by SIGTERM, as a deployment lets them."""

    def __init__(self, place: Place, ledger: Ledger) -> None:
        self._place = place
        self._ledger = ledger
        self._running: list[asyncio.subprocess.Process] = []

    async def roll_out(self, generation: str) -> None:
        """Start two processes, each of which is at work before an older one is stopped."""
        before = list(self._running)
        for older in (*before, None, None)[:2]:
            await self._start(generation)
            if older is not None:
                await self._stop(older)

    async def _start(self, generation: str) -> None:
        words = (sys.executable, "-m", "tests.renamed", self._place.url, str(self._ledger.path), generation)
        process = await asyncio.create_subprocess_exec(*words, cwd=ROOT, env=environment())
        self._running.append(process)
        await eventually(lambda: self._ledger.has_begun(process.pid), "its start", 30)

    async def all_do(self) -> None:
        """Wait until each of them has handled something."""
        at_work = {str(process.pid) for process in self._running}
        await eventually(lambda: at_work <= {line[2] for line in self._ledger.lines}, "what they do", 30)

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        self._running.remove(process)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0

    async def __aenter__(self) -> Replicas:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in list(self._running):
            await self._stop(process)


async def all_handled(ledger: Ledger, number: int) -> Counter[str]:
    """Wait until so many events are handled, but for those that never are; return how often each was."""
    wanted = {str(i) for i in range(number) if i % 1000 != 999}
    await eventually(lambda: wanted <= {line[0] for line in ledger.lines}, "all of them", 60)
    return Counter(line[0] for line in ledger.lines)


async def stands(place: Place, *, but: tuple[str, ...] = ()) -> dict[str, int]:
    """How much is ready in each of the service's queues that stand."""
    async with Bus(place.url, name="looking", declare="none") as bus:
        names = [f"{name}{end}" for name in (OLD, NEW) for end in ("", ".dead", ".moving")]
        depths = {name: await bus.depth(name) for name in names if name not in but}
    return {name: depth.ready for name, depth in depths.items() if depth is not None}


def leading_over(place: Place) -> AsyncGenerator[list[str]]:
    """Have processes that are killed on the way lead over to the new name; yield the steps of each."""
    return killed_on_the_way("tests.renamed", place.url, place.node.http_url, "migrate")


# --- a rolling deploy, and a rollback --------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_old_and_new_code_side_by_side_and_back_again_handle_each_event_once_and_leave_nothing(
    place: Place, ledger: Ledger
) -> None:
    async with service(place.url, ledger, "old"):  # whose queue stands then
        pass
    async with Replicas(place, ledger) as replicas:
        async with publishing(place.url) as publisher:
            for generation in ("old", "new", "old"):
                await replicas.roll_out(generation)
                await replicas.all_do()
        handled = await all_handled(ledger, number := publisher.published)

    assert set(handled.values()) == {1}
    assert {line[1] for line in ledger.lines} == {"old", "new"}
    assert number > 300
    assert await stands(place) == {OLD: 0, f"{OLD}.dead": number // 1000}


# --- leading over to the new name ------------------------------------------------------------------------------------


@pytest.mark.each_version
@pytest.mark.timeout(400)  # some forty processes, one after the other
async def test_led_over_and_killed_on_the_way_with_replicas_that_start_meanwhile_each_event_is_handled_once(
    place: Place, ledger: Ledger
) -> None:
    steps, rolled_out = list[str](), 0
    async with service(place.url, ledger, "old"):
        pass
    async with Replicas(place, ledger) as replicas:
        async with publishing(place.url) as publisher:
            await replicas.roll_out("new")
            async for done in leading_over(place):
                assert done
                steps += done
                if len(steps) >= NOW_AND_THEN * rolled_out + 3:
                    rolled_out += 1
                    await replicas.roll_out("new")
            await replicas.roll_out("new")
        handled = await all_handled(ledger, number := publisher.published)
        left = await planned(service(place.url, ledger, "new"), http=place.node.http_url)

    assert not [each for each in steps if "LOST" in each or "again" in each]
    assert len(steps) > 25
    assert set(handled.values()) == {1}
    assert number > 300
    dead = await stands(place)
    assert dead == {NEW: 0, f"{NEW}.dead": dead[f"{NEW}.dead"], f"{OLD}.dead": dead[f"{OLD}.dead"]}
    assert sum(dead.values()) == number // 1000
    assert [line for line in said(left) if "dead letters of inventory.note" not in line] == []


async def led_over(place: Place, ledger: Ledger) -> list[str]:
    """Lead over in this process, and return the steps."""
    async with at_work(service(place.url, ledger, "new"), place.node.http_url) as site:
        renaming = renaming_of(site, site.bus.subscriptions[0])
        looks = migrate(site, renaming, within=60, interval=INTERVAL)
        return [each.step.what async for each in looks if isinstance(each, Done)]


async def published(bus: Bus, *numbers: int) -> None:
    await bus.publish_many([StockReserved(str(number)) for number in numbers])


async def given_up(bus: Bus) -> None:
    """Publish an event that becomes a dead letter under the old name."""
    await published(bus, 999)
    async with asyncio.timeout(15):
        while (depth := await bus.depth(f"{OLD}.dead")) is None or not depth.ready:
            pass


def done(ledger: Ledger) -> list[str]:
    return sorted(line[0] for line in ledger.lines)


async def test_a_process_from_before_goes_on_with_the_new_queue_when_its_connection_breaks_or_it_gives_back(
    place: Place, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(place.url, ledger, "old"):
        pass
    async with service(place.url, ledger, "new") as bus:
        await led_over(place, ledger)
        await place.node.aclose_all_connections()
        await eventually(lambda: not bus.health().ok, "the loss")
        await eventually(lambda: bus.health().ok, "the connections")
        ledger.open.clear()
        await published(bus, *range(1, 31), 999)  # the third fails at first, and waits under the old name
        await eventually(lambda: bus.load[NEW].running == 10, "a handler")
        await bus.pause(NEW, by="a plugin")  # gives back what has not begun, to the old name
        ledger.open.set()
        await bus.resume(NEW, by="a plugin")
        await eventually(lambda: len(ledger.lines) >= 30, "all of them")
        await eventually(lambda: not bus.load[NEW].running, "the last")

    assert done(ledger) == sorted(map(str, range(1, 31)))
    assert await stands(place) == {NEW: 0, f"{NEW}.dead": 0, f"{OLD}.dead": 1}
    assert "is given back as it is" not in caplog.text


# --- what the tools say ----------------------------------------------------------------------------------------------


async def test_the_plan_the_doctor_and_what_is_left_say_how_far_the_rename_is(place: Place, ledger: Ledger) -> None:
    http = place.node.http_url
    async with service(place.url, ledger, "old") as bus:
        await given_up(bus)
    found = [(await planned(service(place.url, ledger, "new"), http=url)) for url in (http, "http://127.0.0.1:1")]
    before = about(await place.looked_at(service(place.url, ledger, "new")), "D18")
    async with service(place.url, ledger, "new"):
        steps = await led_over(place, ledger)
    after = await planned(service(place.url, ledger, "new"), http=http)
    last = about(await place.looked_at(service(place.url, ledger, "new")), "D18")

    assert [said(each) for each in found] == [[f"migrate queue {OLD}: it is to be called {NEW}; 0 ready"]] * 2
    assert before == [f"D18 note {OLD}: in the code it is {NEW}; it is consumed as it is called"]
    assert steps[-2:] == ["its consumers are at the new queue", "no queue is being made anew"]
    letters = f"dead letters of {NEW} from before it had this name"
    assert said(after) == [f"decide queue {OLD}.dead: {letters}; 1 ready"]
    assert last == [f"D18 risk {OLD}.dead: {letters}: 1"]


async def test_letters_of_before_that_were_moved_are_sent_to_the_queue_of_the_new_name(
    place: Place, ledger: Ledger
) -> None:
    async with service(place.url, ledger, "old") as bus:
        await given_up(bus)
    async with service(place.url, ledger, "new"):
        await led_over(place, ledger)
    async for _ in move(service(place.url, ledger, "new"), f"{OLD}.dead", f"{NEW}.dead"):
        pass

    async with Bus(place.url, name="looking", declare="none") as bus:
        result = await DeadLetters(bus, NEW).replay()

    assert (result.done, await stands(place)) == (1, {NEW: 1, f"{NEW}.dead": 0, f"{OLD}.dead": 0})


MODULE = """
import os
from pathlib import Path

from tests.renamed import Ledger, service

bus = service(os.environ["AMQP_URL"], Ledger(Path("ledger")), "new")
older = service(os.environ["AMQP_URL"], Ledger(Path("ledger")), "old")
"""


async def called(place: Place, folder: Path, *words: str) -> tuple[str, str]:
    """What a command prints of the renamed service."""
    (folder / "a_shop.py").write_text(MODULE)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rabbitevents", *words),
        cwd=folder,
        env={**environment(), "AMQP_URL": place.url, HTTP_URL: place.node.http_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, errors = await asyncio.wait_for(process.communicate(), 90)
    return printed.decode(), errors.decode()


async def test_dead_letters_are_listed_under_the_name_that_they_have(
    place: Place, ledger: Ledger, tmp_path: Path
) -> None:
    async with service(place.url, ledger, "old") as bus:
        await given_up(bus)

    before, silent = await called(place, tmp_path, "dlq", "list", "a_shop:bus")
    async with service(place.url, ledger, "new"):
        await led_over(place, ledger)
    after, _ = await called(place, tmp_path, "dlq", "list", "a_shop:bus")
    named, _ = await called(place, tmp_path, "dlq", "list", "a_shop:bus", "--queue", OLD)

    assert (f"{OLD}.dead" in before, f"{NEW}.dead" in before, silent) == (True, False, "")
    assert f"{OLD}.dead" in after
    assert f"{OLD}.dead" in named


async def test_explain_says_what_the_queue_was_called_and_whose_the_ids_are(
    place: Place, ledger: Ledger, tmp_path: Path
) -> None:
    printed, _ = await called(place, tmp_path, "explain", "a_shop:bus", NEW)

    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert f"was {OLD}: that is consumed as long as it stands" in lines
    assert f"identity {OLD} (derived ids and claims of idempotency use it)" in " ".join(lines)


# --- code of before that starts afterwards ---------------------------------------------------------------------------


async def test_code_of_before_that_is_run_after_all_is_done_does_not_start_and_makes_no_queue(
    place: Place, ledger: Ledger, tmp_path: Path
) -> None:
    async with service(place.url, ledger, "old"):
        pass
    async with service(place.url, ledger, "new"):
        await led_over(place, ledger)

    _, errors = await called(place, tmp_path, "run", "a_shop:older")

    assert f"queue '{OLD}' was given another name, '{NEW}' (rabbitevents topology migrate), and is gone" in errors
    assert f"was='{OLD}'" in errors
    assert OLD not in await stands(place)


async def test_code_that_knows_of_the_rename_or_goes_back_by_another_one_is_not_refused(
    place: Place, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HTTP_URL, place.node.http_url)
    async with service(place.url, ledger, "old"):
        await refuse_former_names(service(place.url, ledger, "old"))
        await refuse_former_names(service(place.url, ledger, "new"))
    async with service(place.url, ledger, "new"):
        await led_over(place, ledger)
    back = Router("inventory")
    back.on(StockReserved, name=OLD.removeprefix("inventory."), was=NEW)(nobody)

    await refuse_former_names(service(place.url, ledger, "new"))
    await refuse_former_names(Bus(place.url, back))
    with pytest.raises(ConfigurationError, match="was given another name"):
        await refuse_former_names(service(place.url, ledger, "old"))
    monkeypatch.setenv(HTTP_URL, "http://127.0.0.1:1")
    await refuse_former_names(service(place.url, ledger, "old"))


# --- what is refused -------------------------------------------------------------------------------------------------


async def test_it_is_not_led_over_while_older_code_consumes(place: Place, ledger: Ledger) -> None:
    async with (
        service(place.url, ledger, "old"),
        at_work(service(place.url, ledger, "new"), place.node.http_url) as site,
    ):
        async with asyncio.timeout(15):
            while not await consumers_of(site.management, OLD):
                pass

        with pytest.raises(ConfigurationError, match=r"nothing was changed: it is consumed at \S+ by other code"):
            await outlook(site, NEW)

    assert await stands(place) == {OLD: 0, f"{OLD}.dead": 0}


async def test_older_code_that_comes_meanwhile_stands_idle_and_is_named_and_the_queue_is_not_made_anew(
    place: Place, ledger: Ledger
) -> None:
    async with service(place.url, ledger, "old"):
        pass
    async with service(place.url, ledger, "new") as bus, at_work(bus.sibling(), place.node.http_url) as site:
        renaming = renaming_of(site, site.bus.subscriptions[0])
        course = migrate(site, renaming, within=60, interval=INTERVAL)
        async for each in course:
            if isinstance(each, Done) and "its consumers go to" in each.step.what:
                break
        async with service(place.url, Ledger(ledger.path.with_suffix(".old")), "old"):
            with pytest.raises(
                ConfigurationError, match=rf"code that does not say was='{OLD}' runs at .*Stop it, and run"
            ):
                async for _ in course:
                    pass
            await published(bus, 1, 2)
            await eventually(lambda: len(ledger.lines) == 2, "both, by the new code")
        await course.aclose()

    assert not ledger.path.with_suffix(".old").exists()
    assert OLD not in await stands(place)


async def test_where_both_names_stand_it_says_so_and_which_commands_help(place: Place, ledger: Ledger) -> None:
    async with service(place.url, ledger, "new"), service(place.url, ledger, "old"):
        pass

    async with at_work(service(place.url, ledger, "new"), place.node.http_url) as site:
        renaming = renaming_of(site, site.bus.subscriptions[0])
        with pytest.raises(ConfigurationError, match=f"'{OLD}' and '{NEW}' both stand, and what came was in both"):
            async for _ in migrate(site, renaming, within=5, interval=INTERVAL):
                pass
    wrong = about(await place.looked_at(service(place.url, ledger, "new")), "D18")

    assert wrong[0].startswith(f"D18 wrong {OLD}: it stands beside {NEW}, and its events come to both")

"""Watching queues on a real broker: the figures are those of the queues, by one question, with HTTP and without."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from rich.console import Console

from rabbitevents import Bus
from rabbitevents.brokers.rabbitmq.management import Management
from rabbitevents.cli.top import table
from rabbitevents.health import HealthServer
from rabbitevents.operations.doctor import processes
from rabbitevents.operations.glance import Count, Glance, Row, Watch, row
from rabbitevents.operations.planning import at_work
from rabbitevents.operations.standing import Object
from tests.bed.rabbitmq import RabbitNode
from tests.operating import OrderPlaced, Place, StockReserved, shop
from tests.shop import eventually
from tests.test_cli import environment
from tests.test_doctor import definitions

PASSWORD = "marker-in-the-password"


@pytest.fixture
async def place(managed_node: RabbitNode) -> AsyncIterator[Place]:
    """A virtual host with a hostile name, in which the shop has run once."""
    here = Place(managed_node, managed_node.add_vhost("shöp %/3"))
    here.vhost = "shöp %/3"
    async with shop(here.url):
        pass
    yield here
    managed_node.delete_vhost(here.url)


async def glance(place: Place, url: str = "", http: str = "") -> Glance:
    async with at_work(shop(url or place.url), http or place.node.http_url) as site:
        return await Watch(site.bus, site.management, site.visitor, "RabbitMQ").glance(time.monotonic())


def figures(row: Row) -> tuple[int | None, ...]:
    """What a line says, each figure once the management API has it: one by one, where the node has much to do."""
    return row.ready, row.dead, row.unacked, row.consumers


async def test_the_figures_are_those_of_the_queues(place: Place) -> None:
    await place.put("inventory.note", 4)
    await place.put("inventory.note.dead", 3)
    await place.put("delay.lost", 2)
    await place.declared("delay.500", "events.delay.1000", "delay.due.x")
    await place.put("delay.500", 1)
    await place.put("events.delay.1000", 1)

    async with asyncio.timeout(20):
        while (found := await glance(place)).waiting != 2 or figures(found.rows[1]) != (4, 3, 0, 0):
            pass

    assert [each.queue for each in found.rows] == ["inventory.reserve", "inventory.note"]
    assert (found.lost, found.stuck) == (2, 0)
    assert found.problem == ""


async def test_one_glance_is_one_question_and_changes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    get = Management.get

    async def counted(self: Management, path: str) -> object:
        asked.append(path)
        return await get(self, path)

    monkeypatch.setattr(Management, "get", counted)
    before = definitions(place.node)

    await glance(place)

    assert len(asked) == 1
    assert definitions(place.node) == before


async def test_rates_are_of_what_comes_and_what_is_handled(place: Place) -> None:
    async with shop(place.url) as bus:
        publishing = asyncio.create_task(publish(bus))
        async with at_work(shop(place.url), place.node.http_url) as site, asyncio.timeout(30):
            watch = Watch(site.bus, site.management, site.visitor, "RabbitMQ")
            while not ((found := (await watch.glance(time.monotonic())).rows[1]).came and found.handled):
                pass
        publishing.cancel()

    assert found.consumers == 1
    assert found.came is not None
    assert found.came > 1


async def publish(bus: Bus) -> None:
    while True:
        await bus.publish(StockReserved("o-1"))
        await asyncio.sleep(0.01)


async def test_without_http_amqp_says_what_it_can_and_the_reason_is_said(place: Place) -> None:
    url = place.node.add_user(place.url, "no-tag", PASSWORD)
    place.node.set_permissions(url, user="no-tag")
    await place.put("inventory.note", 4)

    found = await glance(place, url)

    assert found.rows[1] == Row(queue="inventory.note", ready=4, dead=0, consumers=0)
    assert "401" in found.problem
    assert PASSWORD not in str(found)


async def test_what_processes_hold_is_what_they_say_themselves_added_up(place: Place) -> None:
    async with AsyncExitStack() as service:
        ports: list[int] = []
        for _ in range(2):
            bus = await service.enter_async_context(shop(place.url, fails).sibling(plugins=()))
            server = await service.enter_async_context(HealthServer(bus.health, 0, "127.0.0.1"))
            ports.append(server.port)
            await bus.publish(OrderPlaced("o-1"))
            await eventually(lambda: bus.load["inventory.reserve"].held == 1, "it to be held")  # noqa: B023
        urls = [f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}/health/", "http://127.0.0.1:1"]
        async with at_work(shop(place.url), place.node.http_url) as site:
            watch = Watch(site.bus, site.management, site.visitor, "RabbitMQ", processes(urls))
            found = await watch.glance(time.monotonic())

    assert [each.held for each in found.rows] == [2, 0]
    assert found.problem.startswith("http://127.0.0.1:1: ")


async def fails(order: OrderPlaced) -> None:
    raise ValueError


@pytest.mark.parametrize("width", [80, 50])
def test_what_is_held_has_a_column_where_somebody_asked_for_it(width: int) -> None:
    glance = Glance(bus="shop", broker="RabbitMQ", vhost="/", rows=(Row(queue="shop.record", held=7),))

    with_held, without = printed(glance, width, held=True), printed(glance, width, held=False)

    assert "HELD" in with_held
    assert "  7  " in with_held
    assert "HELD" not in without
    assert all(len(line) <= width for line in with_held.splitlines())


def printed(glance: Glance, width: int, *, held: bool) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(table(glance, width, held=held))
    return capture.get()


# --- figures, by themselves ------------------------------------------------------------------------------------------


def said(**figures: object) -> dict[str, Object]:
    return {"q": {"name": "q", **figures}}


def test_rates_that_rabbitmq_does_not_make_are_counted_between_two_glances() -> None:
    found = row("q", said(messages_ready=50, message_stats={"publish": 30, "ack": 20}), (3.0, 2.0))

    assert (found.came, found.handled, found.lag, found.grows) == (3.0, 2.0, 25.0, True)


@pytest.mark.parametrize(
    ("figures", "lag", "grows"),
    [
        ({"messages_ready": 0}, 0.0, False),
        ({"messages_ready": 5}, None, False),
        ({"messages_ready": None}, None, False),
        ({"messages_ready": 10, "message_stats": {"ack_details": {"rate": 5.0}}}, 2.0, False),
        ({"messages_ready": 10, "message_stats": {"publish_details": {"rate": 1}}}, None, True),
        ({"messages_ready": 10, "message_stats": []}, None, False),
        ({"message_stats": ""}, None, False),
    ],
)
def test_what_is_missing_is_not_known_and_never_0(figures: dict[str, object], lag: float | None, grows: bool) -> None:
    found = row("q", said(**figures), (None, None))

    assert (found.lag, found.grows) == (lag, grows)
    assert found.unacked is None
    assert Count(1.0, 0, 0).at == 1.0


# --- the command -----------------------------------------------------------------------------------------------------

MODULE = """
import os
from tests.operating import shop

bus = shop(os.environ["AMQP_URL"])
"""


async def called(place: Place, folder: Path, *words: str, **env: str) -> tuple[int | None, str, str]:
    (folder / "a_shop.py").write_text(MODULE)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rabbitevents", "top", "a_shop:bus", "--http", place.node.http_url, *words),
        cwd=folder,
        env={**environment(), "AMQP_URL": place.url, **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
    )
    printed, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, printed.decode(), errors.decode()


async def test_a_pipe_gets_it_once_and_lines_fit(place: Place, tmp_path: Path) -> None:
    piped, narrow, wide = await asyncio.gather(
        called(place, tmp_path), called(place, tmp_path, COLUMNS="50"), called(place, tmp_path, "--once", COLUMNS="80")
    )

    assert [each[0] for each in (piped, narrow, wide)] == [0, 0, 0]
    assert max(map(len, wide[1].splitlines())) <= 80
    assert max(map(len, narrow[1].splitlines())) <= 50
    assert "inventory.reserve" in piped[1]
    assert "CONSUMERS" in piped[1]
    assert "\x1b" not in piped[1]
    assert piped[2] == ""


async def test_the_json_has_a_form_that_stays(place: Place, tmp_path: Path) -> None:
    code, printed, _ = await called(place, tmp_path, "--once", "--json")

    document = json.loads(printed)
    assert code == 0
    assert list(document) == [*("schema", "bus", "broker", "vhost", "rows", "waiting", "lost", "stuck", "problem")]
    assert list(document["rows"][0]) == [
        *("queue", "came", "handled", "ready", "unacked", "dead", "consumers", "lag", "grows", "held")
    ]
    assert document["vhost"] == "shöp %/3"


async def test_on_a_terminal_it_goes_on_sorts_and_leaves_by_a_key(place: Place, tmp_path: Path) -> None:
    (tmp_path / "a_shop.py").write_text(MODULE)
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rabbitevents", "top", "a_shop:bus", "--http", place.node.http_url, "--every", "1"),
        cwd=tmp_path,
        env={**environment(), "AMQP_URL": place.url, "TERM": "xterm", "LINES": "24", "COLUMNS": "80"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)

    first = await asyncio.to_thread(read_until, ours, b"as in the code")
    os.write(ours, b"s")
    second = await asyncio.to_thread(read_until, ours, b"by name")
    os.write(ours, b"q")
    code = await asyncio.wait_for(process.wait(), 10)
    os.close(ours)

    assert b"inventory.note" in first
    assert second
    assert code == 0


def read_until(terminal: int, wanted: bytes) -> bytes:
    """Read a terminal until something stands there; pytest's own timeout ends what never comes."""
    seen = b""
    while wanted not in seen:
        seen += os.read(terminal, 65_536)
    return seen


def test_a_narrow_table_has_what_is_needed_most() -> None:
    glance = Glance(bus="shop", broker="RabbitMQ", vhost="/", rows=(Row(queue="inventory.a_long_name_of_a_handler"),))
    console = Console(width=50, no_color=True)
    with console.capture() as captured:
        console.print(table(glance, 50))

    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 50
    assert "READY" in lines[1]
    assert "UNACKED" not in lines[1]

"""``rabbitevents explain``: what it says of a bus, in which form, and that no broker is asked unless that is said."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from click.testing import CliRunner, Result
from tenacity import stop_after_attempt, stop_never, wait_chain, wait_fixed

from rabbitevents import Bus, Plugin, Router, Subscription
from rabbitevents.cli.commands import command_line
from rabbitevents.operations.doctor import Report
from rabbitevents.operations.live import Live
from rabbitevents.operations.wiring import Wiring, meant, wiring
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency, MemoryStore
from rabbitevents_retry import Retry, on, otherwise
from tests.bed.loopback import LOOPBACK
from tests.bed.rabbitmq import RabbitNode
from tests.operating import OrderPlaced, StockReserved, shop
from tests.test_cli import environment

PASSWORD = "marker-in-the-password"

MODULE = """
import os
from tests.operating import shop

bus = shop(os.environ.get("AMQP_URL", "amqp://guest:marker-in-the-password@localhost/shop"))
memory = shop("memory://")
"""


def explain(folder: Path, *words: str, bus: str = "bus", **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "a_shop.py").write_text(MODULE)
    command = [sys.executable, "-m", "rabbitevents", "explain", f"a_shop:{bus}", *words]
    told = {**environment(), **env}
    return subprocess.run(command, cwd=folder, env=told, capture_output=True, text=True, timeout=60, check=False)


def called(monkeypatch: pytest.MonkeyPatch, bus: Bus, *words: str) -> Result:
    """Call the command here, for a bus that is made here."""
    module = types.ModuleType("a_bus_to_explain")
    module.__dict__["bus"] = bus
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return CliRunner().invoke(command_line, ["explain", "a_bus_to_explain:bus", *words])


# --- what is said ----------------------------------------------------------------------------------------------------


def test_one_handler_is_said_whole(tmp_path: Path) -> None:
    done = explain(tmp_path, "inventory.reserve", COLUMNS="80")

    assert (done.returncode, done.stderr) == (0, "")
    assert said_of(done.stdout) == [
        "is called for order.placed (OrderPlaced, version 2, also OrderPlaced)",
        "queue inventory.reserve, quorum, delivery limit 50",
        "bound to delay.due: inventory.reserve",
        "events: order.placed, OrderPlaced",
        "events.due: order.placed, OrderPlaced",
        "works with workers 1, prefetch 1, no timeout",
        "plugins DeadLetter > Retry",
        "if it fails tried again, 5 attempts: after 0.5 s to 0.75 s, 4 s to 6 s, 32",
        "s to 48 s, 4 min 16 s to 6 min 24 s",
        "waits in delay.4000 to delay.6050, delay.33621 to delay.49223,",
        "delay.273650 to delay.400649",
        "given up on inventory.reserve.dead (rabbitevents dlq)",
        "at the broker after 50 deliveries that nobody settled, inventory.reserve.dead",
        "publishes stock.reserved (by annotation)",
    ]


def said_of(text: str) -> list[str]:
    """The rows of one handler, without those that say where it stands, which is another place on each machine."""
    rows = [" ".join(line.split()) for line in text.splitlines()]
    first, last = (
        next(n for n, row in enumerate(rows) if row.startswith(label)) for label in ("is called", "function")
    )
    return rows[first:last]


def test_where_a_handler_stands_is_seen_from_here() -> None:
    (handler,) = wiring(shop("amqp://localhost")).subscriptions[0].handlers

    assert handler.function == "tests.operating.shop.<locals>.reserve"
    assert handler.place.rpartition(":")[0].endswith("tests/operating.py")


@pytest.mark.parametrize("width", [50, 80])
@pytest.mark.parametrize("words", [(), ("inventory.*",)])
def test_lines_fit_the_terminal(tmp_path: Path, width: int, words: tuple[str, ...]) -> None:
    done = explain(tmp_path, *words, COLUMNS=str(width))

    too_long = [line for line in done.stdout.splitlines() if len(line) > width]
    assert [line for line in too_long if " " in line.strip()] == []


def test_a_pipe_gets_whole_lines_without_colours_and_a_terminal_that_wants_none_neither(tmp_path: Path) -> None:
    piped, forced, without = (
        explain(tmp_path, "inventory.reserve"),
        explain(tmp_path, "inventory.reserve", FORCE_COLOR="1"),
        explain(tmp_path, "inventory.reserve", FORCE_COLOR="1", NO_COLOR="1"),
    )

    assert "after 0.5 s to 0.75 s, 4 s to 6 s, 32 s to 48 s, 4 min 16 s to 6 min 24 s" in piped.stdout
    assert "\x1b" not in piped.stdout
    assert "\x1b[" in forced.stdout
    assert "\x1b[3" not in without.stdout


def test_without_a_pattern_each_handler_is_there_and_what_others_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router("till")

    @router.on(OrderPlaced)
    async def charge(order: OrderPlaced) -> list[StockReserved] | None: ...

    text = called(monkeypatch, Bus("amqp://localhost", router)).stdout

    assert "till.charge" in text
    assert "publishes      stock.reserved (by annotation)" in text
    assert "handled elsewhere  stock.reserved" in text


def test_what_another_handler_is_called_for_is_not_elsewhere() -> None:
    assert wiring(shop("amqp://localhost")).elsewhere == ()


@pytest.mark.parametrize(
    ("pattern", "queues"),
    [
        ("inventory.reserve", ["inventory.reserve"]),
        ("reserve", ["inventory.reserve"]),
        ("inventory.*", ["inventory.reserve", "inventory.note"]),
        ("order.placed", ["inventory.reserve"]),
        ("OrderPlaced", ["inventory.reserve"]),
        ("payment.charged.late", ["inventory.note"]),
        ("payment.#", ["inventory.note"]),
        ("stock.*", ["inventory.note"]),
        ("inventory.note.dead", ["inventory.note"]),
        ("invent", []),
    ],
)
def test_a_pattern_is_a_queue_a_handler_or_an_event(pattern: str, queues: list[str]) -> None:
    assert [each.queue for each in meant(wiring(shop("amqp://localhost")), pattern)] == queues


def test_a_pattern_about_nothing_is_an_error_that_says_what_may_have_been_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = called(monkeypatch, shop("amqp://localhost"), "inventory.resreve")

    assert result.exit_code == 2
    assert "did you mean inventory.reserve?" in result.stderr


def test_a_shared_queue_says_which_handler_is_for_what_and_another_teams_exchange_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    router = Router("till")

    @router.on(OrderPlaced, queue="orders", exchange="partner", key="booking.#")
    async def charge(order: OrderPlaced) -> None: ...

    @router.on(StockReserved, queue="orders")
    async def ship(reserved: StockReserved) -> None: ...

    bus = Bus("amqp://localhost", router)
    text = called(monkeypatch, bus, "till.orders").stdout
    live = wiring(bus).subscriptions[0]

    assert "charge: order.placed (OrderPlaced, version 2, also OrderPlaced)" in text
    assert "ship: stock.reserved (StockReserved, version 1)" in text
    assert "partner: booking.#" in text
    assert {each.exchange: each.keys for each in live.bound}["partner"] == ("booking.#",)


def test_a_bus_that_only_publishes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "none: this bus only publishes" in called(monkeypatch, Bus("amqp://localhost")).stdout


def test_a_wrong_order_of_plugins_is_said_as_a_start_would(monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router("till")

    @router.on(OrderPlaced, plugins={"trace": None})
    async def charge(order: OrderPlaced) -> None: ...

    result = called(monkeypatch, Bus("amqp://localhost", router))

    assert result.exit_code == 2
    assert "is without 'trace', and the bus has no plugin of that role" in result.stderr


# --- plugins ---------------------------------------------------------------------------------------------------------


class Loud(Plugin):
    def describe(self, subscription: Subscription) -> Iterable[tuple[str, str]]:
        yield "shouts", f"in {subscription.queue}\x1b[31m"


def test_a_plugin_of_anybody_says_what_it_does_and_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = shop("amqp://localhost").sibling(plugins=[Loud()])

    text = called(monkeypatch, bus, "inventory.reserve").stdout

    assert "shouts         in inventory.reserve\\x1b[31m" in text
    assert "given up on    nothing: without DeadLetter() what fails is held" in text


def test_retries_are_said_rule_by_rule_and_what_waits_where() -> None:
    waits = wait_chain(wait_fixed(1), wait_fixed(60))
    rules = Retry(on(TimeoutError).retry(stop=stop_after_attempt(3), wait=waits), otherwise.dead_letter())
    for_ever = Retry(stop=stop_never, wait=wait_fixed(0.1))
    subscription = shop("amqp://localhost").subscriptions[0]

    assert list(rules.describe(subscription)) == [
        ("if it fails", "on TimeoutError: tried again, 3 attempts: after 1 s, 1 min"),
        ("if it fails", "otherwise: given up at once"),
        ("waits in", "delay.1000, delay.65514"),
    ]
    ((label, text),) = for_ever.describe(subscription)
    assert (label, text.count("0.1 s"), text[-3:]) == ("if it fails", 8, "...")
    assert "without end" in text


def test_first_party_plugins_say_what_they_keep() -> None:
    subscription = shop("amqp://localhost").subscriptions[0]

    assert list(DeadLetter().describe(subscription)) == [("given up on", "inventory.reserve.dead (rabbitevents dlq)")]
    (said,) = Idempotency(MemoryStore(), keep=timedelta(days=2)).describe(subscription)
    assert said == ("handled once", "known for 2 days, in MemoryStore")


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_the_json_is_stable(tmp_path: Path) -> None:
    first, second = explain(tmp_path, "--json"), explain(tmp_path, "--json", COLUMNS="40", PYTHONHASHSEED="7")

    document = json.loads(first.stdout)
    assert first.stdout == second.stdout
    assert PASSWORD not in first.stdout
    assert msgspec.convert(document, Wiring) is not None
    assert {key: document[key] for key in ("schema", "bus", "broker", "exchange", "declare", "elsewhere")} == {
        "schema": 1,
        "bus": "inventory",
        "broker": "amqp://guest@localhost:5672/shop",
        "exchange": "events",
        "declare": "active",
        "elsewhere": [],
    }


SCHEMA = {
    "Wiring": "schema:int bus:str broker:str exchange:str declare:str subscriptions:SubscriptionWiring elsewhere:EventWiring",
    "SubscriptionWiring": (
        "name:str queue:str dead_queue:str arguments:Mapping bound:BoundTo handlers:HandlerWiring workers:int prefetch:int "
        "timeout:float|NoneType order:str was:str identity:str partitions:str batch:str plugins:PluginWiring said:Said"
    ),
    "EventWiring": "type:str name:str version:int oldest:int aliases:str",
    "BoundTo": "exchange:str keys:str",
    "HandlerWiring": "name:str function:str place:str events:EventWiring patterns:str publishes:EventWiring",
    "PluginWiring": "name:str role:str hooks:str",
    "Said": "plugin:str label:str text:str",
    "Live": "http:str problem:str queues:Mapping found:Found",
    "LiveQueue": "ready:int|NoneType unacked:int|NoneType consumers:int|NoneType",
    "Found": "check:str grade:Literal where:str what:str way_out:str",
    "Report": (
        "schema:int bus:str broker:str address:str vhost:str http:str found:Found unseen:Unseen checks:int seconds:float"
    ),
    "Unseen": "about:str why:str",
}
"""What programs read. A line that changes here breaks them: then `schema` becomes another number."""


def test_the_form_of_the_json_is_what_programs_were_told() -> None:
    found: dict[str, str] = {}
    for root in (Wiring, Live, Report):
        note(root, found)

    assert found == SCHEMA


def note(kind: type[msgspec.Struct], found: dict[str, str]) -> None:
    """Note a struct's fields, and those of the structs in it."""
    hints = get_type_hints(kind)
    fields = {name: hints[name] for name in kind.__struct_fields__}
    found[kind.__name__] = " ".join(f"{name}:{named(hint)}" for name, hint in fields.items())
    for hint in fields.values():
        for each in (hint, *get_args(hint)):
            if isinstance(each, type) and issubclass(each, msgspec.Struct) and each.__name__ not in found:
                note(each, found)


def named(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return named(get_args(hint)[0])
    if get_origin(hint) is types.UnionType:
        return "|".join(map(named, get_args(hint)))
    return str(getattr(hint, "__name__", None) or get_origin(hint).__name__)


# --- the broker ------------------------------------------------------------------------------------------------------


async def test_no_connection_is_opened_unless_that_is_asked_for(tmp_path: Path) -> None:
    here = f"127.0.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 2}"  # all of 127 is this machine: a host of its own
    came: list[int] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer.get_extra_info("sockname")[1])
        writer.close()

    servers = [await asyncio.start_server(note, here, port) for port in (5672, 15672)]
    url = f"amqp://guest:guest@{here}/"
    plain = await asyncio.to_thread(explain, tmp_path, AMQP_URL=url)
    opened = list(came)
    await asyncio.to_thread(explain, tmp_path, "--live", AMQP_URL=url)
    for server in servers:
        server.close()

    assert plain.returncode == 0
    assert opened == []
    assert set(came) == {15672}


def test_where_to_look_is_refused_where_nobody_looks(tmp_path: Path) -> None:
    done = explain(tmp_path, "--http", "http://localhost:15672")

    assert done.returncode == 2
    assert "--http is where --live looks: say that too" in done.stderr


async def test_live_says_what_stands_and_what_is_otherwise_there(managed_node: RabbitNode, tmp_path: Path) -> None:
    url = managed_node.add_vhost()
    words = ("--live", "--http", managed_node.http_url)
    before = await asyncio.to_thread(explain, tmp_path, *words, AMQP_URL=url)
    async with shop(url, delivery_limit=30):
        async with asyncio.timeout(20):
            while "consumers 1" not in (now := await asyncio.to_thread(explain, tmp_path, *words, AMQP_URL=url)).stdout:
                pass
    as_json = await asyncio.to_thread(explain, tmp_path, "--json", *words, AMQP_URL=url)
    managed_node.delete_vhost(url)

    assert before.stdout.count("not there") == 2
    assert "ready 0, unacknowledged 0, consumers 1, dead letters 0" in now.stdout
    assert "other arguments: x-delivery-limit is 30, wanted is 50" in now.stdout
    live = json.loads(as_json.stdout)["live"]
    assert msgspec.convert(live, Live).queues["inventory.note"].ready == 0


def test_live_without_http_says_what_could_not_be_seen(tmp_path: Path) -> None:
    done = explain(tmp_path, "--live", AMQP_URL=f"amqp://guest:{PASSWORD}@{LOOPBACK}:1/")

    assert done.returncode == 0
    assert "not looked at  http://127.0.0.1:15672" in done.stdout
    assert PASSWORD not in done.stdout


def test_a_bus_on_the_embedded_broker_is_explained_and_has_nothing_live(tmp_path: Path) -> None:
    plain, live = explain(tmp_path, bus="memory"), explain(tmp_path, "--live", bus="memory")

    assert plain.returncode == 0
    assert live.returncode == 2
    assert "this looks at RabbitMQ, and the bus is on memory://" in live.stderr

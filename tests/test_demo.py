"""The demonstration: what people run first, and whether its counts can be believed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitevents import Bus
from rabbitevents.brokers.memory import EmbeddedBroker
from rabbitevents.demo import __main__ as command_line
from rabbitevents.demo import run as demo
from rabbitevents.demo.ledger import Effect, Ledger
from rabbitevents.demo.orders import SAMPLE, BadLine, Order, make_orders, read_orders
from rabbitevents.demo.run import Settings
from rabbitevents.demo.services import OrderPlaced
from tests.bed.loopback import free_port

GOOD = b'{"order_id": "1", "customer": "c", "sku": "mug", "quantity": 2, "price": "8.50"}\n'


def good(order_id: str) -> bytes:
    return GOOD.replace(b'"1"', json.dumps(order_id).encode())


def silence(_: str) -> None:
    """Take what a run says of itself."""


# --- orders --------------------------------------------------------------------------------------------------------


def test_a_line_is_an_order() -> None:
    assert list(read_orders([GOOD])) == [Order("1", "c", "mug", 2, Decimal("8.50"))]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"no json\n", "malformed"),
        (b"\xff\xfe\n", "malformed"),
        (b"[]\n", "Expected `object`"),
        (b'{"x": ' + b"[" * 100_000, "recursion"),
        (GOOD.replace(b"sku", b"sqo"), "missing required field `sku`"),
        (GOOD.replace(b" 2,", b" 0,"), "`$.quantity`"),
        (GOOD.replace(b" 2,", b' "2",'), "`$.quantity`"),
        (GOOD.replace(b'"8.50"', b'"dear"'), "`$.price`"),
        (GOOD.replace(b'"1"', b'""'), "`$.order_id`"),
        (good("1" * 101), "`$.order_id`"),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_the_next_one_is_read(line: bytes, reason: str) -> None:
    first, bad, last = read_orders([good("a"), line, good("b")])

    assert isinstance(bad, BadLine)
    assert bad.number == 2
    assert reason in bad.reason
    assert isinstance(first, Order)
    assert isinstance(last, Order)


def test_blank_lines_are_passed_over_and_counted_as_lines() -> None:
    assert list(read_orders([b"\n", b"  \r\n", b"x\n"])) == [
        BadLine(3, "JSON is malformed: invalid character (byte 0)")
    ]


def test_an_order_id_can_be_used_once() -> None:
    _, again = read_orders([GOOD, GOOD])

    assert again == BadLine(2, "order '1' is on line 1 already")


@given(st.lists(st.binary().filter(bytes.strip)))
def test_any_line_is_an_order_or_a_bad_line(lines: list[bytes]) -> None:
    assert len(list(read_orders(lines))) == len(lines)


def test_the_sample_has_only_good_lines() -> None:
    with SAMPLE.open("rb") as lines:
        items = list(read_orders(lines))

    assert len(items) > 10
    assert not [item for item in items if isinstance(item, BadLine)]


def test_the_same_seed_makes_the_same_orders() -> None:
    assert list(make_orders(50, seed=1)) == list(make_orders(50, seed=1))
    assert list(make_orders(50, seed=1)) != list(make_orders(50, seed=2))
    assert len({order.order_id for order in make_orders(50, seed=1)}) == 50


# --- the ledger ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(tmp_path / "effects.jsonl")) as ledger:
        yield ledger


def effect(number: int) -> Effect:
    return Effect("reserve", f"order-{number}", f"event-{number}")


class Fsync:
    """Stands in for `os.fsync`: counts, can be held up, and can fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fails = False
        self.open = threading.Event()
        self.open.set()
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        assert self.open.wait(10)
        if self.fails:
            raise OSError(28, "No space left on device")
        self._fsync(descriptor)


@pytest.fixture
def fsync(monkeypatch: pytest.MonkeyPatch) -> Fsync:
    return Fsync(monkeypatch)


async def test_a_record_returns_only_after_its_fsync(ledger: Ledger, fsync: Fsync) -> None:
    fsync.open.clear()

    recording = asyncio.ensure_future(ledger.record(effect(1)))
    done_early, _ = await asyncio.wait({recording}, timeout=0.1)
    fsync.open.set()
    await recording

    assert not done_early
    assert ledger.read() == [effect(1)]


async def test_records_that_arrive_while_one_is_written_share_the_next_fsync(ledger: Ledger, fsync: Fsync) -> None:
    await asyncio.gather(*(ledger.record(effect(number)) for number in range(100)))

    assert fsync.calls <= 2
    assert sorted(ledger.read(), key=lambda e: int(e.order_id[6:])) == [effect(number) for number in range(100)]


async def test_a_record_that_cannot_be_written_raises_and_leaves_no_trace(ledger: Ledger, fsync: Fsync) -> None:
    await ledger.record(effect(1))
    fsync.fails = True
    with pytest.raises(OSError, match="No space left"):
        await ledger.record(effect(2))
    fsync.fails = False
    await ledger.record(effect(3))

    assert ledger.read() == [effect(1), effect(3)]


async def test_a_handler_that_is_cancelled_harms_no_other(ledger: Ledger, fsync: Fsync) -> None:
    fsync.open.clear()
    cancelled = asyncio.ensure_future(ledger.record(effect(1)))
    other = asyncio.ensure_future(ledger.record(effect(2)))
    await asyncio.sleep(0)

    cancelled.cancel()
    fsync.open.set()
    await other

    assert cancelled.cancelled()
    assert effect(2) in ledger.read()


async def test_waiting_for_effects_ends_when_they_are_there(ledger: Ledger) -> None:
    waiting = asyncio.ensure_future(ledger.wait_for([("reserve", "order-1"), ("reserve", "order-2")], patience=10))

    await ledger.record(effect(2))
    assert not waiting.done()
    await ledger.record(effect(1))

    await asyncio.wait_for(waiting, 1)


async def test_waiting_for_effects_ends_when_none_comes_any_more(ledger: Ledger) -> None:
    await ledger.record(effect(2))

    with pytest.raises(TimeoutError):
        await ledger.wait_for([("reserve", "order-1")], patience=0.05)


# --- a run ---------------------------------------------------------------------------------------------------------


async def run(
    orders: int, *, broker: str | None = None, patience: float = 10, pieces_of_each: int = 500
) -> demo.Counts:
    settings = Settings(broker, patience=patience, pieces_of_each=pieces_of_each)
    return await demo.run(list(make_orders(orders, seed=1)), settings, silence)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> EmbeddedBroker:
    """The embedded broker that the next run uses."""
    server = EmbeddedBroker()
    monkeypatch.setattr(demo, "EmbeddedBroker", lambda: server)
    return server


async def test_every_order_is_followed_through_both_services() -> None:
    counts = await run(1200)

    assert (counts.placed, counts.published, counts.handled) == (1200, 2400, 2400)
    assert (counts.lost, counts.duplicates, counts.unconfirmed) == (0, 0, 0)
    assert counts.reserved + counts.refused == 1200
    assert counts.broker == "memory://"


async def test_what_is_not_in_stock_is_refused() -> None:
    counts = await run(60, pieces_of_each=5)

    assert 0 < counts.reserved < 60
    assert counts.refused == 60 - counts.reserved


async def test_nothing_is_lost_when_the_connection_breaks_under_way(server: EmbeddedBroker) -> None:
    server.fail("lose", when=lambda message: message.type == "stock.reserved", times=3)

    counts = await run(200)

    assert (counts.placed, counts.published, counts.lost) == (200, 400, 0)


async def test_an_order_that_the_broker_refuses_is_unconfirmed_and_not_lost(server: EmbeddedBroker) -> None:
    server.fail("refuse", when=lambda message: message.type == "order.placed")

    counts = await run(600)

    assert (counts.placed, counts.unconfirmed, counts.lost) == (500, 1, 0)
    assert not counts.flawless


async def test_what_an_earlier_run_left_in_the_queues_is_not_counted(rabbit_url: str) -> None:
    await run(1, broker=rabbit_url)
    async with Bus(rabbit_url, exchange=demo.EXCHANGE, unroutable="raise") as bus:
        await bus.publish_many(OrderPlaced(f"earlier-{n}", "c", "mug", 1, Decimal(1)) for n in range(20))

    counts = await run(30, broker=rabbit_url)

    assert (counts.placed, counts.published, counts.handled) == (30, 60, 60)
    assert (counts.lost, counts.duplicates) == (0, 0)


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], list[str]]]:
    """Run the command line; return the exit code, and the lines of standard output and of standard error."""

    def main(*arguments: str) -> tuple[int, list[str], list[str]]:
        try:
            code = command_line.main(arguments)
        except SystemExit as ended:
            code = int(str(ended.code))
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return main


Main = Callable[..., tuple[int, list[str], list[str]]]


def test_json_is_the_last_line(main: Main) -> None:
    code, out, _ = main("--orders", "20", "--json")
    counts = json.loads(out[-1])

    assert code == 0
    assert list(counts) == ["broker", "placed", "published", "handled", "lost", "duplicates", "seconds"]
    assert {**counts, "seconds": 0} == {
        "broker": "memory://",
        "placed": 20,
        "published": 40,
        "handled": 40,
        "lost": 0,
        "duplicates": 0,
        "seconds": 0,
    }


def test_people_get_three_lines(main: Main) -> None:
    code, out, _ = main("--input", str(SAMPLE))

    assert code == 0
    assert out[0] == "12 orders placed: stock was reserved for 10, and short for 2"
    assert out[1].startswith("24 events confirmed by memory://, 24 handled, in ")
    assert out[2:] == ["0 lost, 0 duplicates"]


def test_a_bad_line_is_reported_and_skipped(main: Main, tmp_path: Path) -> None:
    path = tmp_path / "orders.jsonl"
    path.write_bytes(good("a") + b"{\n" + good("b"))

    code, out, err = main("--input", str(path), "--json")

    assert code == 0
    assert json.loads(out[-1])["placed"] == 2
    assert err[0].startswith(f"{path}, line 2: ")


@pytest.mark.parametrize(("sabotage", "lost", "duplicates"), [("drop", 3, 0), ("dup", 0, 3)])
def test_sabotage_is_noticed(main: Main, sabotage: str, lost: int, duplicates: int) -> None:
    code, out, _ = main("--orders", "30", "--sabotage", sabotage, "--patience", "1", "--json")
    counts = json.loads(out[-1])

    assert code == 1
    assert (counts["lost"], counts["duplicates"]) == (lost, duplicates)
    assert (counts["placed"], counts["published"], counts["handled"]) == (30, 60, 60 - lost)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--orders", "0"], "'0' is no number from 1"),
        (["--orders", "-5"], "'-5' is no number from 1"),
        (["--orders", "9" * 5000], "is no number from 1"),
        (["--orders", "ten"], "'ten' is no number from 1"),
        (["--orders", "5", "--input", "x"], "not allowed with"),
        (["--input", "/nowhere/orders.jsonl"], "/nowhere/orders.jsonl: No such file"),
        (["--input", "/"], "/: Is a directory"),
        (["--sabotage", "burn"], "invalid choice"),
        (["--broker", "http://localhost"], "amqp://"),
        (["--broker", ""], "amqp://"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_a_bad_argument_is_one_clear_line(main: Main, arguments: list[str], says: str) -> None:
    code, out, err = main(*arguments)

    assert code == 2
    assert out == []
    assert len(err) == 1
    assert err[0].startswith("demo: ")
    assert says in err[0]


def test_a_broker_that_is_not_there_is_one_clear_line_without_the_password(
    main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "Settings", partial(Settings, start_timeout=0.3))
    port = free_port()

    code, out, err = main("--broker", f"amqp://guest:secret@127.0.0.1:{port}/")

    assert code == 2
    assert out == []
    assert len(err) == 1
    assert f"127.0.0.1:{port}" in err[0]
    assert "nobody listens there" in err[0]
    assert "secret" not in err[0]


def test_two_thousand_orders_go_through_rabbitmq(main: Main, rabbit_url: str) -> None:
    code, out, _ = main("--orders", "2000", "--broker", rabbit_url, "--json")
    counts = json.loads(out[-1])

    assert code == 0
    assert (counts["placed"], counts["lost"], counts["duplicates"]) == (2000, 0, 0)
    assert (counts["published"], counts["handled"]) == (4000, 4000)
    assert "guest:guest" not in counts["broker"]


def test_control_c_ends_it_without_a_traceback() -> None:
    command = [sys.executable, "-m", "rabbitevents.demo", "--orders", "100000", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "orders placed" in process.stderr.readline()

        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)

    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "stopped; nothing was counted"
    assert "Traceback" not in err

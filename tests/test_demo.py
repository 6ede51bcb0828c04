"""The demonstration: what people run first, and whether its counts can be believed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path

import attrs
import pytest

from rabbitevents import Bus
from rabbitevents.cli.commands import command_line
from rabbitevents.demo import command
from rabbitevents.demo.journal import Journal
from rabbitevents.demo.orders import SAMPLE, make_orders
from rabbitevents.demo.report import closing
from rabbitevents.demo.run import Counts, run
from rabbitevents.demo.services import EXCHANGE
from rabbitevents.demo.settings import Settings
from rabbitevents.demo.shop.events import OrderPlaced
from rabbitevents.demo.shop.inventory import Reservation
from rabbitevents.testing import EmbeddedBroker
from tests.bed.loopback import free_port

ROOT = Path(__file__).parent.parent


class Silence:
    """An audience that does not listen."""

    def say(self, line: str, /) -> None:
        """Hear nothing."""

    def progress(self, placed: int, closed: int, effects: int, /) -> None:
        """Learn nothing."""


async def counted(
    orders: int,
    *,
    broker: str | None = None,
    embedded: EmbeddedBroker | None = None,
    folder: Path | None = None,
) -> Counts:
    settings = Settings(broker=broker, patience=10)
    result = await run(list(make_orders(orders, seed=1)), settings, Silence(), folder=folder, embedded=embedded)
    return result.counts


# --- a run ---------------------------------------------------------------------------------------------------------


async def test_every_order_is_followed_through_all_services() -> None:
    counts = await counted(1200)

    assert counts.placed == counts.confirmed + counts.cancelled == 1200
    assert (counts.lost, counts.duplicates, counts.unconfirmed) == (0, 0, 0)
    assert counts.confirmed > 0
    assert counts.cancelled > 0
    assert counts.flawless


async def test_nothing_is_lost_when_the_connection_breaks_under_way(embedded_broker: EmbeddedBroker) -> None:
    embedded_broker.fail("lose", when=lambda message: message.type == "payment.processed", times=3)

    counts = await counted(200, embedded=embedded_broker)

    assert counts.placed == counts.confirmed + counts.cancelled == 200
    assert (counts.lost, counts.unconfirmed) == (0, 0)


async def test_an_event_that_comes_twice_is_handled_once(embedded_broker: EmbeddedBroker) -> None:
    embedded_broker.fail("lose", when=lambda message: message.type == "payment.processed", times=5)

    counts = await counted(20, embedded=embedded_broker)

    assert counts.duplicates == 0
    assert counts.flawless


async def test_an_event_that_is_handled_twice_is_a_flaw() -> None:
    counts = await counted(1)

    assert not attrs.evolve(counts, duplicates=1).flawless


async def test_an_order_that_the_broker_refuses_is_unconfirmed_and_not_lost(embedded_broker: EmbeddedBroker) -> None:
    embedded_broker.fail("refuse", when=lambda message: message.type == "order.placed")

    counts = await counted(600, embedded=embedded_broker)

    assert (counts.placed, counts.unconfirmed, counts.lost) == (500, 1, 0)
    assert counts.confirmed + counts.cancelled == 499
    assert not counts.flawless


async def test_an_order_that_is_not_closed_is_a_flaw() -> None:
    counts = await counted(1)

    assert counts.flawless
    assert not attrs.evolve(counts, confirmed=0, cancelled=0).flawless
    assert attrs.evolve(counts, confirmed=0, cancelled=0, dead=1).flawless


async def test_an_event_that_comes_again_after_a_kill_is_no_flaw_and_is_said() -> None:
    counts = attrs.evolve(await counted(1), duplicates=2)

    assert not counts.flawless
    assert attrs.evolve(counts, restarts=1).flawless
    assert "came again" in closing(attrs.evolve(counts, restarts=1))[-1]


async def test_what_an_earlier_run_left_in_the_queues_is_not_counted(rabbit_url: str) -> None:
    first = await counted(1, broker=rabbit_url)
    async with Bus(rabbit_url, exchange=EXCHANGE, unroutable="raise") as bus:
        await bus.publish_many(OrderPlaced(f"earlier-{n}", "c", "mug", 1, Decimal(1)) for n in range(20))

    counts = await counted(30, broker=rabbit_url)

    assert first.flawless
    assert counts.flawless
    assert counts.placed == counts.confirmed + counts.cancelled == 30


async def test_the_stock_of_a_run_is_what_was_sold(tmp_path: Path) -> None:
    counts = await counted(200, folder=tmp_path)

    reserved = Journal(tmp_path / "inventory" / "reserved.jsonl", Reservation)
    returned = Journal(tmp_path / "inventory" / "returned.jsonl", Reservation)
    sold = {id for id, reservation in reserved.items() if reservation.pieces and id not in returned}
    assert len(sold) == counts.confirmed


# --- the command line ----------------------------------------------------------------------------------------------

Main = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Main:
    """Call ``rabbitevents demo``; return the exit code, and the lines of standard output and of standard error."""

    def main(*arguments: str) -> tuple[int, list[str], list[str]]:
        with pytest.raises(SystemExit) as ended:
            command_line.main(["demo", *arguments])
        printed = capsys.readouterr()
        return int(str(ended.value.code)), printed.out.splitlines(), printed.err.splitlines()

    return main


KEYS = [
    *("broker", "store", "placed", "confirmed", "cancelled", "published", "handled", "lost", "duplicates", "seconds"),
    *("retried", "dead"),
]


def test_json_is_all_that_is_printed(main: Main) -> None:
    code, out, _ = main("--orders", "200", "--json")
    counts = json.loads(out[0])

    assert code == 0
    assert len(out) == 1
    assert list(counts) == KEYS
    assert counts["broker"] == "memory://"
    assert counts["placed"] == counts["confirmed"] + counts["cancelled"] == 200
    assert (counts["lost"], counts["duplicates"]) == (0, 0)


def test_people_get_a_table_a_story_and_three_lines(main: Main) -> None:
    code, out, _ = main("--input", str(SAMPLE))
    text = "\n".join(out)

    assert code == 0
    assert [s for s in ("order", "inventory", "payment", "notification", "analytics") if f"│ {s} " not in text] == []
    assert re.search(r"inventory +│ +14 │ +14 │ +0 │ +0 │ +22 │ 10 InventoryReserved", text)
    assert re.search(r"The story of order [0-9a-f]{8}-1001,", text)  # its id on the wire, and in traces
    assert out[-3] == "12 orders placed: 10 confirmed, 2 cancelled, 0 dead"
    assert out[-2].startswith("92 events confirmed by memory://, 82 effects, 0 retries, in ")
    assert out[-1] == "0 lost, 0 duplicates"


def test_a_story_is_a_tree_of_causes(main: Main, tmp_path: Path) -> None:
    dear = {"order_id": "[red]7", "customer": "c", "sku": "kettle", "quantity": 4, "price": "39.90"}
    (tmp_path / "orders.jsonl").write_text(json.dumps(dear))

    _, out, _ = main("--input", str(tmp_path / "orders.jsonl"))
    begin = next(
        number for number, line in enumerate(out) if re.search(r"The story of order [0-9a-f]{8}-\[red\]7", line)
    )
    story = out[begin + 1 : -3]
    depths = {line.split("── ")[1].split()[0]: line.index("── ") // 4 for line in story}

    assert len(story) == 9
    assert " ms" not in story[0]
    assert all(re.search(r"\d\d:\d\d:\d\d\.\d{3}  \+\d+\.\d ms  \w+$", line) for line in story[1:])
    assert depths["OrderPlaced"] == 0
    assert depths["InventoryReserved"] == 1
    assert depths["PaymentDeclined"] == 2
    assert depths["OrderCancelled"] == 3
    assert depths["NotificationSent"] == 4


def test_a_bad_line_is_reported_and_skipped(main: Main, tmp_path: Path) -> None:
    path = tmp_path / "orders.jsonl"
    with SAMPLE.open() as sample:
        path.write_text(sample.readline() + "{\n" + sample.readline())

    code, out, err = main("--input", str(path), "--json")

    assert code == 0
    assert json.loads(out[0])["placed"] == 2
    assert err[0].startswith(f"{path}, line 2: ")


def test_a_file_without_orders_is_a_run_without_orders(main: Main, tmp_path: Path) -> None:
    (tmp_path / "orders.jsonl").touch()

    code, out, _ = main("--input", str(tmp_path / "orders.jsonl"))

    assert code == 0
    assert out[-3:] == [
        "0 orders placed: 0 confirmed, 0 cancelled, 0 dead",
        "0 events confirmed by memory://, 0 effects, 0 retries, in 0.00 s",
        "0 lost, 0 duplicates",
    ]


@pytest.mark.parametrize(("sabotage", "lost", "duplicates"), [("drop", 2, 0), ("dup", 0, 2)])
def test_sabotage_is_noticed(main: Main, sabotage: str, lost: int, duplicates: int) -> None:
    code, out, err = main("--input", str(SAMPLE), "--sabotage", sabotage, "--patience", "1")

    assert code == 1
    assert out[-1] == f"{lost} lost, {duplicates} duplicates"
    assert ("what is missing now is lost" in err[-1]) == bool(lost)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--orders", "0"], "'0' is no number from 1"),
        (["--orders", "-5"], "'-5' is no number from 1"),
        (["--orders", "100001"], "'100001' is no number from 1 to 100,000"),
        (["--orders", "9" * 5000], "is no number from 1"),
        (["--orders", "ten"], "'ten' is no number from 1"),
        (["--orders", "٣"], "is no number from 1"),
        (["--orders", ""], "'' is no number from 1"),
        (["--seed", "x"], "--seed"),
        (["--fail", "1.1"], "'1.1' is no rate from 0 to 1"),
        (["--fail", "-0.1"], "'-0.1' is no rate from 0 to 1"),
        (["--fail", "nan"], "'nan' is no rate from 0 to 1"),
        (["--fail", "often"], "'often' is no rate from 0 to 1"),
        (["--otlp", "localhost:4318"], "such as http://localhost:4318"),
        (["--otlp", "http://[:::"], "such as http://localhost:4318"),
        (["--otlp", ""], "such as http://localhost:4318"),
        (["--redis", "localhost"], "say where Redis is"),
        (["--redis", "redis://:secret@localhost:port/"], "say where Redis is"),
        (["--redis", "redis://localhost/?colour=red"], "--redis redis://localhost/: "),
        (["--redis", "redis://localhost", "--store", "sqlite:///shop.db"], "--redis and --store both remember"),
        (["--store", "shop.db"], "say where the database is"),
        (["--store", ""], "say where the database is"),
        (["--store", "postgresql://me:secret@localhost:port/"], "say where the database is"),
        (["--store", "mysql://me:secret@localhost/shop"], "'mysql' is neither sqlite nor postgresql"),
        (["--store", "sqlite://"], "names no file"),
        (["--store", "sqlite:////nowhere/shop.db"], "sqlite:////nowhere/shop.db cannot be used: unable to open"),
        (["--store", "sqlite:////etc/hostname"], "sqlite:////etc/hostname cannot be used: file is not a database"),
        (["--trace", "--json"], "leave one of them out"),
        (["--trace", "--orders", "5001"], "at most 5,000 orders"),
        (["--patience", "0"], "'0' is no number from 1"),
        (["--orders", "5", "--input", "x"], "--orders and --input exclude each other"),
        (["--input", "/nowhere/orders.jsonl"], "/nowhere/orders.jsonl: No such file"),
        (["--input", "/"], "/: Is a directory"),
        (["--sabotage", "burn"], "'burn'"),
        (["--broker", "http://localhost"], "amqp://"),
        (["--broker", ""], "amqp://"),
        (["--processes"], "--processes needs --broker amqp://"),
        (["--processes", "--broker", "memory://"], "--processes needs --broker amqp://"),
        (["--frobnicate"], "--frobnicate"),
        (["orders.jsonl"], "orders.jsonl"),
    ],
)
def test_a_bad_argument_is_one_clear_line(main: Main, arguments: list[str], says: str) -> None:
    code, out, err = main(*arguments)

    assert code == 2
    assert out == []
    assert len(err) == 1
    assert err[0].startswith("rabbitevents demo: ")
    assert len(err[0]) < 1100
    assert says in err[0]
    assert "secret" not in err[0]


def test_a_file_that_may_not_be_read_is_one_clear_line(main: Main, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")

    code, _, err = main("--input", str(tmp_path / "loop"))

    assert code == 2
    assert err == [f"rabbitevents demo: {tmp_path / 'loop'}: Too many levels of symbolic links"]


@pytest.mark.parametrize("arguments", [[], ["--processes"]])
def test_a_broker_that_is_not_there_is_one_clear_line_without_the_password(
    main: Main, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(command, "Settings", partial(Settings, start_timeout=0.3))
    port = free_port()

    code, out, err = main("--broker", f"amqp://guest:secret@127.0.0.1:{port}/", *arguments)

    assert code == 2
    assert out == []
    assert len(err) == 1
    assert f"127.0.0.1:{port}" in err[0]
    assert "nobody listens there" in err[0]
    assert "secret" not in err[0]


def test_two_thousand_orders_go_through_rabbitmq(main: Main, rabbit_url: str) -> None:
    code, out, _ = main("--orders", "2000", "--broker", rabbit_url, "--json")
    counts = json.loads(out[0])

    assert code == 0
    assert counts["placed"] == counts["confirmed"] + counts["cancelled"] == 2000
    assert (counts["lost"], counts["duplicates"]) == (0, 0)
    assert "guest:guest" not in counts["broker"]


DEMO = [sys.executable, "-m", "rabbitevents.demo"]


def test_control_c_ends_it_without_a_traceback() -> None:
    arguments = ["--orders", "100000", "--json"]
    with subprocess.Popen(
        [*DEMO, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "orders placed" in process.stderr.readline()

        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "stopped; nothing was counted"
    assert "Traceback" not in err


async def test_people_at_a_terminal_get_bars() -> None:
    terminal, end = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *DEMO, "--orders", "300", stdout=subprocess.PIPE, stderr=end, cwd=ROOT, env={**os.environ, "TERM": "xterm"}
    )
    os.close(end)
    shown = await asyncio.to_thread(_read_all, terminal)
    out, _ = await process.communicate()
    os.close(terminal)

    assert process.returncode == 0
    assert "300 of 300" in shown
    assert "effects" in shown
    assert "orders placed" not in shown
    assert b"300 orders placed: " in out


def _read_all(terminal: int) -> str:
    shown = b""
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # EIO: the other end is closed
            return shown.decode()
        if not read:
            return shown.decode()
        shown += read

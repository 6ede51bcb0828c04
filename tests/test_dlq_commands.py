"""The `dlq` commands by themselves, for a bus on the embedded broker: what they say, and how they end."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rabbitevents import Bus, ConfigurationError, Event, HeaderValue, Properties, Router
from rabbitevents.testing import EmbeddedBroker
from rabbitevents.texts import printable
from rabbitevents_deadletter import DeadLetter, read_lines
from rabbitevents_deadletter.commands import dlq
from rabbitevents_deadletter.commands.targets import begin
from tests.deadletters import DEAD, QUEUE, PaymentError, fill, ids, letters, put, raw, ready, service, until
from tests.shop import OrderPlaced

BUS = "a_shop_for_dlq:bus"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> EmbeddedBroker:
    """A broker, and a module whose bus is there: one handler that fails, and one that does not."""
    server = EmbeddedBroker()
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        raise PaymentError

    @router.on(OrderPlaced)
    async def note(order: OrderPlaced) -> None:
        pass

    module = ModuleType("a_shop_for_dlq")
    module.__dict__["bus"] = Bus(server.client(), router, plugins=[DeadLetter()])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return server


def called(*arguments: str, answer: str = "") -> Result:
    """Call `dlq`; what it returns, or raises, is the exit code and the exception."""
    result = CliRunner().invoke(dlq, list(arguments), input=answer, standalone_mode=False)
    if result.exception is None:
        result.exit_code = result.return_value or 0
    return result


def left(server: EmbeddedBroker) -> Sequence[str]:
    return ids(asyncio.run(letters(server)))


def filled(server: EmbeddedBroker, number: int) -> None:
    asyncio.run(fill(server, number))


# --- list ----------------------------------------------------------------------------------------------------------


def test_list_counts_by_queue_error_and_type(server: EmbeddedBroker) -> None:
    filled(server, 3)

    result = called("list", BUS)

    head, row = result.stdout.splitlines()
    assert head.split() == ["queue", "error", "type", "count", "oldest", "newest"]
    assert row.split()[:4] == [DEAD, "tests.deadletters.PaymentError", "order.placed", "3"]
    assert "shop.note.dead" in result.stderr  # this service never ran, and its queue is not there
    assert result.exit_code == 0
    assert len(left(server)) == 3


def test_list_as_json(server: EmbeddedBroker) -> None:
    filled(server, 3)

    found, lost = json.loads(called("list", BUS, "--json").stdout)

    assert (lost["queue"], lost["there"]) == ("delay.lost", 0)
    assert (found["queue"], found["there"], found["looked_at"]) == (DEAD, 3, 3)
    [group] = found["groups"]
    assert (group["error"], group["type"], group["count"]) == ("tests.deadletters.PaymentError", "order.placed", 3)


@pytest.mark.parametrize(("by", "head"), [("error", "queue error count"), ("type", "queue type count")])
def test_list_counts_by_one_of_them(by: str, head: str, server: EmbeddedBroker) -> None:
    asyncio.run(_fail_in_many_ways(server))

    result = called("list", BUS, "--by", by, "--queue", QUEUE)

    first, *rows = result.stdout.splitlines()
    assert first.split()[:3] == head.split()
    assert sum(int(row.split()[2]) for row in rows) == 4
    assert len(rows) == 2


async def _fail_in_many_ways(server: EmbeddedBroker) -> None:
    router = Router("shop")

    @router.on("#")
    async def record(order: Event[Any]) -> None:
        raise KeyError if order.entity_id == "o-0" else ValueError

    async with service(server, router) as bus:
        for number, kind in product(range(2), ("order.placed", "order.gone")):
            headers: dict[str, HeaderValue] = {"entity-id": f"o-{number}"}
            await bus.send(raw(b"{}", properties=Properties(type=kind, headers=headers)))
        await until(bus, 4)


def test_where_nothing_is_dead_that_is_said(server: EmbeddedBroker) -> None:
    filled(server, 0)

    assert called("list", BUS).stdout == "no dead letters\n"
    assert called("list", BUS, "--type", "x").stdout == "no dead letters that are meant\n"
    assert "no dead letters\n" in called("show", BUS).stderr
    assert "shop.record.dead: 0 replayed\n" in called("replay", BUS).stderr


# --- show ----------------------------------------------------------------------------------------------------------


def test_show_tells_everything_of_one(server: EmbeddedBroker) -> None:
    filled(server, 2)

    result = called("show", BUS, "--id", "id-1")

    words = " ".join(result.stdout.split())
    assert "id id-1 type order.placed reason tests.deadletters.PaymentError message no money for o-1" in words
    assert "attempts 1 handler tests.deadletters.failing.<locals>.record host" in words
    assert '\n  {\n    "order_id": "o-1"\n  }\n' in result.stdout
    assert "in record" in result.stdout
    assert "dead-letter-" not in result.stdout
    assert result.exit_code == 0


TRACE, LATER = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("headers", "trace"),
    [
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, TRACE),
        (
            {
                "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
                "previous-traceparent": f"00-{LATER}-b7ad6b7169203331-01",
            },
            LATER,
        ),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "previous-traceparent": "\x1b[2J"}, TRACE),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": [TRACE]}, None),
        ({}, None),
    ],
)
def test_show_names_the_trace_in_which_it_failed(
    server: EmbeddedBroker, headers: dict[str, HeaderValue], trace: str | None
) -> None:
    filled(server, 0)
    properties = Properties(message_id="id-1", type="order.placed", headers=headers)
    asyncio.run(put(server, raw(b"{}", queue=DEAD, properties=properties)))

    result = called("show", BUS)

    said = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("trace ")]
    assert said == ([trace] if trace else [])


def test_show_of_what_is_not_there_ends_with_1(server: EmbeddedBroker) -> None:
    filled(server, 2)

    result = called("show", BUS, "--id", "id-9", "--id", "id-1")

    assert "no dead letter of the event id-9 was found" in result.stderr
    assert "id-1" in result.stdout
    assert result.exit_code == 1


HOSTILE = "\x1b[2J\x1b]0;title\x07\u202egnp.exe\u2066\x9b31m\r\x08\x00[red]:skull:[/red]\udcff"
HOSTILE_HEADERS: dict[str, HeaderValue] = {
    HOSTILE: HOSTILE,
    "CC": ["admin.queue"],
    "x-delivery-count": -1,
    "nested": {HOSTILE: [HOSTILE, {"deep": b"\x1b[2J"}]},
    "number": 2**63 - 1,
    "not a number": float("nan"),
    "dead-letter-error": HOSTILE,
    "dead-letter-message": HOSTILE,
    "dead-letter-traceback": f"  File {HOSTILE}\n{HOSTILE}",
    "dead-letter-failed-at": HOSTILE,
    "dead-letter-handler": HOSTILE,
    "dead-letter-host": HOSTILE,
    "origin-exchange": HOSTILE,
}
HOSTILE_BODIES = [
    json.dumps({HOSTILE: "\ud800"}).encode(),
    f'{{"a": "{"x" * 10}", "b": "\u202e"}}'.encode(),
    HOSTILE.encode("utf-8", "surrogateescape"),
    b"9" * 1_000_000,
    b"[" * 60_000,
    b"[" * 20_000 + b"]" * 20_000,
    bytes(range(256)),
    b"NaN",
    b"\x00" * 100,
    b"",
    b"\x1b[31m" * 50_000,
]


def test_nothing_that_a_stranger_wrote_reaches_the_terminal_as_it_is(server: EmbeddedBroker) -> None:
    filled(server, 0)
    properties = Properties(
        type=HOSTILE[:60], message_id=HOSTILE, app_id=HOSTILE, correlation_id=HOSTILE, headers=HOSTILE_HEADERS
    )
    asyncio.run(put(server, *(raw(body, queue=DEAD, properties=properties) for body in HOSTILE_BODIES)))

    results = [
        called("list", BUS),
        called("list", BUS, "--json"),
        called("show", BUS, "--limit", "100"),
        called("replay", BUS, "--dry-run"),
        called("show", BUS, "--id", HOSTILE),
        called("show", BUS, "--id", printable(HOSTILE)),
    ]

    for result in results:
        assert result.exception is None
        assert (result.output.replace("\n", "")).isprintable()
    assert results[4].stdout.count("published") == results[5].stdout.count("published") == 1
    shown = results[2].stdout
    assert shown.count(r"\x1b[2J\x1b]0;title\x07\u202egnp.exe\u2066\x9b31m\r\x08\x00[red]:skull:[/red]\xff") > 20
    assert "body (1,000,000 bytes, of which 65,536 are shown; an export has all of it)" in shown
    assert "00000010  10 11 12" in shown


# --- replay --------------------------------------------------------------------------------------------------------


def test_replay_says_how_many_and_of_what(server: EmbeddedBroker) -> None:
    filled(server, 5)

    result = called("replay", BUS, "--id", "id-1", "--id", "id-2")

    assert result.stderr.splitlines()[-1] == "shop.record.dead: 2 replayed, 3 not meant"
    assert result.exit_code == 0
    assert left(server) == ["id-0", "id-3", "id-4"]
    assert asyncio.run(ready(server, QUEUE)) == 2


def test_a_limit_is_for_all_queues_together(server: EmbeddedBroker) -> None:
    asyncio.run(_fail_in_both(server, 3))

    listed = called("list", BUS)
    result = called("replay", BUS, "--limit", "4")
    narrowed = called("replay", BUS, "--queue", "shop.note.dead")

    assert [row.split()[0] for row in listed.stdout.splitlines()[1:]] == ["shop.record.dead", "shop.note.dead"]
    assert result.stderr.splitlines() == [
        "shop.record.dead: 3 replayed",
        "shop.note.dead: 1 replayed, 2 of 3 not looked at",
    ]
    assert narrowed.stderr.splitlines() == ["shop.note.dead: 2 replayed"]
    assert asyncio.run(ready(server, "shop.note")) == 3


async def _fail_in_both(server: EmbeddedBroker, number: int) -> None:
    router = Router("shop")

    async def fail(order: OrderPlaced) -> None:
        raise PaymentError

    router.on(OrderPlaced, name="record")(fail)
    router.on(OrderPlaced, name="note")(fail)
    async with service(server, router) as bus:
        await bus.publish_many([OrderPlaced(f"o-{i}") for i in range(number)])
        await until(bus, number)
        await until(bus, number, "shop.note.dead")


def test_a_dry_run_names_what_is_meant(server: EmbeddedBroker) -> None:
    filled(server, 5)

    result = called("replay", BUS, "--dry-run", "--limit", "2", "--error", "PaymentError", "--newer-than", "1h")

    lines = result.stderr.splitlines()[-3:]
    assert [line.split()[:2] for line in lines[:2]] == [[DEAD, "id-0"], [DEAD, "id-1"]]
    assert lines[2] == "shop.record.dead: 2 would be replayed, 3 of 5 not looked at"
    assert len(left(server)) == 5


def test_filters_reach_what_stands_behind_more_than_can_be_held(server: EmbeddedBroker) -> None:
    filled(server, 5)

    result = called("replay", BUS, "--id", "id-4", "--hold", "3")

    assert result.stderr.splitlines()[-1] == "shop.record.dead: 1 replayed, 4 not meant"
    assert result.exit_code == 0
    assert left(server) == ["id-0", "id-1", "id-2", "id-3"]


def test_one_body_is_edited_for_one_event(server: EmbeddedBroker, tmp_path: Path) -> None:
    filled(server, 2)
    body = tmp_path / "body.json"
    body.write_bytes(b'{"order_id": "edited"}\n')

    result = called("replay", BUS, "--id", "ID-1", "--edit", str(body))
    refused = called("replay", BUS, "--edit", str(body))

    assert result.exit_code == 0
    assert "say with --id which event it is for" in str(refused.exception)
    assert left(server) == ["id-0"]
    assert server.queues[QUEUE].ready == 1
    assert _bodies(server) == [b'{"order_id": "edited"}\n']


def _bodies(server: EmbeddedBroker) -> list[bytes]:
    async def taken() -> list[bytes]:
        async with Bus(server.client(), declare="none") as bus, bus.browse(QUEUE) as look:
            return [delivery.body async for delivery in look]

    return asyncio.run(taken())


def test_an_edited_export_changes_the_bodies_of_its_events_and_no_others(
    server: EmbeddedBroker, tmp_path: Path
) -> None:
    filled(server, 3)
    path = tmp_path / "dead.jsonl"
    called("export", BUS, "--to", str(path), "--id", "id-0", "--id", "id-2")
    path.write_text(path.read_text().replace("o-2", "two"))

    result = called("replay", BUS, "--edit", str(path))
    none = called("replay", BUS, "--edit", str(path), "--id", "id-1")

    assert result.stderr.splitlines()[-1] == "shop.record.dead: 2 replayed, 1 not meant"
    assert "has none of the events that --id names" in str(none.exception)
    assert left(server) == ["id-1"]
    assert _bodies(server) == [b'{"order_id": "o-0"}', b'{"order_id": "two"}']


def test_export_discard_and_replay_from_the_file(server: EmbeddedBroker, tmp_path: Path) -> None:
    filled(server, 3)
    path, again = tmp_path / "dead.jsonl", tmp_path / "again.jsonl"

    exported = called("export", BUS, "--to", str(path))
    twice = called("export", BUS, "--to", str(path))
    discarded = called("discard", BUS, "--yes", "--export", str(again))
    replayed = called("replay", BUS, "--from", str(path), "--type", "order.*", "--limit", "2")

    assert exported.stderr.splitlines()[-1] == "shop.record.dead: 3 exported"
    assert isinstance(twice.exception, ConfigurationError)
    assert discarded.stderr.splitlines()[-1] == "shop.record.dead: 3 discarded"
    assert [each.body for each in read_lines(path)] == [each.body for each in read_lines(again)]
    assert replayed.stderr.splitlines()[-1] == "shop.record.dead: 2 replayed"
    assert left(server) == []
    assert _bodies(server) == [b'{"order_id": "o-0"}', b'{"order_id": "o-1"}']


def test_a_file_with_a_spoilt_line_is_refused_before_anything_is_sent(server: EmbeddedBroker, tmp_path: Path) -> None:
    filled(server, 3)
    path = tmp_path / "dead.jsonl"
    called("export", BUS, "--to", str(path))
    path.write_bytes(path.read_bytes()[:-20])

    result = called("replay", BUS, "--from", str(path))

    assert isinstance(result.exception, ConfigurationError)
    assert "line 3" in str(result.exception)
    assert asyncio.run(ready(server, QUEUE)) == 0


def test_lines_of_a_queue_that_is_not_meant_are_left_out_and_that_is_said(
    server: EmbeddedBroker, tmp_path: Path
) -> None:
    filled(server, 2)
    path = tmp_path / "dead.jsonl"
    called("export", BUS, "--to", str(path))
    path.write_text(path.read_text().replace('"queue":"shop.record"', '"queue":"admin"', 1))

    result = called("replay", BUS, "--from", str(path))

    assert f"{path} has 1 of queue 'admin.dead', which is not meant: they are left out" in result.stderr
    assert result.exit_code == 1
    assert asyncio.run(ready(server, QUEUE)) == 1


# --- discard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "remaining", "code"), [("y\n", 1, 0), ("n\n", 3, 1), ("\n", 3, 1)])
def test_discard_asks_first(answer: str, remaining: int, code: int, server: EmbeddedBroker) -> None:
    filled(server, 3)

    result = called("discard", BUS, "--limit", "2", answer=answer)

    assert "shop.record.dead: 2 would be discarded" in result.stderr
    assert "Discard them for good?" in result.stderr
    assert (result.exit_code, len(left(server))) == (code, remaining)


def test_discard_that_nobody_can_answer_says_what_to_say(server: EmbeddedBroker) -> None:
    filled(server, 1)

    result = called("discard", BUS)

    assert "say --yes" in str(result.exception)
    assert left(server) == ["id-0"]


def test_discard_asks_nothing_where_nothing_is_meant(server: EmbeddedBroker) -> None:
    filled(server, 1)

    result = called("discard", BUS, "--type", "other")

    assert "?" not in result.stderr
    assert result.exit_code == 0


# --- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say where to look: MODULE:BUS, or --url URL (or AMQP_URL) and --queue NAME"),
        ((BUS, "--url", "amqp://localhost"), "say where to look"),
        (("--url", "amqp://localhost"), "say which queues"),
        ((BUS, "--older-than", "soon"), "'soon' is no age"),
        (
            (BUS, "--queue", "shop.nobody"),
            r"the bus has no queue 'shop.nobody'; its dead letter queues are shop.record",
        ),
        ((BUS, "--queue", "shop.note"), "there is no queue 'shop.note.dead'"),
        (("no_such_module_here:bus",), "there is no module"),
    ],
)
def test_what_is_written_wrong_is_said_in_one_line(arguments: Sequence[str], says: str, server: EmbeddedBroker) -> None:
    filled(server, 1)

    result = called("show", *arguments)

    message = getattr(result.exception, "message", str(result.exception))
    assert says in message
    assert "\n" not in message


def test_a_bus_without_a_command_is_told_which_one_to_begin_with() -> None:
    result = called(BUS)

    assert getattr(result.exception, "message", "") == f"say what to do first: dlq list {BUS}"


def test_edit_and_from_do_not_go_together(server: EmbeddedBroker, tmp_path: Path) -> None:
    result = called("replay", BUS, "--edit", str(tmp_path), "--from", str(tmp_path))

    assert result.exception is not None


def test_a_file_that_is_not_there_is_named(server: EmbeddedBroker, tmp_path: Path) -> None:
    filled(server, 1)
    for option in ("--from", "--edit"):
        result = called("replay", BUS, option, str(tmp_path / "none"))

        assert f"{tmp_path / 'none'} cannot be read: No such file or directory" in str(result.exception)


# --- for programs, and for later ------------------------------------------------------------------------------------


def test_show_as_json_has_everything_of_each(server: EmbeddedBroker) -> None:
    filled(server, 2)

    result = called("show", BUS, "--limit", "2", "--json")

    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["id"], second["id"]) == ("id-0", "id-1")
    assert first["body"] == {"order_id": "o-0"}
    assert (first["error"], first["message"]) == ("tests.deadletters.PaymentError", "no money for o-0")
    assert first["headers"]["origin-exchange"] == ""
    assert (first["dead_queue"], first["queue"], first["attempts"]) == (DEAD, QUEUE, 1)


def test_show_as_json_is_json_whatever_strangers_sent(server: EmbeddedBroker) -> None:
    filled(server, 0)
    properties = Properties(type=HOSTILE[:60], message_id=HOSTILE, headers=HOSTILE_HEADERS)
    asyncio.run(put(server, *(raw(body, queue=DEAD, properties=properties) for body in HOSTILE_BODIES)))

    result = called("show", BUS, "--limit", "100", "--json")

    def no_constant(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    lines = result.stdout.splitlines()
    assert len(lines) == len(HOSTILE_BODIES)
    for line in lines:
        assert line.isascii()
        json.loads(line, parse_constant=no_constant)


def test_delay_lost_is_listed_and_shown_by_its_name(server: EmbeddedBroker) -> None:
    filled(server, 1)
    asyncio.run(put(server, raw(b"{}", queue="delay.lost", properties=Properties(type="a.type", message_id="lost"))))

    listed = called("list", BUS)
    shown = called("show", BUS, "--queue", "delay.lost")
    replayed = called("replay", BUS, "--dry-run")

    assert [row.split()[0] for row in listed.stdout.splitlines()] == ["queue", DEAD, "delay.lost"]
    assert "id lost" in " ".join(shown.stdout.split())
    assert "delay.lost" not in replayed.stderr  # it holds what is of all services: only who names it acts on it


def test_a_replay_waits_until_its_time(server: EmbeddedBroker) -> None:
    filled(server, 1)
    at = datetime.now().astimezone() + timedelta(seconds=1.5)

    result = called("replay", BUS, "--at", at.isoformat())

    assert datetime.now().astimezone() >= at
    assert result.stderr.splitlines()[0].startswith("waiting until 20")
    assert result.stderr.splitlines()[-1] == "shop.record.dead: 1 replayed"


@pytest.mark.parametrize("said", ["soon", "25:00", "2026-13-01T00:00", ""])
def test_a_time_that_is_none_is_refused(said: str, server: EmbeddedBroker) -> None:
    result = called("replay", BUS, "--at", said)

    assert "is no time" in str(result.exception)


@pytest.mark.parametrize("offset", [timedelta(minutes=2), timedelta(hours=-1)])
def test_an_hour_is_the_next_time_that_it_is_so_late(offset: timedelta) -> None:
    now = datetime.now().astimezone()
    wanted = now + offset

    found = begin(f"{wanted:%H:%M}")

    assert found is not None
    assert timedelta(0) < found - now <= timedelta(days=1)
    assert (found.hour, found.minute) == (wanted.hour, wanted.minute)


def test_a_body_without_an_id_is_edited_for_the_letter_that_is_named_by_its_digest(
    server: EmbeddedBroker, tmp_path: Path
) -> None:
    filled(server, 0)
    asyncio.run(put(server, raw(b'{"order_id": "wrong"}', queue=DEAD)))
    path = tmp_path / "dead.jsonl"
    called("export", BUS, "--to", str(path))
    path.write_text(path.read_text().replace("wrong", "right"))

    result = called("replay", BUS, "--edit", str(path))

    assert result.exit_code == 0, result.stderr
    assert _bodies(server) == [b'{"order_id": "right"}']


def test_two_bodies_for_one_letter_are_refused(server: EmbeddedBroker, tmp_path: Path) -> None:
    filled(server, 1)
    path = tmp_path / "dead.jsonl"
    called("export", BUS, "--to", str(path))
    path.write_text(path.read_text() + path.read_text().replace("o-0", "edited"))

    result = called("replay", BUS, "--edit", str(path))

    assert "has two bodies for one letter of order.placed id-0" in str(result.exception)
    assert left(server) == ["id-0"]

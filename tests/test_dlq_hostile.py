"""What strangers can send, on RabbitMQ: it ends among the dead, unharmed and harmless, and can be looked at and moved."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import sys
from pathlib import Path

import msgspec
import pytest

from rabbitevents import Batch, Bus, HeaderValue, Limits, Message, Properties, Router
from rabbitevents_deadletter import DeadLetter, DeadLetterMessage
from tests.bed.rabbitmq import RabbitNode
from tests.deadletters import DEAD, QUEUE, PaymentError, letters, raw, ready, service, until
from tests.shop import Effects, OrderPlaced, eventually
from tests.test_undecodable import READABLE, VARIANTS, taken_by_the_broker

ROOT = Path(__file__).parent.parent
LIMIT = 1_048_576
WIDE = Limits(body=10 * LIMIT, headers=131_000)
ESCAPES = "\x1b[2J\x1b]0;title\x07\u202egnp.exe\u2066\x9b31m\r\x08"

BODIES = {
    "a type that no JSON has": b'{"order_id": 7}',
    "a number of a million digits": b'{"order_id": ' + b"9" * 1_000_000 + b"}",
    "a hundred thousand deep": b"[" * 100_000 + b"]" * 100_000,
    "half of a hundred thousand deep": b"[" * 100_000,
    "not a number": b'{"order_id": NaN}',
    "a lone surrogate": b'{"order_id": "\\ud800"}',
    "NUL": b"\x00" * 1_000,
    "not UTF-8": b'{"order_id": "\xff\xfe"}',
    "nothing": b"",
    "a pickle": b"cos\n_exit\n(I1\ntR.",
    "escape sequences": ESCAPES.encode(),
    "over the limit": b'{"order_id": "' + b"x" * LIMIT + b'"}',
}

HEADERS: dict[str, dict[str, HeaderValue]] = {
    "a count of the broker's": {"x-delivery-count": 999, "x-acquired-count": 999},
    "a death": {
        "x-death": [{"queue": QUEUE, "reason": "expired", "count": 999, "exchange": "", "routing-keys": ["a"]}]
    },
    "attempts": {"attempt": 2**62},
    "labels": {"dead-letter-error": "Forged", "dead-letter-attempts": 99},
    "a delay": {"x-delay": 1},
    "names that are no names": {ESCAPES: ESCAPES, "": "", "a" * 255: 1},
    "60 kB": {"long": "x" * 60_000},
    "65 kB": {"long": "x" * 65_300},
    "a traceparent of 60 kB": {"traceparent": "0" * 60_000},
}

PROPERTIES = {
    "a type like a path": Properties(type="os.system"),
    "a type of escapes": Properties(type=ESCAPES),
    "a user": Properties(type="order.placed", user_id="guest"),
    "an expiration": Properties(type="order.placed", expiration="3600000"),
    "an answer wanted": Properties(type="order.placed", reply_to="admin.queue"),
    "an unknown encoding": Properties(type="order.placed", content_encoding="gzip"),
    "an unknown form": Properties(type="order.placed", content_type="application/x-pickle"),
    "transient": Properties(type="order.placed", delivery_mode=1),
    "an id of escapes": Properties(type="order.placed", message_id=ESCAPES),
}


def messages() -> dict[str, Message]:
    """One message for the handler's queue of each kind; its correlation id names it."""
    good = b'{"order_id": "hostile"}'
    found = {name: (body, Properties(type="order.placed")) for name, body in BODIES.items()}
    found |= {name: (good, Properties(type="order.placed", headers=headers)) for name, headers in HEADERS.items()}
    found |= {name: (good, properties) for name, properties in PROPERTIES.items()}
    return {
        name: raw(body, properties=msgspec.structs.replace(properties, correlation_id=name))
        for name, (body, properties) in found.items()
    }


def picky(effects: Effects) -> Router:
    """A router whose handler takes good orders and no others."""
    router = Router("shop")

    @router.on(OrderPlaced, concurrency=5, prefetch=20)
    async def record(order: OrderPlaced) -> None:
        if not order.order_id.startswith("good"):
            raise PaymentError(ESCAPES)
        effects.done[order.order_id] += 1

    return router


@pytest.fixture
async def dead(rabbit_url: str) -> tuple[str, int]:
    """The URL of a broker to which everything hostile was sent, among good events, and how much of it there is."""
    effects = Effects()
    frames = 0
    async with service(rabbit_url, picky(effects)) as bus, Bus(rabbit_url, declare="none", limits=WIDE) as sender:
        for number, message in enumerate(messages().values()):
            await sender.send(message)
            await bus.publish(OrderPlaced(f"good {number}"))
        for variant in VARIANTS:
            if variant not in READABLE:
                frames += await taken_by_the_broker(rabbit_url, VARIANTS[variant])
        await bus.publish(OrderPlaced("good at last"))
        await until(bus, len(messages()) + frames)
        await effects.until(len(messages()) + 1)
        assert bus.load[QUEUE].held == 0
        assert [check for check in bus.health().checks if not check.ok] == []
    assert set(effects.done.values()) == {1}
    assert await ready(rabbit_url, QUEUE) == 0
    return rabbit_url, len(messages()) + frames


async def everything(url: str, queue: str = DEAD) -> list[DeadLetterMessage]:
    """All that a queue holds, whole."""
    async with Bus(url, declare="none", limits=WIDE) as bus, bus.browse(queue) as look:
        return [DeadLetterMessage.of(delivery) async for delivery in look]


def named(found: list[DeadLetterMessage]) -> dict[str, DeadLetterMessage]:
    """Those that have a name, by it; the others came as frames."""
    readable = [each for each in found if not each.unreadable]
    return {name: each for each in readable if (name := each.delivery.properties.correlation_id) is not None}


def bodies(found: list[DeadLetterMessage]) -> dict[str, bytes]:
    """The bodies of those that have a name."""
    return {name: each.body for name, each in named(found).items()}


async def test_whatever_was_sent_ends_among_the_dead_unharmed(dead: tuple[str, int]) -> None:
    url, number = dead

    found = await everything(url)

    assert len(found) == number
    assert bodies(found) == {name: message.body for name, message in messages().items()}
    by_name = named(found)
    assert {name for name, each in by_name.items() if each.reason != "failed"} == {"over the limit", "65 kB"}
    assert all(each.reason == "rejected" for each in found if each.unreadable)
    for name, headers in HEADERS.items():
        kept = {n: v for n, v in headers.items() if not n.startswith(("x-", "dead-letter-", "attempt"))}
        assert {n: by_name[name].headers[n] for n in kept} == kept
    assert by_name["labels"].error == "tests.deadletters.PaymentError"
    assert by_name["a count of the broker's"].attempts == 1
    assert all(each.delivery.properties.delivery_mode == 2 for each in by_name.values() if each.reason == "failed")
    assert by_name["an expiration"].delivery.properties.expiration is None


async def run_dlq(*arguments: str) -> tuple[int, str]:
    """Call `rabbitevents dlq` with a terminal for its output; return its exit code and what it wrote there."""
    terminal, end = pty.openpty()
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rabbitevents", "dlq", *arguments),
        env={**os.environ, "PYTHONPATH": path, "TERM": "xterm-256color", "COLUMNS": "100"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=end,
        stderr=end,
    )
    os.close(end)
    written = asyncio.ensure_future(asyncio.to_thread(_read_all, terminal))
    code = await process.wait()
    return code, (await written).decode()


def _read_all(terminal: int) -> bytes:
    """Read what is written to a terminal until nobody can write there any more."""
    pieces: list[bytes] = []
    with open(terminal, "rb", buffering=0) as file:
        try:
            while piece := file.read(65_536):
                pieces.append(piece)
        except OSError:  # EIO is a terminal's end
            pass
    return b"".join(pieces)


STYLES = re.compile(r"\x1b\[[0-9;]*m")
"""What colours a text, and nothing else."""


async def test_show_and_list_write_nothing_to_the_terminal_that_could_harm_it(dead: tuple[str, int]) -> None:
    url, number = dead
    where = ("--url", url, "--queue", QUEUE)

    shown_code, shown = await run_dlq("show", *where, "--limit", "100")
    listed_code, listed = await run_dlq("list", *where)

    assert (shown_code, listed_code) == (0, 0)
    for written in (shown, listed):
        assert STYLES.search(written), "this is a terminal, and it has colours"
        assert STYLES.sub("", written).replace("\r\n", "").isprintable()
    assert STYLES.sub("", shown).count("failed at ") == number
    assert "\\x1b[2J\\x1b]0;title" in shown
    assert "properties (" in shown
    assert "unknown field type" in shown or "nest deeper" in shown


async def test_everything_is_the_same_after_export_discard_and_replay(dead: tuple[str, int], tmp_path: Path) -> None:
    url, number = dead
    where, path = ("--url", url, "--queue", DEAD), tmp_path / "dead.jsonl"
    before = await everything(url)
    unreadable = sum(bool(each.unreadable) for each in before)

    exported, _ = await run_dlq("export", *where, "--to", str(path))
    discarded, said = await run_dlq("discard", *where, "--yes")
    none = await ready(url)
    replayed, told = await run_dlq("replay", *where, "--from", str(path))

    assert (exported, discarded, none) == (0, 0, 0)
    assert f"{number} discarded" in said
    assert replayed == (1 if unreadable else 0)
    assert f"{number - unreadable} replayed" in told
    assert told.count("stays where it is") == unreadable
    after = await everything(url, QUEUE)
    assert bodies(after) == bodies(before)
    assert all(each.delivery.attempt == 1 for each in after)
    assert not any(name.startswith("dead-letter-") for each in after for name in each.headers)


async def test_a_copy_is_not_routed_by_headers_of_its_first_journey(rabbit_url: str, rabbit_node: RabbitNode) -> None:
    effects = Effects()
    admin = Router("admin")
    admin.on("nothing", name="queue")(_nothing)
    async with Bus(rabbit_url, admin) as bus:
        await bus.pause("admin.queue")
        async with service(rabbit_url, picky(effects)):
            headers: dict[str, HeaderValue] = {"CC": ["admin.queue"], "BCC": ["admin.queue"]}
            given = Properties(type="order.placed", headers=headers, reply_to="admin.queue")
            await bus.send(raw(b'{"order_id": "bad"}', properties=given))
            await until(bus, 1)
        first = await ready(rabbit_url, "admin.queue")
        code, _ = await run_dlq("replay", "--url", rabbit_url, "--queue", QUEUE)
        second = await ready(rabbit_url, "admin.queue")

    assert first == second == 1  # where the publisher itself sent it, and the broker took it
    assert code == 0
    assert await ready(rabbit_url, QUEUE) == 1


async def _nothing() -> None:
    """Handle nothing."""


def failing() -> Router:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        raise PaymentError

    return router


def failing_together() -> Router:
    router = Router("shop")

    @router.on(OrderPlaced, batch=Batch(size=5, within=0.1))
    async def record(orders: list[OrderPlaced]) -> None:
        raise PaymentError

    return router


@pytest.mark.parametrize("router", [failing(), failing_together()], ids=["single", "batch"])
async def test_a_dead_letter_queue_that_is_gone_is_declared_again_by_what_dies(
    router: Router, rabbit_url: str, rabbit_node: RabbitNode
) -> None:
    async with service(rabbit_url, router) as bus:
        await rabbit_node.adelete_queue(DEAD, rabbit_url)
        await bus.publish_many([OrderPlaced(f"o-{number}") for number in range(5)])
        await until(bus, 5)

    assert {each.error for each in await letters(rabbit_url)} == {"tests.deadletters.PaymentError"}
    assert await ready(rabbit_url, QUEUE) == 0


async def test_a_dead_letter_queue_that_is_not_ours_to_declare_keeps_its_events_until_it_is_there_again(
    rabbit_url: str, rabbit_node: RabbitNode
) -> None:
    ran: list[str] = []
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        ran.append(order.order_id)
        raise PaymentError

    async with Bus(rabbit_url, picky(Effects()), name="declares") as other:
        await other.pause(QUEUE)
        async with Bus(rabbit_url, router, plugins=[DeadLetter()], declare="passive") as bus:
            await rabbit_node.adelete_queue(DEAD, rabbit_url)
            await bus.publish(OrderPlaced("o"))
            await eventually(lambda: bus.load[QUEUE].held == 1, "it to be held")
            async with Bus(rabbit_url, picky(Effects()), name="declares again") as again:
                await again.pause(QUEUE)
                await until(bus, 1)
                await eventually(lambda: bus.load[QUEUE].held == 0, "its settlement")

    assert ran == ["o"]
    assert [each.error for each in await letters(rabbit_url)] == ["tests.deadletters.PaymentError"]
    assert await ready(rabbit_url, QUEUE) == 0


async def test_with_a_url_a_queue_is_found_by_its_name_and_by_that_of_its_dead_letters(rabbit_url: str) -> None:
    async with service(rabbit_url, picky(Effects())) as bus:
        await bus.publish(OrderPlaced("bad"))
        await until(bus, 1)

    for name in (QUEUE, DEAD):
        code, said = await run_dlq("list", "--url", rabbit_url, "--queue", name)
        assert code == 0
        assert DEAD in said
    code, said = await run_dlq("list", "--url", rabbit_url, "--queue", "shop.nobody")
    assert code == 2
    assert "there is no queue 'shop.nobody.dead'" in said
    assert "guest:guest" not in said

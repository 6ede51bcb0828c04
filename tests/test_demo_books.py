"""What the demonstration counts with: orders, journals, the ledger, the tally."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Router
from rabbitevents.demo.journal import Journal
from rabbitevents.demo.ledger import GivenUp, Handled, Ledger, Published, Record, Retried
from rabbitevents.demo.orders import SAMPLE, BadLine, Order, make_orders, poisoned, read_orders
from rabbitevents.demo.recorder import Recorder
from rabbitevents.demo.services import listeners
from rabbitevents.demo.shop.events import OrderConfirmed, PaymentProcessed
from rabbitevents.demo.tally import Tally
from rabbitevents.testing import running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry

# --- orders --------------------------------------------------------------------------------------------------------

GOOD = b'{"order_id": "1", "customer": "c", "sku": "mug", "quantity": 2, "price": "8.50"}\n'


def good(order_id: str) -> bytes:
    return GOOD.replace(b'"1"', json.dumps(order_id).encode())


def test_a_line_is_an_order() -> None:
    assert list(read_orders([GOOD])) == [Order("1", "c", "mug", 2, Decimal("8.50"))]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"no json\n", "malformed"),
        (b"\xff\xfe\n", "malformed"),
        (b"[]\n", "Expected `object`"),
        (b'{"x": ' + b"[" * 1_000_000, "while deserializing"),
        (GOOD.replace(b"sku", b"sqo"), "missing required field `sku`"),
        (GOOD.replace(b" 2,", b" 0,"), "`$.quantity`"),
        (GOOD.replace(b" 2,", b' "2",'), "`$.quantity`"),
        (GOOD.replace(b'"8.50"', b'"dear"'), "`$.price`"),
        (GOOD.replace(b'"8.50"', b'"NaN"'), "a price goes from"),
        (GOOD.replace(b'"8.50"', b'"-1"'), "a price goes from"),
        (GOOD.replace(b'"8.50"', b'"1e9999999"'), "a price goes from"),
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


def test_a_poisoned_order_is_one_of_those_that_are_placed() -> None:
    orders = list(make_orders(5, seed=1))

    assert [order.quantity for order in poisoned(orders)].count(0) == 1
    assert [order.order_id for order in poisoned(orders)] == [order.order_id for order in orders]
    assert poisoned([]) == []


# --- journals ------------------------------------------------------------------------------------------------------


def test_a_journal_that_is_opened_again_knows_what_it_knew(tmp_path: Path) -> None:
    before = Journal(tmp_path / "folder" / "prices.jsonl", Decimal)
    before["mug"] = Decimal("8.50")
    before["tray\n"] = Decimal(15)
    before["mug"] = Decimal("9.00")

    after = Journal(tmp_path / "folder" / "prices.jsonl", Decimal)

    assert dict(after) == {"mug": Decimal("9.00"), "tray\n": Decimal(15)}


def test_a_journal_keeps_the_first_word(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "words.jsonl", str)

    kept = [journal.keep("order", "confirmed"), journal.keep("order", "cancelled")]

    assert kept == ["confirmed", "confirmed"]
    assert dict(Journal(tmp_path / "words.jsonl", str)) == {"order": "confirmed"}


@given(cut=st.integers(min_value=0, max_value=40))
def test_a_line_that_a_killed_process_did_not_finish_is_as_if_it_had_not_begun(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "words.jsonl"
    Journal(path, str)["first"] = "finished"
    finished = path.stat().st_size
    Journal(path, str)["second"] = "not finished, for the process was killed"
    os.truncate(path, min(finished + cut, path.stat().st_size - 1))

    journal = Journal(path, str)
    journal["third"] = "finished"

    assert dict(Journal(path, str)) == {"first": "finished", "third": "finished"}


# --- the ledger ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[Ledger]:
    ledger = Ledger(path)
    try:
        yield ledger
    finally:
        await ledger.close()


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncGenerator[Ledger]:
    async with opened(tmp_path / "shop.ledger") as ledger:
        yield ledger


def written(folder: Path) -> list[Record]:
    decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
    return [decoder.decode(line) for line in (folder / "shop.ledger").read_bytes().splitlines()]


def effect(number: int, queue: str = "shop.inventory.reserve") -> Handled:
    return Handled("inventory", queue, f"event-{number}", "root")


def publication(event: str, type: str = "order.placed", *, cause: str = "", root: str = "") -> Published:
    return Published("order", event, type, cause, root or event, "1", "2026-01-01T00:00:00+00:00")


class Fsync:
    """Stands before `os.fsync`: counts, can be held up, and can fail."""

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


async def test_a_record_returns_only_after_its_fsync(ledger: Ledger, fsync: Fsync, tmp_path: Path) -> None:
    fsync.open.clear()

    recording = asyncio.ensure_future(ledger.record(effect(1)))
    done_early, _ = await asyncio.wait({recording}, timeout=0.1)
    fsync.open.set()
    await recording

    assert not done_early
    assert written(tmp_path) == [effect(1)]


async def test_records_that_arrive_while_one_is_written_share_the_next_fsync(
    ledger: Ledger, fsync: Fsync, tmp_path: Path
) -> None:
    await asyncio.gather(*(ledger.record(effect(number)) for number in range(100)))

    assert fsync.calls <= 2
    assert written(tmp_path) == [effect(number) for number in range(100)]


async def test_what_is_noted_is_on_the_disk_before_what_is_recorded_later(ledger: Ledger, tmp_path: Path) -> None:
    ledger.note(publication("a"))
    await ledger.record(effect(1))

    assert written(tmp_path) == [publication("a"), effect(1)]


async def test_what_is_noted_last_is_on_the_disk_when_the_ledger_is_closed(tmp_path: Path) -> None:
    async with opened(tmp_path / "shop.ledger") as ledger:
        ledger.note(publication("a"))

    assert written(tmp_path) == [publication("a")]


async def test_a_record_that_cannot_be_written_raises_and_leaves_no_trace(
    ledger: Ledger, fsync: Fsync, tmp_path: Path
) -> None:
    await ledger.record(effect(1))
    fsync.fails = True
    with pytest.raises(OSError, match="No space left"):
        await ledger.record(effect(2))
    fsync.fails = False
    await ledger.record(effect(3))

    assert written(tmp_path) == [effect(1), effect(3)]


async def test_what_is_noted_survives_a_disk_that_was_full(ledger: Ledger, fsync: Fsync, tmp_path: Path) -> None:
    fsync.fails = True
    ledger.note(publication("a"))
    with pytest.raises(OSError, match="No space left"):
        await ledger.record(effect(1))
    fsync.fails = False
    await ledger.record(effect(2))

    assert written(tmp_path) == [publication("a"), effect(2)]


async def test_a_ledger_that_cannot_be_finished_says_so(tmp_path: Path, fsync: Fsync) -> None:
    ledger = Ledger(tmp_path / "shop.ledger")
    fsync.fails = True
    ledger.note(publication("a"))

    with pytest.raises(OSError, match="No space left"):
        await ledger.close()


async def test_a_handler_that_is_cancelled_harms_no_other(ledger: Ledger, fsync: Fsync, tmp_path: Path) -> None:
    fsync.open.clear()
    cancelled = asyncio.ensure_future(ledger.record(effect(1)))
    other = asyncio.ensure_future(ledger.record(effect(2)))
    await asyncio.sleep(0)

    cancelled.cancel()
    fsync.open.set()
    await other

    assert cancelled.cancelled()
    assert effect(2) in written(tmp_path)


# --- the recorder --------------------------------------------------------------------------------------------------


async def test_an_event_is_acknowledged_after_its_effect_is_on_the_disk(
    ledger: Ledger, fsync: Fsync, tmp_path: Path
) -> None:
    router = Router("shop.order")

    @router.on(PaymentProcessed)
    async def confirm(payment: PaymentProcessed) -> OrderConfirmed:
        return OrderConfirmed(payment.order_id, payment.customer, payment.total)

    async with running(Bus("amqp://localhost", router, plugins=[Recorder("order", ledger)])) as probe:
        fsync.open.clear()
        paid = await probe.bus.publish(PaymentProcessed("1", "c", Decimal(5)))
        with pytest.raises(TimeoutError, match=r"1 in shop\.order\.confirm"):
            await probe.settled(timeout=0.2)
        fsync.open.set()
        await probe.settled()
    root, confirmed, effect = written(tmp_path)
    assert isinstance(root, Published)
    assert isinstance(confirmed, Published)
    assert (root.event, root.cause, root.root, root.about) == (str(paid.id), "", str(paid.id), "1")
    assert (confirmed.type, confirmed.cause, confirmed.root) == ("order.confirmed", root.event, root.event)
    assert datetime.fromisoformat(root.at) == paid.timestamp
    assert effect == Handled("order", "shop.order.confirm", root.event, root.event)


async def test_a_handler_that_fails_has_no_effect(ledger: Ledger, tmp_path: Path) -> None:
    router = Router("shop.order")

    @router.on(PaymentProcessed)
    async def confirm(payment: PaymentProcessed) -> None:
        raise ValueError("not today")

    async with running(Bus("amqp://localhost", router, plugins=[Recorder("order", ledger)])) as probe:
        await probe.bus.publish(PaymentProcessed("1", "c", Decimal(5)))
        await probe.settled()

    assert not [record for record in written(tmp_path) if isinstance(record, Handled)]


async def test_what_is_tried_again_and_what_is_given_up_on_is_noted(ledger: Ledger, tmp_path: Path) -> None:
    router = Router("shop.order")

    @router.on(PaymentProcessed)
    async def confirm(payment: PaymentProcessed) -> None:
        raise ValueError("not today")

    retry = Retry(stop=stop_after_attempt(2), wait=wait_fixed(0.01))
    plugins = [DeadLetter(), retry, Recorder("order", ledger)]
    async with running(Bus("amqp://localhost", router, plugins=plugins)) as probe:
        paid = await probe.bus.publish(PaymentProcessed("1", "c", Decimal(5)))
        await probe.settled()
    await ledger.close()
    _, retried, given_up = written(tmp_path)

    assert isinstance(retried, Retried)
    assert isinstance(given_up, GivenUp)
    assert {(each.service, each.queue, each.event, each.error) for each in (retried, given_up)} == {
        ("order", "shop.order.confirm", str(paid.id), "ValueError")
    }
    assert (retried.attempt, retried.after, retried.inline, given_up.attempts) == (1, 0.01, True, 2)
    assert paid.timestamp < datetime.fromisoformat(retried.at) < datetime.fromisoformat(given_up.at)


# --- the tally -----------------------------------------------------------------------------------------------------


def tallied(folder: Path, *records: Record) -> Tally:
    """Return what is counted when ``records`` are written to two ledgers in turn, and read after each."""
    tally = Tally(folder, listeners)
    for number, record in enumerate(records):
        with (folder / f"{number % 2}.ledger").open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")
        assert tally.read()
    assert not tally.read()
    return tally


RESERVE, COUNT = "shop.inventory.reserve", "shop.analytics.count"


def handled(event: str, queue: str, root: str = "a") -> Handled:
    return Handled(queue.split(".")[1], queue, event, root)


def test_each_queue_that_listens_to_an_event_must_have_its_effect(tmp_path: Path) -> None:
    tally = tallied(tmp_path, publication("a"), handled("a", COUNT))

    assert tally.missing == {(RESERVE, "a")}
    assert tally.effects == {"analytics": 1}


def test_an_effect_that_is_there_twice_is_a_duplicate(tmp_path: Path) -> None:
    tally = tallied(tmp_path, publication("a"), handled("a", COUNT), handled("a", RESERVE), handled("a", COUNT))

    assert not tally.missing
    assert tally.duplicates == 1
    assert tally.handled == {"analytics": 2, "inventory": 1}
    assert tally.effects == {"analytics": 1, "inventory": 1}


def test_an_effect_may_be_known_before_its_event(tmp_path: Path) -> None:
    tally = tallied(tmp_path, handled("a", COUNT), handled("a", RESERVE), publication("a"))

    assert not tally.missing
    assert tally.effects.total() == 2


def test_an_effect_may_be_known_before_its_event_in_the_middle_of_a_story(tmp_path: Path) -> None:
    reserved = publication("b", "inventory.reserved", cause="a", root="a")

    tally = tallied(tmp_path, publication("a"), handled("b", "shop.payment.charge"), reserved)

    assert tally.missing == {(RESERVE, "a"), (COUNT, "a")}


def test_an_event_that_is_published_again_counts_once(tmp_path: Path) -> None:
    again = publication("b", "inventory.reserved", cause="a", root="a")

    tally = tallied(tmp_path, publication("a"), again, again)

    assert tally.published == {("order", "order.placed"): 1, ("order", "inventory.reserved"): 1}


def test_what_another_run_has_left_on_the_broker_is_not_counted(tmp_path: Path) -> None:
    left = publication("z", "inventory.reserved", cause="y", root="y")

    tally = tallied(tmp_path, left, handled("y", RESERVE, root="y"))

    assert not tally.missing
    assert (tally.published.total(), tally.effects.total()) == (0, 0)


TIMEOUT = Published("payment", "t", "shop.payment.timed-out", "b", "a", "1", "2026-01-01T00:00:10+00:00", timeout=True)


@pytest.mark.parametrize("end", ["payment.processed", "payment.declined", "payment.overdue"])
def test_a_payment_is_unsettled_from_its_timeout_on_until_it_ends(tmp_path: Path, end: str) -> None:
    tally = tallied(tmp_path, publication("a"), TIMEOUT)
    waiting, due = dict(tally.unsettled), tally.due

    with (tmp_path / "0.ledger").open("ab") as file:
        file.write(msgspec.json.encode(publication("c", end, cause="b", root="a")) + b"\n")
    tally.read()

    assert waiting == {"1": due}
    assert due == datetime.fromisoformat(TIMEOUT.at).timestamp()
    assert (tally.unsettled, tally.due) == ({}, 0.0)


def test_an_end_may_be_known_before_what_it_ends(tmp_path: Path) -> None:
    tally = tallied(tmp_path, publication("a"), publication("c", "payment.processed", cause="b", root="a"), TIMEOUT)

    assert tally.unsettled == {}


def test_a_timeout_is_neither_published_nor_handled(tmp_path: Path) -> None:
    came = handled("t", "shop.payment.events")

    tally = tallied(tmp_path, publication("a"), TIMEOUT, came, came)

    assert tally.published == {("order", "order.placed"): 1}
    assert (tally.handled.total(), tally.effects.total(), tally.duplicates) == (0, 0, 0)
    assert tally.sizes == {"a": 1}


def test_a_timeout_of_another_run_is_waited_for_by_nobody(tmp_path: Path) -> None:
    tally = tallied(tmp_path, TIMEOUT)

    assert tally.unsettled == {}


def test_a_line_that_is_being_written_is_read_when_it_is_finished(tmp_path: Path) -> None:
    tally = Tally(tmp_path, listeners)
    line = msgspec.json.encode(publication("a")) + b"\n"
    with (tmp_path / "shop.ledger").open("ab", buffering=0) as file:
        file.write(line[:20])
        assert not tally.read()
        file.write(line[20:])
        assert tally.read()

    assert list(tally.sizes) == ["a"]


def retried(event: str, *, after: float = 0.1, inline: bool = True, queue: str = RESERVE) -> Retried:
    return Retried("inventory", queue, event, "2026-01-01T00:00:01+00:00", 1, "ValueError", after, inline)


def given_up(event: str, queue: str = RESERVE) -> GivenUp:
    return GivenUp("inventory", queue, event, "2026-01-01T00:00:02+00:00", 2, "ValueError")


def test_what_is_given_up_on_is_not_awaited_and_lost_unless_it_is_among_the_dead_letters(tmp_path: Path) -> None:
    tally = tallied(tmp_path, publication("a"), handled("a", COUNT), given_up("a"))
    before = tally.awaited, tally.lost, tally.dead_orders

    tally.bury({(RESERVE, "a"): "ValueError", (RESERVE, "of another run"): "ValueError"})

    assert before == (set(), {(RESERVE, "a")}, set())
    assert (tally.awaited, tally.lost, tally.dead_orders) == (set(), set(), {"a"})
    assert len(tally.dead) == 1


def test_a_dead_letter_of_an_order_that_is_closed_is_no_dead_order(tmp_path: Path) -> None:
    confirmed = publication("b", "order.confirmed", cause="a", root="a")
    tally = tallied(
        tmp_path, publication("a"), handled("a", RESERVE), confirmed, given_up("b", "shop.notification.tell")
    )

    tally.bury({("shop.notification.tell", "b"): "ValueError"})

    assert tally.dead_orders == set()
    assert tally.lost == {(COUNT, "a"), (COUNT, "b")}


def test_a_dead_letter_whose_event_was_handled_after_all_is_no_dead_order(tmp_path: Path) -> None:
    tally = tallied(tmp_path, publication("a"), given_up("a"), handled("a", RESERVE), handled("a", COUNT))

    tally.bury({(RESERVE, "a"): "ValueError"})

    assert tally.dead_orders == set()


def test_retries_are_counted_whether_they_are_known_before_their_event_or_after(tmp_path: Path) -> None:
    reserved = publication("b", "inventory.reserved", cause="a", root="a")

    tally = tallied(tmp_path, retried("b"), retried("a"), publication("a"), reserved, retried("b"), retried("other"))

    assert tally.retried == {"inventory": 3}
    assert [each.event for each in tally.troubles["a"]].count("b") == 2


def test_an_event_that_waits_for_its_next_attempt_is_due_when_that_comes(tmp_path: Path) -> None:
    tally = tallied(tmp_path, publication("a"), retried("a", after=60), retried("a", after=1))

    assert tally.due == datetime.fromisoformat("2026-01-01T00:01:01+00:00").timestamp()


def test_an_order_that_came_back_from_the_broker_and_was_closed_has_most_to_tell(tmp_path: Path) -> None:
    def cascade(root: str, *types: str) -> list[Record]:
        return [publication(root), *(publication(f"{root}-{type}", type, cause=root, root=root) for type in types)]

    long = cascade("a", "inventory.reserved", "payment.processed", "order.confirmed")
    dead: list[Record] = [*cascade("b"), retried("b"), retried("b", inline=False), given_up("b")]
    inline: list[Record] = [*cascade("c", "order.confirmed"), retried("c")]
    waited: list[Record] = [*cascade("d", "order.confirmed"), retried("d", inline=False)]

    def told(*stories: list[Record]) -> str:
        folder = tmp_path / str(len(stories))
        folder.mkdir()
        return tallied(folder, *(record for story in stories for record in story)).most_telling

    assert told() == ""
    assert told(long) == "a"
    assert told(long, inline) == "c"
    assert told(long, inline, dead) == "b"
    assert told(long, inline, dead, waited) == "d"


def test_a_story_is_told_in_the_order_in_which_it_happened_and_each_event_once(tmp_path: Path) -> None:
    reserved = msgspec.structs.replace(
        publication("b", "inventory.reserved", cause="a", root="a"), at="2026-01-01T00:00:03+00:00"
    )
    records: list[Record] = [
        reserved,
        given_up("a"),
        publication("a"),
        reserved,
        handled("a", RESERVE),
        retried("a"),
        publication("z"),
    ]

    story = tallied(tmp_path, *records).story("a")

    assert story == [publication("a"), retried("a"), given_up("a"), reserved]

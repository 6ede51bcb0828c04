"""The DeadLetter plugin on the embedded broker: what is given up on is in its queue, labelled, and nothing else is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from tenacity import retry_if_exception_type, stop_after_attempt, wait_fixed, wait_none

from rabbitevents import (
    Bus,
    Delivery,
    Event,
    Fact,
    HeaderValue,
    Limits,
    Message,
    Outcome,
    Plugin,
    Properties,
    Publish,
    Router,
    Settlement,
    facts,
)
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents_deadletter import DeadLetter, EventProcessingFailed
from rabbitevents_deadletter.labels import LABELS
from rabbitevents_retry import Retry
from tests.deadletters import DEAD, QUEUE, PaymentError, failing, letters, raw, shop
from tests.shop import OrderPlaced, eventually


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NotAnException(BaseException):
    """What test libraries raise."""


class Noted(Plugin):
    """Notes every fact."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)


async def after(router: Router, plugin: DeadLetter | None = None, *published: OrderPlaced) -> EmbeddedBroker:
    """Run a service until all that was published has failed; return the broker with what is left."""
    server = EmbeddedBroker()
    async with running(Bus("memory://", router, plugins=[plugin or DeadLetter()]), broker=server) as probe:
        for each in published or (OrderPlaced("o-1"),):
            await probe.bus.publish(each)
        await probe.settled()
    return server


# --- what a dead letter is -----------------------------------------------------------------------------------------


async def test_a_failed_event_is_kept_byte_for_byte_with_its_headers_and_the_reasons() -> None:
    server = EmbeddedBroker()
    bus = Bus("memory://", failing(), plugins=[DeadLetter()])
    before = datetime.now(UTC) - timedelta(seconds=1)

    async with running(bus, broker=server) as probe:
        sent = await probe.bus.publish(OrderPlaced("o-1"), metadata={"tenant": "blue"})
        await probe.settled()
        published = probe.messages[0]
    [letter] = await letters(server)

    assert letter.body == published.body
    assert {name: letter.headers[name] for name in published.headers} == published.headers
    assert letter.headers["meta-tenant"] == "blue"
    assert (letter.id, letter.type, letter.queue) == (str(sent.id), "order.placed", QUEUE)
    assert (letter.reason, letter.error) == ("failed", "tests.deadletters.PaymentError")
    assert (letter.message, letter.attempts) == ("no money for o-1", 1)
    assert (letter.exchange, letter.routing_key) == ("events", "order.placed")
    assert letter.handler == "tests.deadletters.failing.<locals>.record"
    assert letter.host
    assert letter.failed_at is not None
    assert before < letter.failed_at < datetime.now(UTC) + timedelta(seconds=1)
    assert server.queues[QUEUE].ready == server.queues[QUEUE].unsettled == 0


async def test_the_traceback_leads_to_the_handler_and_leaves_out_the_library_and_the_text() -> None:
    async def record(order: OrderPlaced) -> None:
        try:
            raise KeyError("marker-in-the-cause")
        except KeyError as error:
            raise PaymentError("marker-in-the-text") from error

    [letter] = await letters(await after(shop(record)))

    assert letter.traceback.startswith('  File "tests/test_deadletter.py", line ')
    assert "in record\n" in letter.traceback
    assert "\ntests.deadletters.PaymentError\ncaused by\n" in letter.traceback
    assert letter.traceback.endswith("\nKeyError")
    assert "handling.py" not in letter.traceback
    assert "PaymentError: " not in letter.traceback


async def test_a_long_traceback_keeps_its_end_and_a_long_text_its_beginning() -> None:
    def deeper(number: int) -> None:
        if number == 0:
            raise PaymentError("é" * 10_000)
        deeper(number - 1)

    async def record(order: OrderPlaced) -> None:
        deeper(500)

    [letter] = await letters(await after(shop(record)))

    assert len(letter.message.encode()) <= 2_048
    assert letter.message.startswith("éé")
    assert letter.message.endswith("...")
    assert len(letter.traceback.encode()) <= 8_192
    assert letter.traceback.endswith("PaymentError")
    assert letter.traceback.count("in deeper") < 20


async def test_texts_and_places_can_be_left_out_of_headers_and_log(caplog: pytest.LogCaptureFixture) -> None:
    router = failing(PaymentError("marker-4711"))

    with caplog.at_level(logging.DEBUG):
        server = await after(router, DeadLetter(message=False, traceback=False))
    [letter] = await letters(server)

    assert "dead-letter-message" not in letter.headers
    assert "dead-letter-traceback" not in letter.headers
    assert letter.error == "tests.deadletters.PaymentError"
    assert not any("marker-4711" in str(value) for value in letter.headers.values())
    assert "marker-4711" not in caplog.text
    [record] = [each for each in caplog.records if each.name == "rabbitevents.deadletter"]
    assert record.__dict__["event_id"] == letter.id
    assert record.__dict__["subscription"] == QUEUE
    assert record.__dict__["attempt"] == 1
    assert "was given up on after 1 attempt, because of tests.deadletters.PaymentError" in caplog.text


FAILURES: dict[str, tuple[BaseException, str]] = {
    "an exception without a text": (ValueError(), "ValueError"),
    "one that cannot say its text": (UnspeakableError(), "tests.test_deadletter.UnspeakableError"),
    "halves of surrogate pairs": (ValueError("\ud800 and \udcff"), "ValueError"),
    "a CancelledError that nobody asked for": (asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
    "a group with a CancelledError": (
        BaseExceptionGroup("both", [asyncio.CancelledError(), ValueError()]),
        "BaseExceptionGroup",
    ),
    "what is no Exception": (NotAnException(), "tests.test_deadletter.NotAnException"),
    "one that causes itself": (ValueError("a loop"), "ValueError"),
}


@pytest.mark.parametrize("what", FAILURES)
async def test_whatever_comes_out_of_a_handler_is_dead_lettered(what: str) -> None:
    error, name = FAILURES[what]
    if what == "one that causes itself":
        error.__cause__ = error

    [letter] = await letters(await after(failing(error)))

    assert letter.error == name
    assert letter.traceback


BODIES = {
    "no JSON": b"{",
    "another type": b'{"order_id": 7}',
    "nothing": b"",
    "not UTF-8": b'{"order_id": "\xff"}',
    "a lone surrogate": b'{"order_id": "\\ud800"}',
    "not a number": b'{"order_id": NaN}',
    "a number of a million digits": b'{"order_id": ' + b"9" * 1_000_000 + b"}",
    "a hundred thousand deep": b"[" * 100_000 + b"]" * 100_000,
    "NUL": b"\x00" * 1000,
}


@pytest.mark.parametrize("what", BODIES)
async def test_a_body_that_cannot_be_decoded_is_dead_lettered_at_once_and_as_it_came(what: str) -> None:
    server = EmbeddedBroker()
    bus = Bus("memory://", failing(), plugins=[DeadLetter(), Retry(stop=stop_after_attempt(3), wait=wait_none())])
    async with running(bus, broker=server) as probe:
        await probe.bus.send(raw(BODIES[what]))
        await probe.settled()

    [letter] = await letters(server)

    assert letter.error == "rabbitevents.DecodeError"
    assert letter.body == BODIES[what]
    assert letter.attempts == 1


async def test_a_type_that_no_handler_is_for_is_dead_lettered() -> None:
    server = EmbeddedBroker()
    async with running(Bus("memory://", failing(), plugins=[DeadLetter()]), broker=server) as probe:
        await probe.bus.send(raw(b"{}", properties=Properties(type="os.system", message_id="not-a-uuid")))
        await probe.settled()

    [letter] = await letters(server)

    assert (letter.id, letter.type, letter.error) == ("not-a-uuid", "os.system", "rabbitevents.DecodeError")


async def test_labels_that_an_event_brings_along_are_taken_off() -> None:
    forged: dict[str, HeaderValue] = dict.fromkeys(LABELS, "forged")
    server = EmbeddedBroker()
    bus = Bus("memory://", failing(), plugins=[DeadLetter(message=False, traceback=False)])
    async with running(bus, broker=server) as probe:
        properties = Properties(type="order.placed", headers={**forged, "kept": "yes"})
        await probe.bus.send(raw(b'{"order_id": "o"}', properties=properties))
        await probe.settled()

    [letter] = await letters(server)

    assert "forged" not in letter.headers.values()
    assert letter.headers["kept"] == "yes"


@pytest.mark.parametrize(
    ("size", "with_traceback", "with_message"), [(60_000, True, True), (62_600, False, True), (64_500, False, False)]
)
async def test_labels_that_do_not_fit_beside_the_headers_are_left_off(
    size: int, with_traceback: bool, with_message: bool
) -> None:
    error = ValueError("m" * 5_000)
    error.__cause__ = cause = type("Cause" + "e" * 240, (Exception,), {})()
    cause.__cause__ = type("Reason" + "e" * 240, (Exception,), {})()
    server = EmbeddedBroker()
    async with running(Bus("memory://", failing(error), plugins=[DeadLetter()]), broker=server) as probe:
        properties = Properties(type="order.placed", headers={"long": "x" * size})
        await probe.bus.send(raw(b'{"order_id": "o"}', properties=properties))
        await probe.settled()

    [letter] = await letters(server)

    assert letter.error == "ValueError"
    assert bool(letter.traceback) == with_traceback
    assert bool(letter.message) == with_message
    assert letter.headers["long"] == "x" * size


async def test_where_no_label_fits_the_broker_takes_the_event_as_it_came_to_the_same_queue() -> None:
    server = EmbeddedBroker()
    bus = Bus("memory://", failing(), plugins=[DeadLetter()])
    async with running(bus, broker=server) as probe:
        headers = {"long": "x" * 65_450}
        await probe.bus.send(raw(b'{"order_id": "o"}', properties=Properties(type="order.placed", headers=headers)))
        await probe.settled()

    [letter] = await letters(server)

    assert letter.reason == "rejected"
    assert letter.headers["long"] == headers["long"]
    assert (letter.type, letter.queue, letter.exchange) == ("order.placed", QUEUE, "")


@asynccontextmanager
async def alone(plugin: DeadLetter) -> AsyncGenerator[DeadLetter]:
    """The plugin without a broker, as a bus would have started it."""
    async with plugin.lifespan(Bus("memory://", failing(), limits=Limits(body=100))):
        yield plugin


UNREADABLE = b"\x20\x00\x00\x00\x00\x08\x01aZ\x00\x00\x00\x01v"


@pytest.mark.parametrize(
    "delivery",
    [
        Delivery(QUEUE, 1, 1, False, "events", "order.placed", b"{}", UNREADABLE),
        Delivery(QUEUE, 1, 1, False, "events", "order.placed", b"", Properties(type="order.placed"), 5_000),
    ],
    ids=["properties that cannot be read", "a body over the limit"],
)
async def test_what_no_copy_can_carry_is_rejected(delivery: Delivery) -> None:
    error = ValueError()

    async def proceed(delivery: Delivery) -> Settlement:
        raise error

    async with alone(DeadLetter(announce=False)) as plugin:
        settlement = await plugin.consume(proceed, delivery)

    assert settlement.outcome is Outcome.REJECT
    assert settlement.error is error


# --- attempts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attempts", "wait"), [(1, 0.0), (3, 0.0), (3, 60.0), (8, 0.001)])
async def test_the_attempts_are_those_that_were_made_here_and_at_the_broker(attempts: int, wait: float) -> None:
    ran = 0

    async def record(order: OrderPlaced) -> None:
        nonlocal ran
        ran += 1
        raise PaymentError

    server = EmbeddedBroker()
    retry = Retry(stop=stop_after_attempt(attempts), wait=wait_fixed(wait))
    async with running(Bus("memory://", shop(record), plugins=[DeadLetter(), retry]), broker=server) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.advance(timedelta(hours=1))

    [letter] = await letters(server)

    assert letter.attempts == ran == attempts


async def test_attempts_of_one_event_are_not_taken_for_another_ones() -> None:
    async def record(order: OrderPlaced) -> None:
        if order.order_id == "worse":
            raise PaymentError
        raise ValueError

    server = EmbeddedBroker()
    retry = Retry(stop=stop_after_attempt(4), wait=wait_none(), retry=retry_if_exception_type(ValueError))
    router = Router("shop")
    router.on(OrderPlaced, name="record", concurrency=1)(record)
    async with running(Bus("memory://", router, plugins=[DeadLetter(), retry]), broker=server) as probe:
        await probe.bus.publish(OrderPlaced("bad"))
        await probe.bus.publish(OrderPlaced("worse"))
        await probe.settled()

    assert [letter.attempts for letter in await letters(server)] == [4, 1]


# --- stopping, and a queue that takes nothing ----------------------------------------------------------------------


@pytest.mark.parametrize("turned_into", [None, RuntimeError])
async def test_nothing_is_dead_lettered_because_a_process_stops(turned_into: type[Exception] | None) -> None:
    server = EmbeddedBroker()
    began = asyncio.Event()

    async def record(order: OrderPlaced) -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if turned_into is not None:
                raise turned_into from None
            raise

    async with Bus(server.client(), shop(record), plugins=[DeadLetter()], grace=0.05) as bus:
        await bus.publish(OrderPlaced("o-1"))
        await began.wait()

    assert await letters(server) == []
    assert server.queues[QUEUE].ready == 1


async def test_a_handler_that_fails_while_the_process_stops_has_failed() -> None:
    server = EmbeddedBroker()
    began, stopping = asyncio.Event(), asyncio.Event()

    async def record(order: OrderPlaced) -> None:
        began.set()
        await stopping.wait()
        raise PaymentError

    bus = Bus(server.client(), shop(record), plugins=[DeadLetter()], grace=5)
    await bus.start()
    await bus.publish(OrderPlaced("o-1"))
    await began.wait()
    stop = asyncio.ensure_future(bus.stop())
    await eventually(lambda: bus.stopping, "the stop")
    stopping.set()
    await stop

    assert len(await letters(server)) == 1


async def test_a_task_group_that_fails_in_a_handler_is_a_failure_like_another() -> None:
    async def fail() -> None:
        raise PaymentError

    async def record(order: OrderPlaced) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(60)

    found = await letters(await after(shop(record), None, OrderPlaced("o-1"), OrderPlaced("o-2")))

    assert [letter.error for letter in found] == ["ExceptionGroup"] * 2
    assert found[0].traceback.endswith("ExceptionGroup of tests.deadletters.PaymentError")


@pytest.mark.parametrize("failure", ["refuse", "return"])
async def test_while_its_queue_takes_nothing_an_event_is_held_and_not_handled_again(failure: str) -> None:
    server = EmbeddedBroker()
    ran = 0

    async def record(order: OrderPlaced) -> None:
        nonlocal ran
        ran += 1
        raise PaymentError

    if failure == "refuse":
        server.fail("refuse", when=lambda message: message.routing_key == DEAD, times=1)
    else:
        server.fail(
            "return", when=lambda message: message.routing_key == DEAD, times=2
        )  # after it is declared again, too
    async with running(Bus("memory://", shop(record), plugins=[DeadLetter()]), broker=server) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: probe.bus.load[QUEUE].held == 1, "it to be held")
        lying = probe.waiting(DEAD)
        await eventually(lambda: probe.waiting(DEAD) == 1, "the dead letter")
        await eventually(lambda: probe.waiting(QUEUE) == 0, "its settlement")

    assert (ran, lying) == (1, 0)
    [letter] = await letters(server)
    assert letter.error == "tests.deadletters.PaymentError"


# --- facts and announcements ---------------------------------------------------------------------------------------


async def test_it_reports_what_it_gave_up_on() -> None:
    noted = Noted()
    bus = Bus("memory://", failing(), plugins=[noted, DeadLetter()])
    async with running(bus) as probe:
        sent = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert [fact for fact in noted.facts if isinstance(fact, facts.DeadLettered)] == [
        facts.DeadLettered(QUEUE, "order.placed", str(sent.id), 1, "PaymentError")
    ]


async def test_an_announcement_says_what_failed_and_is_caused_by_it() -> None:
    router = failing()
    announced: list[Event[EventProcessingFailed]] = []

    @router.on(EventProcessingFailed)
    async def tell(failed: Event[EventProcessingFailed]) -> None:
        announced.append(failed)

    async with running(Bus("memory://", router, plugins=[DeadLetter(announce=True)])) as probe:
        sent = await probe.bus.publish(OrderPlaced("o-1"), correlation_id="all-of-it")
        await probe.settled()

    [one] = announced
    assert one.payload.event_id == one.entity_id == one.metadata.causation_id == str(sent.id)
    assert (one.payload.event_type, one.payload.queue, one.payload.attempts) == ("order.placed", QUEUE, 1)
    assert one.payload.error == "tests.deadletters.PaymentError"
    assert one.metadata.correlation_id == "all-of-it"
    assert one.metadata.source == "shop"


@pytest.mark.parametrize("announce", [False, True])
async def test_nothing_is_announced_unless_asked_for_and_never_what_has_no_name(
    announce: bool, caplog: pytest.LogCaptureFixture
) -> None:
    failed = Delivery(QUEUE, 1, 1, False, "events", "order.placed", b"{}", Properties(type="order.placed"))
    nameless = Delivery(QUEUE, 2, 1, False, "events", "order.placed", b"{}", UNREADABLE)
    announced: list[str] = []

    async def proceed(delivery: Delivery) -> Settlement:
        raise PaymentError

    class Noticing(Plugin):
        async def publish(self, proceed: Publish, message: Message) -> None:
            announced.append(message.type)

    plugin = DeadLetter(announce=announce)
    async with Bus("memory://", plugins=[plugin, Noticing()]):
        for delivery in (failed, nameless):
            await plugin.consume(proceed, delivery)

    assert announced == ["event.processing.failed"] * announce
    assert "could not be announced" not in caplog.text


async def test_the_same_failure_announced_twice_is_the_same_event() -> None:
    server = EmbeddedBroker()
    seen: list[UUID] = []
    router = failing()

    @router.on(EventProcessingFailed)
    async def tell(failed: Event[EventProcessingFailed]) -> None:
        seen.append(failed.id)

    async with running(Bus("memory://", router, plugins=[DeadLetter(announce=True)]), broker=server) as probe:
        message = raw(b'{"order_id": "o"}', properties=Properties(type="order.placed", message_id="same"))
        await probe.bus.send(message)
        await probe.bus.send(message)
        await probe.bus.send(message.replace(headers={"replay-count": 1}))
        await probe.settled()

    assert len(seen) == 3
    assert seen[0] == seen[1] != seen[2]


async def test_a_handler_of_announcements_that_fails_is_not_announced() -> None:
    router = failing()

    @router.on(EventProcessingFailed)
    async def tell(failed: EventProcessingFailed) -> None:
        raise ValueError

    @router.on("#")
    async def audit(failed: Event[Any]) -> None:
        raise ValueError

    async with running(Bus("memory://", router, plugins=[DeadLetter(announce=True)])) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        dead = {name: probe.waiting(f"shop.{name}.dead") for name in ("record", "tell", "audit")}
        announced = [each for each in probe.messages if each.routing_key == "event.processing.failed"]

    assert len(announced) == 2  # order.placed failed in record and in audit
    assert dead == {"record": 1, "tell": 2, "audit": 3}


class Broken(Plugin):
    """Lets no announcement out."""

    async def publish(self, proceed: Publish, message: Message) -> None:
        if message.type == "event.processing.failed":
            raise RuntimeError("broken")
        await proceed(message)


async def test_an_announcement_that_fails_keeps_nothing_from_its_queue(caplog: pytest.LogCaptureFixture) -> None:
    server = EmbeddedBroker()
    bus = Bus("memory://", failing(), plugins=[DeadLetter(announce=True), Broken()])
    async with running(bus, broker=server) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert len(await letters(server)) == 1
    assert "could not be announced as failed: RuntimeError" in caplog.text

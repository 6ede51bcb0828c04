"""What log records say of the event that they are about, and how they are written."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import process_time
from typing import Any

import msgspec
import pytest
import structlog
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from rabbitevents import Bus, Consume, Delivery, Event, Message, Plugin, Router, Settlement, event, forward
from rabbitevents.fields import event_fields
from rabbitevents.logs import (
    EventContextFilter,
    JsonFormatter,
    TextFormatter,
    add_event_context,
    configure,
    event_context,
    log_handler,
    without_passwords,
)
from rabbitevents.properties import Properties
from rabbitevents.testing import Probe, running
from rabbitevents.testing.bench import eventually
from tests.shop import OrderPlaced

ROOT = Path(__file__).parent.parent
MARKER = "marker-in-the-body"

log: logging.Logger = logging.getLogger("shop.orders")


@event("stock.counted")
@frozen
class StockCounted:
    shelf: str


class Records(logging.Handler):
    """Keeps what is logged, as every handler with an `EventContextFilter` sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[logging.LogRecord] = []
        self.addFilter(EventContextFilter())

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)

    def of(self, text: str) -> dict[str, Any]:
        """The event's fields of the one record whose message has ``text`` in it."""
        (record,) = (record for record in self.kept if text in record.getMessage())
        return fields_of(record)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    names = ("event_id", "event_type", "subscription", "attempt", "correlation_id")
    return {name: vars(record)[name] for name in names if name in vars(record)}


def expected(event: Event[Any], subscription: str = "shop.record", attempt: int = 1) -> dict[str, Any]:
    return {
        "event_id": str(event.id),
        "event_type": event.type,
        "subscription": subscription,
        "attempt": attempt,
        "correlation_id": event.metadata.correlation_id,
    }


@pytest.fixture
def records() -> Iterator[Records]:
    """Everything that is logged, at DEBUG."""
    root, handler = logging.getLogger(), Records()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.fixture
def root_as_it_was() -> Iterator[logging.Logger]:
    """The root logger, to be configured."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


class AgainOnce(Plugin):
    """Has a failed delivery tried again, as attempt 2."""

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        try:
            return await proceed(delivery)
        except LookupError as error:
            return forward(delivery.replace(attempt=delivery.attempt + 1), error=error)


# --- a handler's own records ---------------------------------------------------------------------------------------


async def test_a_handlers_records_carry_the_event_that_it_handles(records: Records) -> None:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        log.info("in the handler")
        await asyncio.create_task(further())

    async def further() -> None:
        log.info("in a task of its own")

    async with running(Bus("memory://", router)) as probe:
        placed = await probe.bus.publish(OrderPlaced("o-1"), correlation_id="a cascade")
        await probe.settled()
        log.info("outside")

    assert records.of("in the handler") == expected(placed)
    assert records.of("in the handler")["correlation_id"] == "a cascade"
    assert records.of("in a task") == expected(placed)
    assert records.of("outside") == {}


async def test_a_handlers_records_carry_it_in_a_thread_too(records: Records) -> None:
    router = Router("shop")

    @router.on(OrderPlaced)
    def record(order: OrderPlaced) -> None:
        log.info("order %s", order.order_id)

    async with running(Bus("memory://", router)) as probe:
        first, second = await probe.bus.publish_many([OrderPlaced("o-1"), OrderPlaced("o-2")])
        await probe.settled()

    assert records.of("order o-1") == expected(first)
    assert records.of("order o-2") == expected(second)


async def test_each_attempt_is_numbered(records: Records) -> None:
    router, tries = Router("shop"), list[str]()

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        tries.append(order.order_id)
        log.info("try %d", len(tries))
        if len(tries) == 1:
            raise LookupError

    async with running(Bus("memory://", router, plugins=[AgainOnce()])) as probe:
        placed = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert records.of("try 1") == expected(placed, attempt=1)
    assert records.of("try 2") == expected(placed, attempt=2)


async def test_a_record_that_names_an_event_keeps_it(records: Records) -> None:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        log.info("about another", extra={"event_id": "another", "event_type": "x.y"})

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert records.of("about another") == {"event_id": "another", "event_type": "x.y"}


async def test_a_record_that_names_its_subscription_keeps_it_and_learns_the_event(records: Records) -> None:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        log.info("about a neighbour", extra={"subscription": "shop.neighbour"})

    async with running(Bus("memory://", router)) as probe:
        placed = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    assert records.of("about a neighbour") == expected(placed, "shop.neighbour")


async def test_an_event_in_a_document_of_its_own_is_named_as_the_document_says(records: Records) -> None:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        log.info("in the handler")

    document = {
        "id": "01a1fea4-5ce5-7f62-8bca-4d94e9ddfd33",
        "type": "order.placed",
        "version": 1,
        "timestamp": "2026-01-01T00:00:00Z",
        "payload": {"order_id": "o-1"},
        "metadata": {"correlation_id": "a cascade"},
    }
    body, properties = json.dumps(document).encode(), Properties(content_type="application/json")
    async with running(Bus("memory://", router)) as probe:
        await probe.bus.send(Message(exchange="events", routing_key="order.placed", body=body, properties=properties))
        await probe.settled()

    assert records.of("in the handler") == {
        "event_id": document["id"],
        "event_type": "order.placed",
        "subscription": "shop.record",
        "attempt": 1,
        "correlation_id": "a cascade",
    }


async def test_structlog_entries_carry_the_event_that_is_handled(root_as_it_was: logging.Logger) -> None:
    written = io.StringIO()
    structured: Any = structlog.wrap_logger(
        structlog.PrintLogger(written), processors=[add_event_context, structlog.processors.JSONRenderer()]
    )
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        structured.info("in the handler", shelf=3)
        structured.info("about another", event_id="another")

    async with running(Bus("memory://", router)) as probe:
        placed = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        structured.info("outside")

    inside, other, outside = map(json.loads, written.getvalue().splitlines())
    assert inside == {"event": "in the handler", "shelf": 3, **expected(placed)}
    assert other == {"event": "about another", "event_id": "another"}
    assert outside == {"event": "outside"}


def test_outside_of_a_handling_there_is_no_context() -> None:
    assert event_context() == {}


# --- the library's own records -------------------------------------------------------------------------------------


async def held(probe: Probe, subscription: str) -> None:
    await eventually(lambda: probe.bus.load[subscription].held == 1, "the failure to be held")


async def test_what_is_held_is_logged_with_its_event_whoever_writes_it(caplog: pytest.LogCaptureFixture) -> None:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None:
        raise LookupError

    async with running(Bus("memory://", router)) as probe:
        placed = await probe.bus.publish(OrderPlaced("o-1"))
        await held(probe, "shop.record")

    (said,) = (each for each in caplog.records if "no plugin took care" in each.getMessage())
    assert fields_of(said) == expected(placed)
    assert said.name == "rabbitevents.consumer"


async def test_what_cannot_be_decoded_is_logged_with_what_could_be_read(records: Records) -> None:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> None: ...

    async with running(Bus("memory://", router)) as probe:
        placed = await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()
        await probe.bus.send(msgspec.structs.replace(probe.messages[0], body=b"no JSON"))
        await held(probe, "shop.record")

    assert records.of("no plugin took care") == expected(placed)


def test_of_a_delivery_whose_properties_cannot_be_read_the_queue_is_known() -> None:
    unreadable = Delivery("shop.record", 1, 1, False, "events", "order.placed", b"{}", b"\xff\xff\xff")

    assert event_fields(unreadable) == {"subscription": "shop.record"}


def test_an_event_that_belongs_to_no_cascade_is_its_own() -> None:
    id = "01a1fea4-5ce5-7f62-8bca-4d94e9ddfd33"
    delivery = Delivery("q", 1, 1, False, "events", "a.b", b"{}", Properties(message_id=id))

    assert event_fields(delivery)["correlation_id"] == id


async def test_an_event_that_nobody_is_bound_to_is_logged_as_itself_and_not_as_what_caused_it(records: Records) -> None:
    router, published = Router("shop"), list[Event[Any]]()

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced, bus: Bus) -> None:
        published.append(await bus.publish(StockCounted("s")))

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await probe.settled()

    (counted,) = published
    said = records.of("no queue is bound")
    assert (said["event_id"], said["event_type"]) == (str(counted.id), "stock.counted")
    assert said["correlation_id"] == counted.metadata.correlation_id


def loggers_of(folder: Path) -> dict[str, set[str]]:
    """The names of the loggers of each module below ``folder``."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
                call = node.value
                if isinstance(call.func, ast.Attribute) and call.func.attr == "getLogger" and call.args:
                    name = ast.literal_eval(call.args[0])
                    found.setdefault(name, set()).add(str(path.relative_to(folder)))
    return found


def test_every_area_has_a_logger_of_its_own_below_that_of_the_library() -> None:
    core = loggers_of(ROOT / "rabbitevents")
    plugins = loggers_of(ROOT / "plugins")

    assert {"rabbitevents.bus", "rabbitevents.broker", "rabbitevents.consumer", "rabbitevents.publish"} <= set(core)
    assert [name for name in (*core, *plugins) if not name.startswith("rabbitevents.")] == []
    assert set(core) & set(plugins) == set()


# --- how they are written ------------------------------------------------------------------------------------------


def record(message: str, *args: object, exc_info: Any = None, **extra: object) -> logging.LogRecord:
    """A record as a logger makes it."""
    return log.makeRecord("shop.orders", logging.WARNING, __file__, 1, message, args, exc_info, extra=extra)


def failure() -> Any:
    try:
        raise LookupError("at amqp://shop:secret@broker/")
    except LookupError:
        return sys.exc_info()


def test_as_json_a_record_is_one_object_with_all_that_is_known() -> None:
    fields = {"event_id": "e", "event_type": "order.placed", "subscription": "s", "attempt": 2, "correlation_id": "c"}
    made = record("order %s\nis late", "o-1", tenant="t", since=datetime(2026, 1, 1, tzinfo=UTC), **fields)

    line = JsonFormatter(worker=3).format(made)
    document = json.loads(line)

    assert "\n" not in line
    assert datetime.fromisoformat(document.pop("time")).timestamp() == pytest.approx(made.created, abs=0.001)
    assert document == {
        "level": "WARNING",
        "logger": "shop.orders",
        "message": "order o-1\nis late",
        "worker": 3,
        "tenant": "t",
        "since": "2026-01-01 00:00:00+00:00",
        **fields,
    }


def test_as_json_a_traceback_is_a_field_and_passwords_are_taken_out() -> None:
    document = json.loads(
        JsonFormatter().format(record("at amqp://a:secret@b", exc_info=failure(), url="x://a:secret@b"))
    )

    assert "Traceback" in document["exception"]
    assert "LookupError: at amqp://shop:...@broker/" in document["exception"]
    assert (document["message"], document["url"]) == ("at amqp://a:...@b", "x://a:...@b")
    assert "secret" not in str(document)


def test_as_json_nothing_that_was_given_takes_the_place_of_what_the_record_is() -> None:
    document = json.loads(JsonFormatter().format(record("what happened", level="mine", logger="mine", time="mine")))

    assert (document["level"], document["logger"]) == ("WARNING", "shop.orders")
    assert document["time"] != "mine"


def test_as_text_a_record_is_one_line_with_its_event_in_brackets() -> None:
    made = record("order %s", "o-1", event_id="e", event_type="order.placed", attempt=2)

    line = TextFormatter(worker=2).format(made)

    assert line.endswith(" WARNING worker 2: order o-1 [event_id=e event_type=order.placed attempt=2]")
    assert TextFormatter().format(record("no event")).endswith(" WARNING no event")


def test_as_text_nobody_forges_a_line_or_speaks_to_the_terminal() -> None:
    line = TextFormatter().format(record("type %s", "x\n2026-01-01 ERROR forged\x1b[2J\udc80é", event_type="a\rb"))

    assert r"x\n2026-01-01 ERROR forged\x1b[2J\x80é [event_type=a\rb]" in line
    assert line.isprintable()


def test_as_text_a_traceback_stands_below_its_line_without_passwords() -> None:
    first, *rest = TextFormatter().format(record("it failed", exc_info=failure())).splitlines()

    assert first.endswith("WARNING it failed")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "LookupError: at amqp://shop:...@broker/"
    assert "secret" not in "".join(rest)


def test_a_password_is_taken_out_whatever_signs_are_in_it() -> None:
    assert without_passwords("a amqp://u:p@ss/w:rd@h/ b") == "a amqp://u:...@h/ b"
    assert without_passwords("write amqp://user:password@host:5672/") == "write amqp://user:password@host:5672/"


OLD = re.compile(r"(://(?!user:password@host)[^\s:/@]*:)\S*@")
"""What is meant, in a regular expression that takes the square of a text's length."""

urls = st.lists(
    st.sampled_from(["://", "amqp://", ":", "/", "@", "user:password@host", "u", "p", " ", "\n", "é", "a:b@"]),
    max_size=14,
).map("".join)


@settings(max_examples=1_000)
@given(urls)
def test_passwords_are_taken_out_as_the_expression_says(text: str) -> None:
    assert without_passwords(text) == OLD.sub(r"\1...@", text)


@pytest.mark.parametrize(
    "text",
    [
        "://a:" * 200_000,
        "://" * 300_000,
        "://a:" * 200_000 + "@",
        "://user:password@host" * 50_000,
        "@" * 500_000 + "://" + "@" * 500_000,
        "://a" * 250_000 + ":@",
        ("://a:" * 10 + " ") * 20_000,
    ],
    ids=range(7),
)
def test_taking_passwords_out_takes_no_longer_than_the_text_is(text: str) -> None:
    began = process_time()

    without_passwords(text)

    assert process_time() - began < 3  # 0.1 s; what takes the square takes minutes


FORGED = "2026-01-01 00:00:00,000 ERROR forged"


def raised(error: BaseException, *notes: str, cause: BaseException | None = None) -> Any:
    for note in notes:
        error.add_note(note)
    try:
        raise error from cause
    except BaseException:
        return sys.exc_info()


class ForgingError(Exception):
    pass


hostile = [
    raised(ValueError(f"no such sku\n{FORGED}")),
    raised(ValueError(f"\n{FORGED}")),
    raised(ValueError(f"a\r{FORGED}\x0b{FORGED}\x85{FORGED}\u2028{FORGED}\x1b[2J\x9b31m\x00")),
    raised(ValueError("a"), FORGED, f"a note\n{FORGED}"),
    raised(ValueError("a"), cause=KeyError(f"\n{FORGED}")),
    raised(ValueError("a"), cause=raised(KeyError("b"), FORGED, cause=OSError(f"\n{FORGED}"))[1]),
    raised(
        ExceptionGroup(f"\n{FORGED}", [ValueError(f"\n{FORGED}"), ExceptionGroup("in", [ForgingError(f"\n{FORGED}")])])
    ),
    raised(ForgingError(f"\n{FORGED}")),
    raised(SyntaxError(f"x\n{FORGED}", ("f\n" + FORGED, 1, 1, f"a\n{FORGED}"))),
    raised(ValueError("a " + "b" * 10 + "\udc80")),
]


@pytest.mark.parametrize("number", range(len(hostile)))
def test_nothing_that_an_exception_says_begins_a_line_or_speaks_to_the_terminal(number: int) -> None:
    text = TextFormatter().format(record("it failed", exc_info=hostile[number]))

    first, *below = text.split("\n")
    assert first.endswith("WARNING it failed")
    assert any(line.strip(" +").endswith("Traceback (most recent call last):") for line in below)
    assert all(line.isprintable() for line in below)
    assert [line for line in text.splitlines() if line.startswith("2026-01-01 ")] == []
    assert json.loads(JsonFormatter().format(record("it failed", exc_info=hostile[number])))["message"] == "it failed"
    assert "\n" not in JsonFormatter().format(record("it failed", exc_info=hostile[number]))


def test_a_traceback_reads_as_python_writes_it_where_nothing_is_hostile() -> None:
    chained = raised(ForgingError("one line"), "a note", cause=KeyError("first"))

    written = TextFormatter().format(record("it failed", exc_info=chained)).split("\n")[1:]

    as_it_is = logging.Formatter().formatException(chained).split("\n")
    assert written == [f"    {line}" if line == "a note" else line for line in as_it_is]
    assert f"{__name__}.ForgingError: one line" in written


def test_a_stack_stands_below_its_line_as_python_writes_it() -> None:
    made = record("here")
    made.stack_info = 'Stack (most recent call last):\n  File "x", line 1, in f\n    code()'

    assert TextFormatter().format(made).split("\n")[1:] == made.stack_info.split("\n")


@pytest.mark.parametrize(("form", "kind"), [("text", TextFormatter), ("json", JsonFormatter)])
def test_a_form_that_is_asked_for_takes_the_place_of_what_was_set_up(
    root_as_it_was: logging.Logger, form: Any, kind: type[logging.Formatter]
) -> None:
    root_as_it_was.handlers[:] = [logging.NullHandler()]

    configure(form, logging.DEBUG)

    (handler,) = root_as_it_was.handlers
    assert isinstance(handler.formatter, kind)
    assert root_as_it_was.level == logging.DEBUG


def test_without_a_form_what_was_set_up_stands(root_as_it_was: logging.Logger) -> None:
    there = logging.NullHandler()
    root_as_it_was.handlers[:] = [there]
    configure()
    assert root_as_it_was.handlers == [there]

    root_as_it_was.handlers[:] = []
    configure()
    assert [type(each.formatter) for each in root_as_it_was.handlers] == [TextFormatter]


async def test_a_services_log_says_which_event_and_nothing_of_what_is_in_it(root_as_it_was: logging.Logger) -> None:
    written = io.StringIO()
    handler = log_handler("json")
    handler.setStream(written)
    root_as_it_was.handlers[:] = [handler]
    root_as_it_was.setLevel(logging.DEBUG)
    router, tries = Router("shop"), list[str]()

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced) -> StockCounted:
        tries.append(order.order_id)
        log.debug("try %d", len(tries))
        if len(tries) == 1:
            raise LookupError
        return StockCounted(order.order_id)

    async with running(Bus("memory://", router, plugins=[AgainOnce()])) as probe:
        await probe.bus.publish(OrderPlaced(MARKER), metadata={"note": MARKER})
        await probe.settled()
        await probe.bus.send(msgspec.structs.replace(probe.messages[0], body=MARKER.encode()))
        await held(probe, "shop.record")

    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert tries == [MARKER, MARKER]
    assert {line["logger"] for line in lines} >= {"shop.orders", "rabbitevents.consumer", "rabbitevents.publish"}
    assert all("event_id" in line for line in lines if line["logger"] == "shop.orders")
    assert MARKER not in written.getvalue()

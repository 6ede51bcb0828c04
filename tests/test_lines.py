"""What our records say stays on its line, whoever writes the log; and a failure shows the user's code first."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import stop_after_attempt, wait_none

from rabbitevents import Bus, Consume, Delivery, LineFilter, Message, Plugin, Router, Settlement, event_fields
from rabbitevents.cli.console import story
from rabbitevents.consuming import holding
from rabbitevents.lines import STRUCTURE, traceback_text
from rabbitevents.logs import JsonFormatter, TextFormatter
from rabbitevents.properties import Properties
from rabbitevents.testing import running
from rabbitevents.testing.bench import eventually
from rabbitevents_deadletter import DeadLetter
from rabbitevents_eventstore import Projections
from rabbitevents_flow import KillSwitch
from rabbitevents_idempotency import Idempotency
from rabbitevents_process import Process
from rabbitevents_retry import Retry
from tests.shop import OrderPlaced
from tests.test_logs import loggers_of

ROOT = Path(__file__).parent.parent

HOSTILE = st.text(st.sampled_from("aE: \n\r\t\x0b\x1b\x85\u2028\u202e\ud800é\x00"), min_size=1, max_size=30)
"""Texts of strangers."""

AT_ONCE = Retry(stop=stop_after_attempt(3), wait=wait_none())


@contextmanager
def written(name: str, level: int = logging.ERROR, form: str = "%(levelname)s %(message)s") -> Generator[io.StringIO]:
    """What a handler with the standard library's formatter writes of one logger."""
    out = io.StringIO()
    handler, logger = logging.StreamHandler(out), logging.getLogger(name)
    handler.setFormatter(logging.Formatter(form))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield out
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as there:
        return there


# --- on its line ---------------------------------------------------------------------------------------------------


@given(HOSTILE, HOSTILE, HOSTILE)
def test_whatever_a_message_is_called_its_description_is_printable(type: str, id: str, place: str) -> None:
    properties = Properties(type=type, message_id=id)
    delivery = Delivery(place, 1, 1, False, place, place, b"", properties)
    message = Message(exchange=place, routing_key=place, body=b"", properties=properties)
    to_a_queue = Message(exchange="", routing_key=place, body=b"", properties=Properties())

    for each in (delivery, message, to_a_queue):
        assert each.describe().isprintable()
        assert repr(each).isprintable()


@given(HOSTILE, HOSTILE, HOSTILE)
def test_whatever_an_event_says_its_fields_are_printable(type: str, id: str, correlation: str) -> None:
    properties = Properties(type=type, message_id=id, correlation_id=correlation)

    fields = event_fields(Message(exchange="e", routing_key="k", body=b"", properties=properties))

    assert all(str(value).isprintable() for value in fields.values())


@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_no_text_from_outside_forges_a_line_for_the_standard_formatter(
    text: str, note: str, cause: str, said: str
) -> None:
    error = LookupError(text)
    error.__cause__ = raised(ValueError(cause))
    error.__cause__.__context__ = raised(KeyError(cause))
    for each in (error, error.__cause__, error.__cause__.__context__):
        each.add_note(note)
    raised(error)

    with written("rabbitevents.consumer") as out:
        logging.getLogger("rabbitevents.consumer").error("%s: %s", said, ValueError(said), exc_info=error)

    first, *below = out.getvalue().removesuffix("\n").split("\n")
    at_the_left = [line for line in below if not line.startswith(" ") and line not in STRUCTURE]
    assert first.isprintable()
    assert all(line.isprintable() for line in below)
    assert [line.partition(":")[0] for line in at_the_left] == ["KeyError", "ValueError", "LookupError"]


@given(HOSTILE, HOSTILE)
@settings(max_examples=50)
def test_nor_for_our_own_formatters(text: str, said: str) -> None:
    error = raised(LookupError(text))
    record = logging.LogRecord(
        "rabbitevents.consumer", logging.ERROR, "", 1, "%s", (said,), (type(error), error, error.__traceback__)
    )
    LineFilter().filter(record)

    in_text, in_json = TextFormatter().format(record).split("\n"), JsonFormatter().format(record)

    assert all(line.isprintable() for line in in_text)
    assert [line.partition(":")[0] for line in in_text[1:] if line[:1] != " "] == [
        "Traceback (most recent call last)",
        "LookupError",
    ]
    assert in_json.isprintable()


@given(st.lists(HOSTILE, min_size=1, max_size=3))
@settings(max_examples=50)
def test_nor_does_a_group_of_exceptions(texts: list[str]) -> None:
    group = raised(ExceptionGroup(texts[0], [raised(LookupError(text)) for text in texts]))

    lines = traceback_text(group).split("\n")

    assert all(line.startswith("  ") and line.isprintable() for line in lines)


def test_an_exception_that_cannot_say_its_text_is_logged_all_the_same() -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise LookupError

    with written("rabbitevents.consumer") as out:
        logging.getLogger("rabbitevents.consumer").error("%s", SpeechlessError(), exc_info=raised(SpeechlessError()))

    assert out.getvalue().startswith("ERROR (LookupError in its __str__)\nTraceback")


def test_arguments_by_name_and_numbers_stay_what_they_are() -> None:
    with written("rabbitevents.bus") as out:
        logging.getLogger("rabbitevents.bus").error("%(what)s after %(seconds).1f s", {"what": "a\nb", "seconds": 1})

    assert out.getvalue() == "ERROR a\\nb after 1.0 s\n"


def test_every_logger_of_ours_keeps_to_its_lines() -> None:
    names = {*loggers_of(ROOT / "rabbitevents"), *loggers_of(ROOT / "plugins")}
    imported = (Idempotency, KillSwitch, Projections, Process)  # a plugin's logger is made where it is imported
    assert all(plugin.__module__.startswith("rabbitevents_") for plugin in imported)

    without = [n for n in names if not any(isinstance(f, LineFilter) for f in logging.getLogger(n).filters)]

    assert without == []
    assert len(names) >= 9


# --- the user's frames first ---------------------------------------------------------------------------------------


class Passing(Plugin):
    """Stands between an event and its handler."""

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        return await proceed(delivery)


def pay(order: OrderPlaced) -> None:
    raise LookupError(f"no account for {order.order_id}")


async def log_of_a_failure(*plugins: Plugin, level: int = logging.ERROR, logger: str = "rabbitevents.consumer") -> str:
    router = Router("shop")
    router.on(OrderPlaced)(pay)
    with written(logger, level) as out:
        async with running(Bus("memory://", router, plugins=plugins)) as probe:
            await probe.bus.publish(OrderPlaced("o-1"))
            await eventually(lambda: "LookupError: no account" in out.getvalue(), "the failure to be logged")
    return out.getvalue()


@pytest.mark.parametrize("threaded", [True, False])
async def test_a_failing_handlers_traceback_begins_with_the_handler(threaded: bool) -> None:
    said = await log_of_a_failure() if threaded else await log_of_a_coroutine()

    frames = [line for line in said.splitlines() if line.startswith("  File ")]
    assert [Path(line.split('"')[1]).name for line in frames] == ["test_lines.py"]


async def log_of_a_coroutine() -> str:
    router = Router("shop")

    @router.on(OrderPlaced)
    async def charge(order: OrderPlaced) -> None:
        raise LookupError("no account")

    with written("rabbitevents.consumer") as out:
        async with running(Bus("memory://", router)) as probe:
            await probe.bus.publish(OrderPlaced("o-1"))
            await eventually(lambda: "LookupError" in out.getvalue(), "the failure to be logged")
    return out.getvalue()


async def test_what_is_given_up_on_shows_it_too() -> None:
    said = await log_of_a_failure(DeadLetter(), AT_ONCE, logger="rabbitevents.deadletter")

    first, _, place, *_ = said.splitlines()
    assert "was given up on" in first
    assert "test_lines.py" in place
    assert "in pay" in place


async def test_a_users_plugin_is_the_users_code_too() -> None:
    said = await log_of_a_failure(Passing())

    assert said.splitlines()[2].strip().startswith("File")
    assert said.splitlines()[2].endswith("in consume")


async def test_at_debug_there_is_the_whole_of_it() -> None:
    said = await log_of_a_failure(level=logging.DEBUG)

    assert "workers.py" in said
    assert "dispatch.py" in said
    assert "in pay" in said


def test_the_exception_itself_keeps_its_frames() -> None:
    error = raised(LookupError("x"))
    before = error.__traceback__
    record = logging.LogRecord("rabbitevents.bus", logging.ERROR, "", 1, "m", (), (type(error), error, before))

    LineFilter().filter(record)

    assert record.exc_info is not None
    assert record.exc_info[1:] == (error, before)
    assert error.__traceback__ is before


def test_a_failure_of_ours_alone_shows_all_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "__name__", "rabbitevents.bus")
    error = raised(LookupError("a defect"))

    assert "in raised" in traceback_text(error)


def test_with_a_limit_on_tracebacks_it_says_what_python_would(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing() -> None:
        raise LookupError("x")

    with pytest.raises(LookupError) as caught, asyncio.Runner() as runner:
        runner.run(failing())
    error = caught.value.with_traceback(caught.tb.tb_next)  # it begins within asyncio
    monkeypatch.setattr(sys, "tracebacklimit", 1, raising=False)

    assert "runners.py" in traceback_text(error)


# --- attempts count up ---------------------------------------------------------------------------------------------


async def test_attempts_count_up_where_the_core_holds_and_tries_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "FIRST_PAUSE", 0.01)
    router, attempts = Router("shop"), list[int]()

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) < 4:
            raise LookupError

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: len(attempts) == 4, "four attempts")

    said = [each for each in caplog.records if "it is held" in each.getMessage()]
    assert attempts == [1, 2, 3, 4]
    assert [vars(each)["attempt"] for each in said] == [1, 2, 3]
    assert [f"at attempt {number}" in each.getMessage() for number, each in enumerate(said, 1)] == [True] * 3


async def test_what_retry_has_given_up_on_is_held_as_the_attempt_that_it_was(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "FIRST_PAUSE", 0.01)
    router, attempts = Router("shop"), list[int]()

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) < 5:
            raise LookupError

    plugins = [AT_ONCE]
    async with running(Bus("memory://", router, plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: len(attempts) == 5, "five attempts")

    said = [each for each in caplog.records if "it is held" in each.getMessage()]
    assert attempts == [1, 2, 3, 4, 5]
    assert [vars(each)["attempt"] for each in said] == [3, 4]


# --- reasons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [True, False])
async def test_the_line_of_a_dead_letter_says_why_it_could_not_be_read(
    caplog: pytest.LogCaptureFixture, message: bool
) -> None:
    router = Router("shop")
    router.on(OrderPlaced)(pay)
    broken = Message(
        exchange="events",
        routing_key="order.placed",
        body=b'{"order_id": 1}',
        properties=Properties(type="order.placed", content_type="application/json"),
    )

    async with running(Bus("memory://", router, plugins=[DeadLetter(message=message)])) as probe:
        await probe.bus.send(broken)
        await eventually(lambda: "was given up on" in caplog.text, "it to be given up on")

    assert "order_id" in caplog.text
    assert "rabbitevents dlq" in caplog.text


async def test_a_subscription_that_takes_deliveries_again_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "FIRST_PAUSE", 0.01)
    router, mended = Router("shop"), asyncio.Event()

    @router.on(OrderPlaced, prefetch=2, concurrency=1)
    async def record(order: OrderPlaced) -> None:
        if not mended.is_set():
            raise LookupError

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"))
        await eventually(lambda: "takes nothing new" in caplog.text, "it to be full")
        mended.set()
        await eventually(lambda: "takes deliveries again" in caplog.text, "it to go on")


def test_the_command_line_shows_a_crash_without_a_word_to_the_terminal() -> None:
    shown = story(raised(LookupError("\x1b[2J\nrabbitevents: all is well")))

    assert shown.startswith("Traceback")
    assert shown.endswith("LookupError: \\x1b[2J\n    rabbitevents: all is well\n")

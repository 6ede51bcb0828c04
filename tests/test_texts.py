"""What strangers sent, and what exceptions say, made fit to be written; and which frames of a traceback are the user's."""

from __future__ import annotations

import pytest

from rabbitevents import ConfigurationError, Delivery, Properties, facts
from rabbitevents.arguments import seconds
from rabbitevents.texts import cut, name_of, printable, text_of, users_frames


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise LookupError


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("x"), "ValueError"),
        (UnspeakableError(), "tests.test_texts.UnspeakableError"),
        (ConfigurationError("x"), "rabbitevents.errors.ConfigurationError"),
        (type("E" * 300, (Exception,), {})(), f"{'tests.test_texts.' + 'E' * 300:.252}..."),
    ],
)
def test_an_exception_is_named_by_its_class_and_module(error: Exception, name: str) -> None:
    assert name_of(error) == name


def test_an_exception_that_cannot_say_its_text_has_one_all_the_same() -> None:
    assert text_of(UnspeakableError()) == "(LookupError in its __str__)"
    assert text_of(ValueError("said")) == "said"


def test_signs_that_show_nothing_or_move_a_terminal_are_escaped_and_lines_stay_where_that_is_wanted() -> None:
    assert printable("a\x1b[2J\n\t\u202e\u3164\udcff\ud800é") == r"a\x1b[2J\n\t\u202e\u3164\xff\ud800é"
    assert printable("a\n\tb\r", lines=True) == "a\n\tb\\r"


def test_a_text_is_cut_between_signs() -> None:
    assert cut("é" * 10, 20) == "é" * 10
    assert cut("é" * 11, 20) == "é" * 8 + "..."
    assert cut("\ud800", 10) == "\\ud800"


def test_the_frames_of_a_failure_begin_with_the_users() -> None:
    def theirs() -> None:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$") as raised:
        theirs()

    assert [frame.f_code.co_name for frame, _ in users_frames(raised.value)][-1] == "theirs"
    assert users_frames(ValueError()) == []


def test_of_a_failure_of_ours_alone_no_frame_is_the_users() -> None:
    with pytest.raises(ConfigurationError) as raised:
        seconds("a: time", "x")
    error = raised.value
    assert error.__traceback__ is not None

    error.__traceback__ = error.__traceback__.tb_next  # from where this test called it

    assert users_frames(error) == []


def test_a_delivery_is_told_from_every_other_one_by_its_place() -> None:
    one, other = (Delivery("q", tag, 1, False, "", "q", b"", Properties(message_id="same")) for tag in (7, 8))

    assert one.place == ("q", 1, 7)
    assert one.place != other.place


@pytest.mark.parametrize(
    ("address", "server"),
    [
        ("amqp://shop:5672/v", {"server.address": "shop", "server.port": 5672}),
        ("amqp://shop", {"server.address": "shop"}),
        ("memory://", {}),
    ],
)
def test_a_connection_says_where_its_broker_is(address: str, server: dict[str, str | int]) -> None:
    assert facts.Connected("publish", address, 0.0).server == server

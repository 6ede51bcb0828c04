"""What several processes write stays whole: lines, records of several lines, and whatever nobody reads for a while."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rabbitevents.cli import relay as room
from rabbitevents.cli.relay import Output, RecordFormatter, Relay
from tests.shop import eventually


@contextmanager
def relayed(stderr: int) -> Generator[Relay]:
    """A relay to a file of the test's."""
    relay = Relay(stdout=stderr, stderr=stderr)
    yield relay
    relay.close()


def pieces(relay: Relay, *written: bytes) -> threading.Thread:
    """Write in a thread, piece by piece, as a process whose pipe is full does."""
    ready = threading.Event()

    def write() -> None:
        with relay.pipes() as (_, stderr):
            ready.set()
            for piece in written:
                os.write(stderr, piece)

    thread = threading.Thread(target=write)
    thread.start()
    ready.wait(5)
    return thread


def test_lines_of_several_writers_do_not_mix_however_they_are_cut(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, relayed(log.fileno()) as relay:
        lines = {name: name.encode() * 20_000 + b"\n" for name in "abcd"}
        cut = {name: [line[at : at + 3_000] for at in range(0, len(line), 3_000)] * 30 for name, line in lines.items()}
        for thread in [pieces(relay, *each) for each in cut.values()]:
            thread.join()

    found = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    assert len(found) == 120
    assert set(found) == set(lines.values())


def test_a_record_of_several_lines_stays_together(tmp_path: Path) -> None:
    try:
        raise LookupError("nothing there")
    except LookupError:
        failure = sys.exc_info()
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "it failed", (), failure)
    text = RecordFormatter(1).format(record).encode() + b"\n"

    with (tmp_path / "log").open("wb") as log, relayed(log.fileno()) as relay:
        slow = pieces(relay, *(text[at : at + 1] for at in range(len(text))))
        other = pieces(relay, *[b"other\n"] * 500)
        slow.join()
        other.join()

    found = (tmp_path / "log").read_text().splitlines()
    at = next(number for number, line in enumerate(found) if "it failed" in line)
    assert text.count(b"\n") == 1
    assert found[at + 1] == "Traceback (most recent call last):"
    assert "other" not in found[at : at + text.count(b"\0") + 1]
    assert found[at + text.count(b"\0")] == "LookupError: nothing there"


def test_who_ends_in_the_middle_of_a_line_spoils_no_other(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, relayed(log.fileno()) as relay:
        pieces(relay, b"whole\nin the mid").join()
        pieces(relay, b"another\n").join()

    assert sorted((tmp_path / "log").read_text().splitlines()) == ["another", "in the mid", "whole"]


def test_a_line_without_an_end_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LONGEST", 100_000)
    with (tmp_path / "log").open("wb") as log, relayed(log.fileno()) as relay:
        pieces(relay, *[b"x" * 50_000] * 5, b"\n").join()

    found = (tmp_path / "log").read_bytes()
    assert found.count(b"x") == 250_000
    assert max(map(len, found.splitlines())) <= 100_000 + room.CHUNK


async def test_where_nobody_reads_processes_wait_and_nothing_is_lost_but_we_do_not_wait() -> None:
    ours, theirs = os.pipe()
    with relayed(theirs) as relay:
        writer = pieces(relay, *[b"y" * 999 + b"\n"] * 500)
        await eventually(lambda: relay.stuck, "the output to be stuck", 5)
        with relay.own_lines():
            sys.stderr.write("of our own\n")
        waits = writer.is_alive()

        os.close(theirs)
        reader = threading.Thread(target=lambda: got.append(_all(ours, relay)))
        got = list[bytes]()
        reader.start()
        writer.join(10)
        await eventually(lambda: not relay.stuck, "the output to flow", 5)
    for output in relay.outputs:
        os.close(output.descriptor)
    reader.join(10)

    lines = got[0].splitlines()
    assert waits
    assert lines.count(b"y" * 999) == 500
    assert lines.count(b"of our own") == 1


def _all(source: int, relay: Relay) -> bytes:
    with open(source, "rb") as pipe:
        return pipe.read()


def test_where_nobody_will_ever_read_processes_go_on(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with relayed(theirs) as relay:
        writer = pieces(relay, *[b"z" * 9_999 + b"\n"] * 100)
        writer.join(10)

    assert not writer.is_alive()
    os.close(theirs)


def test_a_file_that_is_closed_is_no_reason_not_to_run() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    os.close(theirs)

    Output(theirs).write(b"nobody sees this\n")

"""Dead letters as their users write them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import assert_type

from rabbitevents import Bus, Event, Message, Plugin, Router
from rabbitevents_deadletter import (
    DeadLetter,
    DeadLetterMessage,
    DeadLetters,
    EventProcessingFailed,
    Group,
    Lines,
    Result,
    Selection,
    Summary,
    read_lines,
)

plugins: Sequence[Plugin] = [DeadLetter(), DeadLetter(traceback=False, announce=True, message=False)]
kept: Plugin = DeadLetter(keep=timedelta(days=30), archive=Path("dead"))

router = Router("ops")


@router.on(EventProcessingFailed)
async def page(failed: Event[EventProcessingFailed]) -> None:
    """Tell somebody."""
    assert_type(failed.payload.attempts, int)
    assert_type(failed.payload.failed_at, datetime)


def progress(result: Result, letter: DeadLetterMessage | None) -> None:
    """Say how far it is."""


async def night_shift(bus: Bus, path: Path) -> None:
    """Do everything that can be done."""
    letters = DeadLetters(bus, "inventory.reserve", hold=100)
    summary = await letters.summary(by="error")
    assert_type(summary, Summary)
    assert_type(summary.groups, tuple[Group, ...])
    old = Selection(types=("order.*",), errors=("PaymentRefused",), older_than=timedelta(hours=2))
    for letter in await letters.find(old, limit=5):
        assert_type(letter, DeadLetterMessage)
        assert_type(letter.failed_at, datetime | None)
        assert_type(letter.body, bytes)
        assert_type(letter.replay(body=b"{}"), Message)
    assert_type(await letters.get("id"), DeadLetterMessage | None)
    result = await letters.replay(old, limit=10, rate=5, dry_run=True, bodies={"id": b"{}"}, watch=progress)
    assert_type(result, Result)
    with Lines(path) as lines:
        assert_type(await letters.export(lines, old), Result)
        assert_type(await letters.discard(old, lines=lines), Result)
    seen: set[bytes] = set()
    assert_type(await letters.look(old, take=lambda letter: seen.add(letter.digest())), Result)
    assert_type((await letters.replay(old, only=seen, to="inventory.keep")).partial, bool)
    assert_type(await letters.replay_exported(read_lines(path), rate=5), Result)

"""Dead letters on a terminal: tables, one letter in full, and what was done. Everything of strangers is made printable."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import accumulate
from textwrap import indent
from typing import Final

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from rabbitevents.texts import printable
from rabbitevents_deadletter.labels import LABELS
from rabbitevents_deadletter.letters import FAILED, GONE, UNKNOWN, DeadLetterMessage
from rabbitevents_deadletter.workbench import By, Result, Summary

BODY_SHOWN: Final = 65_536
DEPTH_SHOWN: Final = 100
"""How deep JSON may nest to be shown with indents: beyond, 64 KiB of brackets would become hundreds of megabytes."""
VALUE_SHOWN: Final = 2_048
"""How much of a body and of a header is shown, in bytes and signs; an export has all of it."""

WIDE_ROW: Final = 79
"""Columns that a line of sixteen bytes takes; where there are fewer, it has eight."""

_REASONS: Mapping[str, str] = {
    "rejected": "rejected: no copy with a label could be made, and the broker took it as it came",
    "delivery_limit": "given up on by the broker: it came back unsettled more often than its queue's delivery limit",
    "expired": "expired: it waited in its queue for longer than it was to live",
    "maxlen": "pushed out: its queue was full",
    GONE: "lost: its queue was gone when it came back from its wait (--to another one)",
    UNKNOWN: "unknown: neither the plugin nor the broker says how it came here",
}

HELD: Final = "what somebody else holds who looks at it, or replays it, was not seen"


def put(console: Console, *what: RenderableType) -> None:
    """Print tables and texts within the width of the terminal."""
    console.print(Group(*what), soft_wrap=False)


def tell(console: Console, *lines: str | Text) -> None:
    """Print lines: on a terminal broken between words, and whole for whoever else reads them."""
    for line in lines:
        console.print(line, soft_wrap=not console.is_terminal)


def summary(summaries: Iterable[Summary], by: By, width: int) -> Iterator[RenderableType]:
    """Yield the counts of several queues: as one table, or, where that is wider than ``width``, below each other."""
    columns = ("queue", *(name for name in ("error", "type") if by in ("", name)))
    rows = list(_counted(summaries, columns[1:]))
    heads = (*columns, "count", "oldest", "newest")
    across = sum(max(map(len, column)) for column in zip(heads, *rows, strict=True)) + 2 * (len(heads) - 1)
    if across > width:
        for *names, count, oldest, newest in rows:
            yield Text(names[0], overflow="fold", style="bold")
            for each in (*names[1:], f"{count}, {oldest} to {newest} old"):
                yield Text(f"  {each}", overflow="fold")
        return
    left = [Column(name, no_wrap=True) for name in columns]
    right = [Column(name, justify="right", no_wrap=True) for name in heads[len(columns) :]]
    table = Table(*left, *right, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))
    yield table


def _counted(summaries: Iterable[Summary], columns: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield for each group its queue, what it is counted by, how many there are, and how old they are."""
    now = datetime.now(UTC)
    for each in summaries:
        for group in each.groups:
            said = [each.queue, *(getattr(group, name) or "(unreadable)" for name in columns)]
            ages = age_of(group.oldest, now), age_of(group.newest, now)
            yield (*map(printable, said), f"{group.count:,}", *ages)


def letter_json(letter: DeadLetterMessage) -> str:
    """Return a letter as one line of JSON; a body that is none of itself is in base64."""
    said = {name: getattr(letter, name) for name in ("dead_queue", *letter.__struct_fields__) if name != "delivery"}
    said["headers"] = {name: value for name, value in letter.headers.items() if name not in LABELS}
    try:
        return as_json({**said, "body": json.loads(letter.body)})
    except (ValueError, RecursionError):
        return as_json({**said, "body_base64": letter.body})


def as_json(value: object) -> str:
    """Return a line of JSON, in ASCII, since texts of strangers are in it; numbers that are infinite or none are texts."""
    return json.dumps(json.loads(json.dumps(msgspec.to_builtins(value)), parse_constant=str))


def age_of(time: datetime | None, now: datetime) -> str:
    """Return how long ago something was, in its largest unit: ``5m``."""
    if time is None:
        return "-"
    seconds = max(0, int((now - time).total_seconds()))
    unit, size = next((u, s) for u, s in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)) if seconds >= s or s == 1)
    return f"{seconds // size:,}{unit}"


def time_of(time: datetime | None) -> str:
    """Return a time to the second, in UTC."""
    return "-" if time is None else time.strftime("%Y-%m-%d %H:%M:%SZ")


# --- one letter ----------------------------------------------------------------------------------------------------


def whole(letter: DeadLetterMessage, width: int) -> Iterator[RenderableType]:
    """Yield a letter in full, for so many columns: what it says of itself, its headers, where it failed, its body."""
    yield _rows(_facts(letter))
    if letter.traceback:
        yield _section("traceback", printable(letter.traceback, lines=True))
    headers = {f"  {name}": value for name, value in letter.headers.items() if name not in LABELS}
    if headers:
        yield Text("\nheaders", style="bold")
        yield _rows(headers)
    raw = letter.delivery.raw
    if letter.unreadable and isinstance(raw, bytes):
        yield _section(f"properties ({len(raw):,} bytes, unreadable)", excerpt(raw, VALUE_SHOWN, width))
    more = ""
    if letter.delivery.oversize:
        more = ", over the limit and not kept"
    elif letter.size > BODY_SHOWN:
        more = f", of which {BODY_SHOWN:,} are shown; an export has all of it"
    yield _section(f"body ({letter.size:,} bytes{more})", _body(letter.body, width))


def _facts(letter: DeadLetterMessage) -> dict[str, object]:
    """Return what a letter says of itself, by its names, without what it does not say."""
    said: dict[str, object] = {
        "queue": letter.dead_queue,
        "id": letter.id,
        "type": letter.type or "-",
        "reason": letter.error if letter.reason == FAILED else _REASONS.get(letter.reason, letter.reason),
        "message": letter.message,
        "failed at": time_of(letter.failed_at),
        "attempts": letter.attempts,
        "replayed": {0: "", 1: "once"}.get(letter.replayed, f"{letter.replayed} times"),
        "handler": letter.handler,
        "host": letter.host,
        "published": f"to {letter.exchange!r} with {letter.routing_key!r}",
        "trace": trace_of(letter),
        "unreadable": letter.unreadable,
    }
    properties = {} if letter.unreadable else msgspec.structs.asdict(letter.delivery.properties)
    said |= {name.replace("_", " "): properties[name] for name in properties if name not in _SAID}
    return {name: value for name, value in said.items() if value not in (None, "")}


def trace_of(letter: DeadLetterMessage) -> str:
    """Return the trace in which it failed, as one looks for it (in Jaeger, say); empty where its headers name none (W3C)."""
    said = (letter.headers.get(name) for name in ("previous-traceparent", "traceparent"))
    found = (_TRACEPARENT(value) for value in said if isinstance(value, str))
    return next((each[1] for each in found if each), "")


_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
_SAID: Final = ("headers", "type", "message_id")


def _rows(values: Mapping[str, object]) -> Table:
    """Return names and values as rows: text as it is, anything else as Python writes it."""
    columns = Column(overflow="fold", style="dim"), Column(overflow="fold")
    table = Table(*columns, box=None, pad_edge=False, show_header=False)
    for name, value in values.items():
        text = value if isinstance(value, str) else repr(value)
        more = f"... ({len(text):,} signs)" if len(text) > VALUE_SHOWN else ""
        table.add_row(Text(printable(name)), Text(printable(text[:VALUE_SHOWN], lines=name == "message") + more))
    return table


def _section(title: str, text: str) -> RenderableType:
    return Group(Text(f"\n{title}", style="bold"), Text(indent(text, "  "), overflow="fold"))


def _body(body: bytes, width: int) -> str:
    """Return a body to look at: JSON with indents, any other text escaped, anything else as a table of bytes."""
    # Indents of what is nested deep are many times the body; brackets in texts are counted too.
    depth = max(accumulate(1 if sign in b"[{" else -1 for sign in body if sign in b"[]{}"), default=0)
    if len(body) <= BODY_SHOWN and depth <= DEPTH_SHOWN:
        try:
            return printable(msgspec.json.format(body, indent=2).decode(), lines=True)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass  # it is no JSON, or none that can be read
    return excerpt(body, BODY_SHOWN, width)


def excerpt(data: bytes, limit: int, width: int) -> str:
    """Return the beginning of ``data``: as escaped text where it is mostly text, else as a table of bytes."""
    shown = data[:limit]
    text = shown.decode("utf-8", "surrogateescape")
    if sum(sign.isprintable() or sign in "\r\n\t" for sign in text) >= 0.8 * len(text):
        return printable(text, lines=True)
    row = 16 if width >= WIDE_ROW else 8
    return "\n".join(_row(shown[at : at + row], at, row) for at in range(0, len(shown), row))


def _row(data: bytes, at: int, row: int) -> str:
    """Return one line of a hex dump."""
    signs = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
    return f"{at:08x}  {data.hex(' '):<{3 * row - 1}}  {signs}"


# --- what was done -------------------------------------------------------------------------------------------------


def line_of(letter: DeadLetterMessage) -> Text:
    """Return a letter on one line."""
    words = (letter.dead_queue, letter.id, letter.type or "(unreadable)", letter.cause, time_of(letter.failed_at))
    return Text("  ".join(printable(word) for word in words))


def outcome(result: Result, done: str, *, broken_off: bool = False) -> Iterator[Text]:
    """Yield lines that say how far a pass came; ``done`` is the word for what was done ("replayed"; empty: nothing)."""
    parts: list[str] = []
    if done:
        parts.append(f"{result.meant if done.startswith('would') else result.done:,} {done}")
        if result.looked_at > result.meant:
            parts.append(f"{result.looked_at - result.meant:,} not meant")
    if result.unseen and (done or result.partial):
        gone = ", since somebody else has taken them, or looks at them" if result.ended == "gone" else ""
        why = ", since it was broken off" if broken_off else gone
        parts.append(f"{result.unseen:,} of {result.there:,} not looked at{why}")
    if result.others:
        parts.append(HELD)
    if parts:
        yield Text(f"{printable(result.queue)}: {', '.join(parts)}")
    for id, why in result.refused[:10]:
        yield Text(f"  {printable(id)} stays where it is: {printable(why)}")
    if result.failed > 10:
        yield Text(f"  and so do {result.failed - 10:,} more")

"""Dead letters on a terminal: tables, one letter in full, and what was done. Everything of strangers is made harmless."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from math import isfinite
from textwrap import indent
from typing import Any, Final, cast

import msgspec
from rich.console import Console, RenderableType
from rich.console import Group as Rows
from rich.table import Table
from rich.text import Text

from rabbitevents import HeaderValue
from rabbitevents_deadletter.harmless import excerpt, harmless
from rabbitevents_deadletter.labels import LABELS
from rabbitevents_deadletter.letters import FAILED, GONE, UNKNOWN, DeadLetterMessage
from rabbitevents_deadletter.results import By, Result, Summary

BODY_SHOWN: Final = 65_536
DEPTH_SHOWN: Final = 100
"""How deep JSON may nest to be shown with indents: beyond, 64 KiB of brackets would become hundreds of megabytes."""
VALUE_SHOWN: Final = 2_048
"""How much of a body and of a header is shown, in bytes and signs; an export has all of it."""

_REASONS: Mapping[str, str] = {
    "rejected": "rejected: no copy with a label could be made, and the broker took it as it came",
    "delivery_limit": "given up on by the broker: it came back unsettled more often than its queue's delivery limit",
    "expired": "expired: it waited in its queue for longer than it was to live",
    "maxlen": "pushed out: its queue was full",
    GONE: "lost: its queue was gone when it came back from its wait (--to another one)",
    UNKNOWN: "unknown: neither the plugin nor the broker says how it came here",
}


HELD: Final = "what somebody else holds who looks at it, or replays it, was not seen"


def put(console: Console, what: RenderableType) -> None:
    """Print a table, or several things, within the width of the terminal."""
    console.print(what, soft_wrap=False)


def summary_table(summaries: Iterable[Summary], by: By = "") -> Table:
    """Return the counts of several queues as one table."""
    columns = [name for name in ("error", "type") if by in ("", name)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("queue", *columns):
        table.add_column(name, overflow="fold")
    for name in ("count", "oldest", "newest"):
        table.add_column(name, justify="right", no_wrap=True)
    now = datetime.now(UTC)
    for summary in summaries:
        for group in summary.groups:
            names = [summary.queue, *(getattr(group, name) or "(unreadable)" for name in columns)]
            ages = age_of(group.oldest, now), age_of(group.newest, now)
            table.add_row(*(Text(harmless(name)) for name in names), f"{group.count:,}", *ages)
    return table


def summary_json(summaries: Sequence[Summary]) -> str:
    """Return the counts of several queues as one line of JSON, in ASCII: texts of strangers are in it."""
    return json.dumps(msgspec.to_builtins(summaries))


def letter_json(letter: DeadLetterMessage) -> str:
    """Return a letter as one line of JSON, in ASCII; a body that is none of itself is in base64."""
    said = {name: getattr(letter, name) for name in ("dead_queue", *letter.__struct_fields__) if name != "delivery"}
    try:
        body: dict[str, object] = {"body": _finite(json.loads(letter.body))}
    except (ValueError, RecursionError):
        body = {"body_base64": letter.body}
    headers = {name: value for name, value in letter.headers.items() if name not in LABELS}
    return json.dumps(msgspec.to_builtins({**said, "headers": _finite(headers), **body}))


def _finite(value: Any) -> Any:
    """Return a value with texts for what JSON has no word for: numbers that are infinite or none."""
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in cast("Mapping[str, Any]", value).items()}
    return [_finite(each) for each in cast("list[Any]", value)] if isinstance(value, (list, tuple)) else value


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


def whole(letter: DeadLetterMessage) -> Rows:
    """Return a letter in full: what it says of itself, its headers, where it failed, its body."""
    parts: list[RenderableType] = [_rows(_facts(letter))]
    if letter.traceback:
        parts += [_heading("traceback"), _block(harmless(letter.traceback, lines=True))]
    headers = {name: value for name, value in letter.headers.items() if name not in LABELS}
    if headers:
        rows = ((f"  {harmless(name)}", _shown(value)) for name, value in headers.items())
        parts += [_heading("headers"), _rows(rows)]
    if letter.unreadable:
        raw = letter.delivery.raw
        head = f"properties ({len(raw):,} bytes, unreadable)" if isinstance(raw, bytes) else "properties"
        parts += [_heading(head), _block(excerpt(raw, VALUE_SHOWN) if isinstance(raw, bytes) else "")]
    parts += [_heading(_body_heading(letter)), _block(_body(letter.body))]
    return Rows(*parts)


def _facts(letter: DeadLetterMessage) -> Iterator[tuple[str, str]]:
    yield "queue", harmless(letter.dead_queue)
    yield "id", harmless(letter.id)
    yield "type", harmless(letter.type) or "-"
    yield "reason", _reason(letter)
    if letter.message:
        yield "message", harmless(letter.message, lines=True)
    yield "failed at", time_of(letter.failed_at)
    if letter.attempts is not None:
        yield "attempts", str(letter.attempts)
    if letter.replayed:
        yield "replayed", "once" if letter.replayed == 1 else f"{letter.replayed} times"
    for name, value in (("handler", letter.handler), ("host", letter.host)):
        if value:
            yield name, harmless(value)
    yield "published", f"to {harmless(letter.exchange)!r} with {harmless(letter.routing_key)!r}"
    if letter.unreadable:
        yield "unreadable", harmless(letter.unreadable)
        return
    for name, value in msgspec.structs.asdict(letter.delivery.properties).items():
        if value is not None and name not in ("headers", "type", "message_id"):
            yield name.replace("_", " "), _shown(value)


def _reason(letter: DeadLetterMessage) -> str:
    if letter.reason == FAILED:
        return harmless(letter.error)
    return _REASONS.get(letter.reason, harmless(letter.reason))


def _shown(value: HeaderValue) -> str:
    """Return a header's value on one line: text as it is, anything else as Python writes it."""
    text = value if isinstance(value, str) else repr(value)
    more = f"... ({len(text):,} signs)" if len(text) > VALUE_SHOWN else ""
    return harmless(text[:VALUE_SHOWN]) + more


def _rows(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold", style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _block(text: str) -> Text:
    return Text(indent(text, "  "), overflow="fold")


def _body_heading(letter: DeadLetterMessage) -> str:
    if letter.delivery.oversize:
        return f"body ({letter.size:,} bytes, over the limit and not kept)"
    more = f", of which {BODY_SHOWN:,} are shown; an export has all of it" if letter.size > BODY_SHOWN else ""
    return f"body ({letter.size:,} bytes{more})"


def _body(body: bytes) -> str:
    """Return a body to look at: JSON with indents, any other text escaped, anything else as a table of bytes."""
    if len(body) <= BODY_SHOWN and _depth(body) <= DEPTH_SHOWN:
        try:
            return harmless(msgspec.json.format(body, indent=2).decode(), lines=True)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass  # it is no JSON, or none that can be read
    return excerpt(body, BODY_SHOWN)


def _depth(body: bytes) -> int:
    """Return how deep brackets nest, those in texts included: indents of what is nested deep are many times the body."""
    steps = (1 if sign in b"[{" else -1 for sign in body if sign in b"[]{}")
    return max(accumulate(steps), default=0)


# --- what was done -------------------------------------------------------------------------------------------------


def line_of(letter: DeadLetterMessage) -> Text:
    """Return a letter on one line."""
    words = (letter.dead_queue, letter.id, letter.type or "(unreadable)", letter.cause, time_of(letter.failed_at))
    return Text("  ".join(harmless(word) for word in words))


def outcome(result: Result, done: str, *, broken_off: bool = False) -> Iterator[Text]:
    """Yield lines that say how far a pass came; ``done`` is the word for what was done ("replayed"; empty: nothing)."""
    number = result.meant if done.startswith("would") else result.done
    parts = [f"{number:,} {done}"] if done else []
    if result.looked_at > result.meant and done:
        parts.append(f"{result.looked_at - result.meant:,} not meant")
    if result.unseen and (done or result.partial):
        gone = ", since somebody else has taken them, or looks at them" if result.ended == "gone" else ""
        why = ", since it was broken off" if broken_off else gone
        parts.append(f"{result.unseen:,} of {result.there:,} not looked at{why}")
    if result.others:
        parts.append(HELD)
    if parts:
        yield Text(f"{harmless(result.queue)}: {', '.join(parts)}")
    for id, why in result.refused[:10]:
        yield Text(f"  {harmless(id)} stays where it is: {harmless(why)}")
    if result.failed > 10:
        yield Text(f"  and so do {result.failed - 10:,} more")


def not_found(ids: Sequence[str], seen: Iterable[str]) -> list[str]:
    """Return those of ``ids`` that no letter had that was seen, to be shown."""
    there = {word for each in seen for word in (each.lower(), harmless(each).lower())}
    return [harmless(id) for id in ids if id.lower() not in there]

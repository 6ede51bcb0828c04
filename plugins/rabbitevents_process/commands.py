"""``rabbitevents process``: which processes run, and how one of them stands."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from rabbitevents.cli import BusCommands, BusReference, load_bus, out, run, say
from rabbitevents.texts import cut, printable
from rabbitevents_process.looking import Lookout, Seen

NOT_FOUND: Final = 1
"""The exit code where a process that was asked for is not there."""

STATE_SHOWN: Final = 4_096
"""How much of a state is shown, in characters."""

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def _age(_ctx: click.Context, _option: click.Parameter, value: str) -> timedelta:
    """Return a time span that was said as ``90s``, ``10m``, ``2h`` or ``7d``."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", value.strip())
    if found is None:
        raise click.BadParameter(f"{value[:40]!r} is no time: say 90s, 10m, 2h or 7d")
    return timedelta(seconds=int(found[1]) * dict(_UNITS)[found[2]])


@click.group(
    cls=BusCommands,
    epilog="""\b
Examples:
  rabbitevents process list shop.order:bus
  rabbitevents process list shop.order:bus --older 1d
  rabbitevents process show shop.order:bus fulfilment o-42""",
)
def process() -> None:
    """Look at the processes of a bus: which run, and what they wait for.

    It works on the database alone; no broker is needed.
    """


@process.command("list")
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@click.option("--name", "names", multiple=True, help="Only this process; as often as you like.")
@click.option(
    "--older",
    metavar="AGE",
    callback=_age,
    default="0s",
    help="Unchanged for so long: 90s, 10m, 2h, 7d. By default, all.",
)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Write them as JSON.")
def list_(reference: str, names: tuple[str, ...], older: timedelta, limit: int, as_json: bool) -> int:
    """List those that run, what was touched longest ago first."""
    found = run(Lookout(load_bus(reference), reference).running(names, older, limit + 1))
    there = found[:limit]
    if as_json:
        click.echo(json.dumps([each.as_json() for each in there]))
    elif not there:
        out.print("no process runs" if not older else "no process has stood still for so long")
    else:
        _print(there)
    if len(found) > limit:
        say.print(f"and more: --limit {limit * 10} shows more of them")
    return 0


def _print(there: list[Seen]) -> None:
    words = [Column(name, overflow="fold") for name in ("process", "key")]
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("started", "unchanged")]
    grid = Table(*words, *numbers, Column("waits for"), box=None, pad_edge=False, header_style="bold")
    for each in there:
        grid.add_row(
            Text(printable(each.process)),
            Text(printable(each.key)),
            f"{_span(each.started_at)} ago",
            _span(each.changed_at),
            Text(_waiting(each)),
        )
    out.print(Group(grid), soft_wrap=False)


@process.command()
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@click.argument("name")
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="Write it as JSON.")
def show(reference: str, name: str, key: str, as_json: bool) -> int:
    """Show process NAME of KEY in full, be it that it has ended."""
    found = run(Lookout(load_bus(reference), reference).one(name, key))
    if found is None:
        say.print(
            f"there is no process {printable(name)} of {printable(cut(key, 80))}: it never began, or ended long ago"
        )
        return NOT_FOUND
    if as_json:
        click.echo(json.dumps(found.as_json()))
        return 0
    grid = Table(
        Column(no_wrap=True, style="bold"), Column(overflow="fold"), box=None, pad_edge=False, show_header=False
    )
    for label, value in _lines(found):
        grid.add_row(label, Text(value))
    out.print(Group(grid), soft_wrap=False)
    return 0


def _lines(found: Seen) -> list[tuple[str, str]]:
    state = json.dumps(found.state, indent=2, ensure_ascii=False) if found.state is not None else "none"
    return [
        ("process", printable(found.process)),
        ("key", printable(found.key)),
        ("started", f"{found.started_at:%Y-%m-%d %H:%M:%S} UTC, {_span(found.started_at)} ago"),
        ("changed", f"{found.changed_at:%Y-%m-%d %H:%M:%S} UTC, {_span(found.changed_at)} ago"),
        *([] if found.done_at is None else [("ended", f"{found.done_at:%Y-%m-%d %H:%M:%S} UTC")]),
        ("waits for", _waiting(found) or "nothing"),
        (f"state (v{found.version})", "\n".join(map(printable, cut(state, STATE_SHOWN).split("\n")))),
    ]


def _waiting(found: Seen) -> str:
    """Say what it waits for, and how long still."""
    soon = sorted(found.timeouts.items(), key=lambda each: each[1])
    return printable(", ".join(f"{name} {_until(due)}" for name, due in soon))


def _until(due: datetime) -> str:
    left = due - datetime.now(UTC)
    return f"in {_words(left)}" if left > timedelta(0) else f"due {_words(-left)} ago"


def _span(moment: datetime) -> str:
    return _words(datetime.now(UTC) - moment)


def _words(span: timedelta) -> str:
    seconds = max(0, int(span.total_seconds()))
    for unit, size in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"

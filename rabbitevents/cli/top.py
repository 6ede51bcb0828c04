"""``rabbitevents top``: what comes to the handlers of a bus and what they get done, as it goes."""

from __future__ import annotations

import asyncio
import json
import sys
import termios
import time
import tty
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final

import click
import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rabbitevents import BrokerError, Bus
from rabbitevents.brokers.rabbitmq.site import Site
from rabbitevents.cli.console import one_line, out
from rabbitevents.cli.layout import hanging, width_of
from rabbitevents.cli.loop import run
from rabbitevents.cli.reference import BusReference, load_bus
from rabbitevents.cli.seeing import HTTP, http_url
from rabbitevents.operations.doctor import named, processes
from rabbitevents.operations.glance import RATES, Glance, Row, Watch
from rabbitevents.operations.planning import at_work

NARROW: Final = 72
"""Columns below which the less needed figures are left out."""

ORDERS: Final[tuple[tuple[str, Callable[[Row], tuple[float, str]]], ...]] = (
    ("as in the code", lambda row: (0, "")),
    ("by name", lambda row: (0, row.queue)),
    ("by ready", lambda row: (-(row.ready or 0), row.queue)),
    ("by lag", lambda row: (-(row.lag or 0), row.queue)),
)
"""What the key s goes through."""


@click.command(
    epilog="""\b
Examples:
  rabbitevents top shop.inventory:bus
  rabbitevents top shop.inventory:bus --once
  rabbitevents top shop.inventory:bus --once --json"""
)
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@HTTP
@click.option("--health", metavar="URL", multiple=True, help="Ask a process of the service what it holds, or several.")
@click.option("--once", is_flag=True, help="Print it once. Where no terminal reads it, so it is.")
@click.option("--json", "as_json", is_flag=True, help="Write it once, as JSON, in a form that stays.")
@click.option(
    "--every", metavar="S", type=click.FloatRange(1), default=RATES, show_default=True, help="Look every S seconds."
)
def top(reference: str, http: str | None, health: tuple[str, ...], once: bool, as_json: bool, every: float) -> None:
    """Watch the queues of a bus.

    Each look is one question to RabbitMQ's management API, whose figures are
    made every 5 s. Without it, AMQP says what is ready, and who consumes. s
    sorts, q leaves. Nothing is changed.
    """
    bus, told, sites = load_bus(reference), http_url(http), processes(health)
    if once or as_json or not (out.is_terminal and sys.stdin.isatty()):
        found = run(_once(bus, told, sites))
        if as_json:
            click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
        else:
            out.print(table(found, width_of(out), held=bool(sites)))
        return
    run(_live(bus, told, every, sites))


async def _once(bus: Bus, http: str | None, sites: Sequence[Site]) -> Glance:
    async with at_work(bus, http) as site:
        return await Watch(bus, site.management, site.visitor, named(site.visit), sites).glance(time.monotonic())


async def _live(bus: Bus, http: str | None, every: float, sites: Sequence[Site]) -> None:
    loop, leave, turn, order = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event(), 0

    def pressed() -> None:
        nonlocal order
        key = sys.stdin.read(1)
        if key in ("q", "\x04"):
            leave.set()
        elif key == "s":
            order = (order + 1) % len(ORDERS)
        turn.set()

    async with at_work(bus, http) as site:
        watch = Watch(bus, site.management, site.visitor, named(site.visit), sites)
        with _keys(), Live(console=out, screen=True, auto_refresh=False) as live:
            loop.add_reader(sys.stdin, pressed)
            try:
                found, looked = await watch.glance(time.monotonic()), loop.time()
                while not leave.is_set():
                    shown = table(_sorted(found, order), width_of(out), hint=ORDERS[order][0], held=bool(sites))
                    live.update(shown, refresh=True)
                    turn.clear()
                    try:
                        async with asyncio.timeout_at(looked + every):
                            await turn.wait()
                    except TimeoutError:
                        found, looked = await _again(watch, found), loop.time()
            finally:
                loop.remove_reader(sys.stdin)


async def _again(watch: Watch, before: Glance) -> Glance:
    """Look again; a broker that is away leaves what was seen last, and says so."""
    try:
        return await watch.glance(time.monotonic())
    except BrokerError as error:
        return msgspec.structs.replace(before, problem=f"as of before: {error}")


@contextmanager
def _keys() -> Generator[None]:
    """Have keys as they are pressed, and not by the line."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _sorted(found: Glance, order: int) -> Glance:
    return msgspec.structs.replace(found, rows=tuple(sorted(found.rows, key=ORDERS[order][1])))


# --- what is shown ---------------------------------------------------------------------------------------------------


def table(found: Glance, width: int, *, hint: str = "", held: bool = False) -> RenderableType:
    """Return a glance as a table, within ``width`` columns; ``held``: with what processes hold, since they were asked."""
    narrow = width < NARROW
    told: tuple[str, ...] = ("IN/S", "OUT/S", "READY", "HELD", "DEAD") if narrow else _HEADS
    heads = [head for head in told if held or head != "HELD"]
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False, width=width if narrow else None)
    shown.add_column("QUEUE", overflow="fold", style="bold")
    for head in heads:
        shown.add_column(head, justify="right", no_wrap=True)
    for each in found.rows:
        figures: dict[str, str] = dict(zip(_HEADS, _figures(each), strict=True))
        shown.add_row(each.queue, *(figures[head] for head in heads))
    over = f"{found.bus} on {found.broker}, vhost {found.vhost}, {time.strftime('%H:%M:%S')}"
    under = f"waiting {_whole(found.waiting)}, lost {_whole(found.lost)}, stuck {_whole(found.stuck)}"
    lines = [
        *hanging(Text(), one_line(over), width, indent=2),
        shown,
        *hanging(Text(), under, width, indent=2),
        *(hanging(Text(), one_line(f"not seen: {found.problem}"), width, indent=2) if found.problem else ()),
        *(hanging(Text(), f"s sorts ({hint}), q leaves", width, indent=2) if hint else ()),
    ]
    return Group(*lines)


_HEADS: Final[tuple[str, ...]] = ("IN/S", "OUT/S", "READY", "UNACKED", "HELD", "DEAD", "CONSUMERS", "LAG")


def _figures(row: Row) -> tuple[str, ...]:
    lag = "-" if row.lag is None else f"{row.lag:,.0f} s"
    return (
        _rate(row.came),
        _rate(row.handled),
        _whole(row.ready),
        _whole(row.unacked),
        _whole(row.held),
        _whole(row.dead),
        _whole(row.consumers),
        f"{lag} +" if row.grows else lag,
    )


def _rate(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}" if number >= 10 or number == 0 else f"{number:.1f}"


def _whole(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"

"""``rabbitevents topology migrate``, ``remove`` and ``move``: what changes a queue that stands."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Final

import click
from rich.text import Text

from rabbitevents import BrokerError, Bus, ConfigurationError
from rabbitevents.cli.codes import CRASHED
from rabbitevents.cli.console import one_line, out, say
from rabbitevents.cli.loop import run
from rabbitevents.cli.reference import BusReference, load_bus
from rabbitevents.cli.seeing import HTTP, http_url
from rabbitevents.cli.topology.group import YES, confirm, topology
from rabbitevents.operations.moving.acting import Done, migrate
from rabbitevents.operations.moving.beforehand import Outlook, outlook
from rabbitevents.operations.moving.contents import move
from rabbitevents.operations.moving.emptiness import NotEmptyError, Waiting
from rabbitevents.operations.moving.removing import Removal, removal, remove
from rabbitevents.operations.moving.renaming import Renaming
from rabbitevents.operations.moving.resizing import Resizing
from rabbitevents.operations.planning import at_work
from rabbitevents.partitions import counted
from rabbitevents.topology import Queue

WITHIN: Final = 600.0
"""Seconds that consumers have by default to empty a queue."""

PATIENCE: Final = 120.0
"""Seconds without any progress after which a broker that is away is given up."""

_QUESTIONS: Final[dict[type, str]] = {Queue: "Make it anew?", Renaming: "Rename it?", Resizing: "Lead over?"}

AGAIN: Final = 2.0
"""Seconds before the next try."""


@topology.command("migrate")
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@click.argument("queue", metavar="QUEUE")
@HTTP
@click.option(
    "--within",
    metavar="S",
    type=click.FloatRange(min=1),
    default=WITHIN,
    show_default=True,
    help="Give up when its consumers have not emptied it after S seconds.",
)
@YES
def migrate_(reference: str, queue: str, http: str | None, within: float, yes: bool) -> int:
    """Make a handler's queue anew, with the arguments, name or partitions of the code.

    A queue is given the name that it has in the code where that says what it
    was called before: @router.on(..., was="shop.charge"). Of a handler that has
    another number of partitions in the code, or is to have any, or none any more,
    QUEUE is the name without a number: the code of before empties what it has,
    and then the new ones are consumed.

    Publishers and all other handlers go on; this one goes on too, and stands
    still for one or two short waits. Events keep their order, and none is lost or
    handled twice. Its consumers must be of this version of the library, and
    they empty the queue. Broken off anywhere, run it again.
    """
    bus, told = load_bus(reference), http_url(http)
    found = run(_outlook(bus, told, queue))
    if not found.differs and not found.going_on:
        out.print(f"{found.queue} is as the bus wants it")
        return 0
    for text in _about(found):
        out.print(one_line(text))
    if not yes:
        confirm("Go on?" if found.going_on else _QUESTIONS[type(found.wanted)])
    return run(_migrated(bus, told, found, within))


async def _outlook(bus: Bus, http: str | None, queue: str) -> Outlook:
    async with at_work(bus, http) as site:
        return await outlook(site, queue)


def _about(found: Outlook) -> list[str]:
    name = found.queue
    waiting = f"{name}.moving" if isinstance(found.wanted, Queue) else found.wanted.name
    lines = [f"{name}: {found.differs or 'is being made anew'}{f'; {found.depth}' if found.depth else ''}"]
    if found.going_on:
        lines.append("somebody has begun, and this goes on with it")
    else:
        lines.append(f"events wait in {waiting} meanwhile")
    if found.otherwise:
        lines.append(
            f"other code than this consumes it, at {', '.join(found.otherwise)}: if that wants it otherwise, it stands still "
            "afterwards; deploy this code first"
        )
    return lines


async def _migrated(bus: Bus, http: str | None, found: Outlook, within: float) -> int:
    """Do it to the end, also where the broker is away meanwhile."""
    began, lost, progress = time.monotonic(), 0, time.monotonic()
    while True:
        try:
            async with at_work(bus, http) as site, aclosing(migrate(site, found.wanted, within=within)) as steps:
                async for each in steps:
                    progress = time.monotonic()
                    lost += _shown(each)
            break
        except NotEmptyError:
            raise
        except BrokerError as error:
            if time.monotonic() - progress > PATIENCE:
                raise
            tell(f"{error}; goes on when it can")
            await asyncio.sleep(AGAIN)
    put(f"done: {time.monotonic() - began:.0f} s, {lost} lost")
    if isinstance(found.wanted, Renaming):
        put(f"start the service anew; then move what is in {found.queue}.dead, and remove that: plan says how")
    if isinstance(found.wanted, Resizing):
        what = counted(found.wanted.total)
        put(f"start the service with {what} now: nobody else consumes what is new, and its events wait")
    return CRASHED if lost else 0


def _shown(each: Done | Waiting) -> int:
    """Show what was done, or what is waited for; return how many messages are gone."""
    if isinstance(each, Waiting):
        tell(f"waits until {each.queue} is empty: {each}")
        return 0
    put(each.step.what + (f"; {each.lost} messages were in it, and are gone" if each.lost else ""))
    return each.lost


@topology.command("remove")
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@click.argument("queue", metavar="QUEUE")
@HTTP
@YES
def remove_(reference: str, queue: str, http: str | None, yes: bool) -> int:
    """Delete a queue of a handler that is gone, once nothing is in it.

    Its name must begin as the bus's queues do, and no handler may have it, and
    nobody consume it. What leads to it is unbound first, and printed: that is
    the way back. A queue with anything in it is not deleted.
    """
    bus, told = load_bus(reference), http_url(http)
    found = run(_removal(bus, told, queue, reference))
    for link in found.links:
        out.print(one_line(f"bound to {link.source} by {link.key!r}"))
    if not yes:
        confirm(f"Unbind {queue}, and delete it?")
    run(_removed(bus, told, found))
    return 0


async def _removal(bus: Bus, http: str | None, queue: str, reference: str) -> Removal:
    async with at_work(bus, http) as site:
        try:
            return await removal(site, queue)
        except ConfigurationError as error:
            raise ConfigurationError(str(error).replace("MODULE:BUS", reference)) from error


async def _removed(bus: Bus, http: str | None, found: Removal) -> None:
    async with at_work(bus, http) as site, aclosing(remove(site, found)) as steps:
        async for each in steps:
            put(each)


@topology.command("move")
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@YES
def move_(reference: str, source: str, target: str, yes: bool) -> int:
    """Move what is ready in one queue into another, in its order.

    Nobody may consume the first one. Each message is confirmed in the second
    before it is taken out of the first: broken off at any moment, nothing is
    lost, and up to 400 may be in both.
    """
    bus = load_bus(reference)
    if source == target:
        raise click.UsageError("FROM and TO are one queue")
    if not yes:
        confirm(f"Move what is in {source} to {target}?")
    put(f"done: {run(_moved(bus, source, target)):,} moved")
    return 0


async def _moved(bus: Bus, source: str, target: str) -> int:
    said, moved = time.monotonic(), 0
    async with aclosing(move(bus, source, target)) as numbers:
        async for moved in numbers:
            if time.monotonic() - said > 1:
                said = time.monotonic()
                tell(f"{moved:,} moved")
    return moved


def put(text: str) -> None:
    """Say what was done, and when."""
    out.print(Text(f"{time.strftime('%H:%M:%S')}  {one_line(text)}"))


def tell(text: str) -> None:
    """Say what is waited for."""
    say.print(Text(f"{time.strftime('%H:%M:%S')}  {one_line(text)}", "dim"))

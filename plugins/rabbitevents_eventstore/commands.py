"""``rabbitevents projection``: look at projections, stop them, let them go on, and make them anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from functools import wraps
from time import monotonic
from typing import Any, Final, TypeVar
from uuid import UUID

import click
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from rabbitevents import Bus, ConfigurationError
from rabbitevents.cli import BusCommands, BusReference, load_bus, out, run, say
from rabbitevents.texts import cut, printable
from rabbitevents_eventstore.checkpoints import PAUSED, RUNNING, STOPPED, Checkpoint, Status, standing
from rabbitevents_eventstore.projections import Projections
from rabbitevents_eventstore.rebuilding import Progress, RebuildError
from rabbitevents_sql import AWAY, reason, where

T = TypeVar("T")

NOT_DONE: Final = 1
"""The exit code where a projection was not as it would have to be."""

LINES: Final = 5.0
"""Seconds between two lines of how far a rebuild is, where no terminal shows a bar."""


def _projections_of(bus: Bus, reference: str) -> Projections:
    for plugin in bus.plugins:
        if isinstance(plugin, Projections):
            return plugin
    raise ConfigurationError(f"{reference} has no Projections(store, [...]) among its plugins")


def _asked(projections: Projections, asking: Coroutine[Any, Any, T]) -> T:
    """Run what asks the database, and leave that."""

    async def ask() -> T:
        try:
            return await asking
        except AWAY as error:
            engine = projections.store.engine
            raise ConfigurationError(f"the projections in {where(engine)}: {reason(error)}") from error
        finally:
            await projections.store.engine.dispose()

    return run(ask())


def _of_bus(command: Callable[..., int]) -> Callable[..., int]:
    """Let a command be told the bus; it gets what that has of projections."""

    @click.argument("reference", metavar="MODULE:BUS", type=BusReference())
    @wraps(command)
    def told(reference: str, **rest: Any) -> int:
        return command(_projections_of(load_bus(reference), reference), **rest)

    return told


@click.group(
    cls=BusCommands,
    epilog="""\b
Examples:
  rabbitevents projection list shop.order:bus
  rabbitevents projection pause shop.order:bus order_summary
  rabbitevents projection skip shop.order:bus order_summary 0198c0de-5f0e-7cc1-9c0f-0d5f5b1b2a3c
  rabbitevents projection rebuild shop.order:bus order_summary""",
)
def projection() -> None:
    """Look at projections, stop them, let them go on, and make them anew.

    It works on the database alone; no broker is needed.
    """


# --- looking -------------------------------------------------------------------------------------------------------


@projection.command("list")
@_of_bus
@click.option("--json", "as_json", is_flag=True, help="Write it as JSON.")
def list_(projections: Projections, as_json: bool) -> int:
    """Say of each projection how far it is, and what it does."""
    last, found = _asked(projections, _looked(projections))
    versions = {each.name: each.version for each in projections.projections}
    known = {each.name for each in found}
    if as_json:
        click.echo(json.dumps([_as_json(each, last) for each in found]))
        return 0
    names = [Column(name, overflow="fold") for name in ("projection", "status")]
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("version", "position", "behind")]
    grid = Table(*names, *numbers, box=None, pad_edge=False, header_style="bold")
    for each in found:
        told = (f"{each.version}", f"{each.position:,}", f"{max(0, last - each.position):,}")
        grid.add_row(each.name, Text(printable(cut(_doing(each, versions.get(each.name)), 400))), *told)
    for name in sorted(versions.keys() - known):
        grid.add_row(name, "has never run", str(versions[name]), "0", f"{last:,}")
    out.print(grid, soft_wrap=False)
    return 0


async def _looked(projections: Projections) -> tuple[int, list[Checkpoint]]:
    watermark = projections.store.watermark
    await watermark.look()
    return watermark.last, await projections.checkpoints.read()


def _doing(each: Checkpoint, version: int | None) -> str:
    if each.building:
        return "is being built" if each.is_held else "was being built by a process that is gone"
    trouble = standing(each, each.version if version is None else version)
    return trouble or ("running" if each.is_held else "runs nowhere")


def _as_json(each: Checkpoint, last: int) -> dict[str, Any]:
    return {
        "name": each.name,
        "version": each.version,
        "building": each.building,
        "status": each.status,
        "position": each.position,
        "last": last,
        "held": each.is_held,
        "failed_event": None if each.failed_event is None else str(each.failed_event),
        "error": each.error,
    }


# --- turning -------------------------------------------------------------------------------------------------------


@projection.command()
@_of_bus
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def pause(projections: Projections, names: tuple[str, ...]) -> int:
    """Let projections stand, after what is under way."""
    return _turned(projections, names, RUNNING, PAUSED)


@projection.command()
@_of_bus
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def resume(projections: Projections, names: tuple[str, ...]) -> int:
    """Let projections go on that were paused."""
    return _turned(projections, names, PAUSED, RUNNING)


@projection.command()
@_of_bus
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def retry(projections: Projections, names: tuple[str, ...]) -> int:
    """Let projections go on with the event that has stopped them."""
    return _turned(projections, names, STOPPED, RUNNING)


def _turned(projections: Projections, names: tuple[str, ...], old: Status, new: Status) -> int:
    for name in names:
        projections.named(name)

    async def turn() -> list[tuple[str, bool]]:
        return [(name, await projections.checkpoints.turn(name, old, new)) for name in names]

    done = _asked(projections, turn())
    for name, is_done in done:
        if is_done:
            out.print(f"{name} is {new}")
        else:
            say.print(f"{name} is not {old}: `rabbitevents projection list` says what it does")
    return 0 if all(is_done for _, is_done in done) else NOT_DONE


@projection.command()
@_of_bus
@click.argument("name")
@click.argument("event", metavar="EVENT_ID", type=click.UUID)
def skip(projections: Projections, name: str, event: UUID) -> int:
    """Let a projection leave out the event that has stopped it, and go on."""
    projections.named(name)
    if _asked(projections, projections.checkpoints.skip(name, event)):
        out.print(f"{name} goes on behind event {event}")
        return 0
    say.print(f"event {event} has not stopped {name}: `rabbitevents projection list` says which one has")
    return NOT_DONE


# --- making anew ---------------------------------------------------------------------------------------------------


@projection.command()
@_of_bus
@click.argument("name")
@click.option("--skip", "skipped", metavar="EVENT_ID", type=click.UUID, multiple=True, help="Leave this event out.")
@click.option("--json", "as_json", is_flag=True, help="Write what was done as JSON.")
def rebuild(projections: Projections, name: str, skipped: tuple[UUID, ...], as_json: bool) -> int:
    """Make a projection anew from all events, beside the one that is read.

    What is read stays as it is, and goes on, until both change places in one
    transaction. It may be broken off at any time.
    """
    projections.named(name)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[said]}")
    with Bar(*columns, console=say, transient=True, disable=not say.is_terminal) as bar:
        telling = _Telling(bar, name)
        try:
            done = _asked(projections, projections.rebuild(name, skip=skipped, tell=telling))
        except RebuildError as error:
            say.print(printable(str(error)))
            return NOT_DONE
    if as_json:
        told = {"name": name, "version": done.version, "position": done.position, "seconds": round(done.seconds, 3)}
        click.echo(json.dumps(told))
    else:
        out.print(f"{name} version {done.version} is live, at position {done.position:,}, after {done.seconds:.1f} s")
    return 0


class _Telling:
    """Says how far a rebuild is: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, bar: Bar, name: str) -> None:
        self._bar = bar
        self._task = bar.add_task(name, total=None, said="")
        self._due = monotonic() + LINES

    def __call__(self, progress: Progress) -> None:
        said = f"{progress.rate:,.0f}/s, {progress.remaining:,.0f} s to go"
        self._bar.update(self._task, completed=progress.position, total=progress.last, said=said)
        if self._bar.disable and monotonic() >= self._due:
            self._due = monotonic() + LINES
            say.print(f"{progress.projection}: {progress.position:,} of {progress.last:,}, {said}")

"""``rabbitevents relay``, ``rabbitevents outbox`` and ``rabbitevents sql``."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Final

import click
from rich.console import Group
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rabbitevents import Bus, ConfigurationError
from rabbitevents.cli import BusCommands, BusReference, load_bus, out, run, say, serving, serving_options
from rabbitevents.texts import cut, printable
from rabbitevents_outbox.bench import Bench, Kept, Which
from rabbitevents_outbox.outbox import Outbox
from rabbitevents_outbox.tables import Tables

NOT_FOUND: Final = 1
"""The exit code where a row that was asked for by its number is not there."""

BODY_SHOWN: Final = 2_048
"""How much of a body is shown, in bytes."""


def _outbox_of(bus: Bus, reference: str) -> Outbox:
    for plugin in bus.plugins:
        if isinstance(plugin, Outbox):
            return plugin
    raise ConfigurationError(f"{reference} has no Outbox() among its plugins")


# --- relay ---------------------------------------------------------------------------------------------------------


@click.command(
    epilog="""\b
Examples:
  rabbitevents relay shop.order:bus                 send what that bus's outbox holds
  rabbitevents relay shop.order:bus --health 8080   and answer for it over HTTP"""
)
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@serving_options
@click.pass_context
def relay(ctx: click.Context, /, reference: str, **told: Any) -> None:
    """Send what the outbox of MODULE:BUS holds, until SIGTERM or Ctrl-C.

    It handles no events: the bus runs without its routers. Any number may run,
    beside services whose own buses relay too: one at a time sends, and another
    one takes over when it is gone.
    """
    bus = load_bus(reference)
    outbox = _outbox_of(bus, reference)
    if not outbox.relays:
        raise ConfigurationError(
            f"{reference} has Outbox(relay=False), which only writes: name a bus whose outbox relays"
        )
    watching = [plugin for plugin in bus.plugins if plugin.role in ("trace", "metrics")]
    serving(ctx, bus.sibling(routers=(), plugins=[*watching, outbox]), **told)


# --- outbox --------------------------------------------------------------------------------------------------------


@click.group(
    cls=BusCommands,
    epilog="""\b
Examples:
  rabbitevents outbox list shop.order:bus
  rabbitevents outbox show shop.order:bus 4711
  rabbitevents outbox retry shop.order:bus --dead
  rabbitevents outbox list --database postgresql+asyncpg://localhost/shop""",
)
def outbox() -> None:
    """Look at what an outbox holds, and send again or give up what is dead.

    It works on the database alone; no broker is needed.
    """


def _at(command: Callable[..., int]) -> Callable[..., int]:
    """Let a command be told where the rows are."""

    @click.argument("reference", metavar="[MODULE:BUS]", required=False, type=BusReference())
    @click.option(
        "--database", metavar="URL", envvar="DATABASE_URL", help="Where the tables are, in place of MODULE:BUS."
    )
    @click.option("--prefix", default="rabbitevents_", show_default=True, help="What the tables' names begin with.")
    @click.option("--schema", help="The PostgreSQL schema that they are in.")
    @wraps(command)
    def told(reference: str | None, database: str | None, prefix: str, schema: str | None, **rest: Any) -> int:
        if reference is not None:
            bench = Bench.of(_outbox_of(load_bus(reference), reference))
        elif database is not None:
            bench = Bench(_engine(database), Tables(prefix, schema=schema))
        else:
            raise click.UsageError("say MODULE:BUS, or --database URL")
        return command(bench, **rest)

    return told


def _engine(url: str) -> AsyncEngine:
    try:
        return create_async_engine(url)
    except (SQLAlchemyError, ImportError) as error:
        raise ConfigurationError(
            f"--database: {error}; say an async URL of SQLAlchemy, such as postgresql+asyncpg://localhost/shop"
        ) from error


def _those(command: Callable[..., int]) -> Callable[..., int]:
    """Let a command be told which rows are meant."""

    @click.argument("ids", metavar="[ID]...", type=int, nargs=-1)
    @click.option("--dead", is_flag=True, help="All dead rows.")
    @click.option("--type", "kind", metavar="TYPE", help="Only those of this event type.")
    @wraps(command)
    def told(bench: Bench, ids: tuple[int, ...], dead: bool, kind: str | None, **rest: Any) -> int:
        if not ids and not dead:
            raise click.UsageError("say which rows: their numbers, or --dead")
        return command(bench, Which(ids, dead, kind), **rest)

    return told


@outbox.command("list")
@_at
@click.option("--json", "as_json", is_flag=True, help="Write the counts as JSON.")
def list_(bench: Bench, as_json: bool) -> int:
    """Count the rows that are still to be sent, by type and error."""
    found = run(bench.groups())
    if as_json:
        click.echo(json.dumps([each.as_json() for each in found]))
        return 0
    if not found:
        out.print("nothing is to be sent")
        return 0
    names = [Column(name, overflow="fold") for name in ("type", "state", "error")]
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("count", "oldest", "first row")]
    grid = Grid(*names, *numbers, box=None, pad_edge=False, header_style="bold")
    for each in found:
        said = (each.type, each.state, cut(each.error, 120))
        grid.add_row(*(Text(printable(word)) for word in said), f"{each.count:,}", _age(each.oldest), str(each.first))
    out.print(Group(grid), soft_wrap=False)
    return 0


@outbox.command()
@_at
@click.argument("id", type=int)
@click.option("--json", "as_json", is_flag=True, help="Write it as JSON.")
def show(bench: Bench, id: int, as_json: bool) -> int:
    """Show one row in full."""
    row = run(bench.row(id))
    if row is None:
        say.print(f"there is no row {id}: it was sent, or never there")
        return NOT_FOUND
    if as_json:
        click.echo(json.dumps(row.as_json()))
        return 0
    grid = Grid(
        Column(no_wrap=True, style="bold"), Column(overflow="fold"), box=None, pad_edge=False, show_header=False
    )
    for name, value in row.lines():
        grid.add_row(name, Text(printable(value)))
    grid.add_row("body", Text(_body(row)))
    out.print(Group(grid), soft_wrap=False)
    return 0


def _body(row: Kept) -> str:
    text = printable(row.body[:BODY_SHOWN].decode("utf-8", "surrogateescape"))
    return text if len(row.body) <= BODY_SHOWN else f"{text} ... ({len(row.body):,} bytes)"


@outbox.command()
@_at
@_those
def retry(bench: Bench, which: Which) -> int:
    """Let rows be sent again: at once, as if they had never failed."""
    return _done(run(bench.retry(which)), which, "to be sent again")


@outbox.command()
@_at
@_those
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(bench: Bench, which: Which, yes: bool) -> int:
    """Give rows up: they are deleted, and their entities' later events go on."""
    if not yes:
        number = run(bench.count(which))
        click.confirm(f"Delete {number:,} row{'' if number == 1 else 's'} for good?", abort=True, err=True)
    return _done(run(bench.drop(which)), which, "dropped")


def _done(number: int, which: Which, what: str) -> int:
    out.print(f"{number:,} row{'' if number == 1 else 's'} {what}")
    missing = len(set(which.ids)) - number if which.ids and which.kind is None else 0
    if missing > 0:
        say.print(f"{missing:,} not there: sent, or never there")
    return NOT_FOUND if missing > 0 else 0


def _age(moment: datetime) -> str:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # SQLite's have none
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


# --- sql -----------------------------------------------------------------------------------------------------------


@click.group()
def sql() -> None:
    """Print the SQL that outbox and inbox need, and whatever else of a bus has tables."""


@sql.command("print")
@click.argument("reference", metavar="[MODULE:BUS]", required=False, type=BusReference())
@click.option("--dialect", type=click.Choice(["postgresql", "sqlite"]), default="postgresql", show_default=True)
@click.option("--prefix", default="rabbitevents_", show_default=True, help="What the tables' names begin with.")
@click.option("--schema", help="The PostgreSQL schema that they are in.")
def print_(reference: str | None, dialect: Any, prefix: str, schema: str | None) -> None:
    """Print what makes the tables: those of outbox and inbox, or all that MODULE:BUS needs.

    A bus's plugins and routers say themselves what their tables are called.
    """
    if reference is None:
        click.echo(Tables(prefix, schema=schema).sql(dialect), nl=False)
        return
    if schema is not None or prefix != "rabbitevents_":
        raise click.UsageError(
            "--prefix and --schema are for no bus: MODULE:BUS says itself what its tables are called"
        )
    bus = load_bus(reference)
    tables: list[Any] = [getattr(each, "tables", None) for each in (*bus.plugins, *bus.routers)]
    texts = dict.fromkeys(each.sql(dialect) for each in tables if hasattr(each, "sql"))
    if not texts:
        raise ConfigurationError(f"{reference} has nothing that needs tables")
    click.echo("".join(texts), nl=False)

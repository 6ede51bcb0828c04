"""``rabbitevents topology plan``, ``apply`` and ``export``: what is to be changed, adding what is missing, writing it down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import click
import msgspec
from rich.text import Text

from rabbitevents import BrokerError, Bus, ConfigurationError
from rabbitevents.brokers.rabbitmq.rights import login
from rabbitevents.cli.codes import FOUND
from rabbitevents.cli.console import one_line, out
from rabbitevents.cli.layout import hanging, width_of
from rabbitevents.cli.loop import run
from rabbitevents.cli.reference import BusReference, load_bus
from rabbitevents.cli.seeing import HTTP, http_url
from rabbitevents.cli.topology.group import AS_JSON, WAITS, YES, confirm, topology
from rabbitevents.operations.applying import add, others, prune
from rabbitevents.operations.definitions import definitions
from rabbitevents.operations.doctor import rabbitmq_of
from rabbitevents.operations.plan import SIGNS, Action, Change, Plan, grouped, line, total
from rabbitevents.operations.planning import Waits, at_work, plan_of, planned, wanted_of

_STYLES: Final[dict[Action, str]] = {"add": "green", "migrate": "yellow", "remove": "red", "decide": "cyan"}
_INDENT: Final = 11


@topology.command()
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@HTTP
@WAITS
@click.option("--probe", is_flag=True, help="Without HTTP, find other arguments by declaring what stands once more.")
@AS_JSON
def plan(reference: str, http: str | None, waits: Waits, probe: bool, as_json: bool) -> int:
    """Say what is not as a bus wants it.

    Nothing is changed. + is missing, and apply adds it; ~ only migrate changes;
    - is stale, and apply --prune removes it; ? somebody has to decide on.
    """
    found = run(planned(load_bus(reference), http=http_url(http), ask_anew=probe, waits=waits))
    if as_json:
        click.echo(as_document(found))
    else:
        show(found)
    return 0 if found.equal else FOUND


@topology.command()
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@HTTP
@WAITS
@click.option("--prune", "pruning", is_flag=True, help="Remove stale bindings of the handlers' queues, too.")
@YES
def apply(reference: str, http: str | None, waits: Waits, pruning: bool, yes: bool) -> int:
    """Add what is missing. What stands is left as it is.

    With --prune, bindings that no handler is called for are removed, after a
    question; not while consumers are there whose code has them. No queue is
    deleted, no event lost, and nothing is changed that stands: there are the
    commands remove and migrate for that.
    """
    bus, told = load_bus(reference), http_url(http)
    before = run(planned(bus, http=told, waits=waits))
    show(before)
    if pruning and not before.http:
        raise BrokerError(f"--prune has to see the bindings, and nothing was changed: {before.unseen[0].why}")
    stale = before.of("remove") if pruning else ()
    if stale and not yes:
        confirm(f"Add {len(before.of('add'))}, and remove {len(stale)}?")
    after = run(_applied(bus, told, waits, stale))
    done = sum(each not in after.changes for each in before.changes)
    out.print(Text(f"{done} done; {total(after)}" if done else "nothing was done", "bold"))
    return 0 if after.equal else FOUND


async def _applied(bus: Bus, http: str | None, waits: Waits, stale: tuple[Change, ...]) -> Plan:
    """Change what is to be changed, and return the plan that is left."""
    async with at_work(bus, http, waits) as site:
        if reasons := await others(site, stale):
            raise ConfigurationError(
                f"nothing was changed: {'; '.join(reasons)}: it would bind the queue again when it starts or connects; "
                "let the deploy end first"
            )
        await add(site)
        await prune(site.connection, stale)
        return await plan_of(site)


@topology.command()
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@WAITS
def export(reference: str, waits: Waits) -> None:
    """Write what a bus wants as RabbitMQ's definitions, in JSON.

    rabbitmqctl import_definitions takes them. There are no users and no rights
    in them. What stands already, an import leaves as it is, whatever its
    arguments: let plan follow.
    """
    bus = load_bus(reference)
    vhost = login(rabbitmq_of(bus).addresses[0])[1]
    click.echo(json.dumps(definitions(wanted_of(bus, waits), vhost), indent=2))


# --- what is said ----------------------------------------------------------------------------------------------------


def as_document(found: Plan) -> str:
    """Return a plan as JSON."""
    document = msgspec.to_builtins(found)
    return json.dumps({**document, "equal": found.equal}, indent=2)


def show(found: Plan) -> None:
    """Print a plan."""
    for each in lines(found, width_of(out)):
        out.print(each)


def lines(found: Plan, width: int) -> Iterator[Text]:
    """Yield a plan's lines."""
    for change, keys in grouped(found.changes):
        head = Text(f"{SIGNS[change.action]} {change.kind:<{_INDENT - 2}}", _STYLES[change.action])
        yield from hanging(head, one_line(line(change, keys)), width, indent=_INDENT)
    for each in found.found:
        told = one_line(f"{each.where}: {each.what}; {each.way_out}")
        yield from hanging(Text(f"! {'policy':<{_INDENT - 2}}", "bold red"), told, width, indent=_INDENT)
    for unseen in found.unseen:
        told = one_line(f"not seen: {', '.join(unseen.about)} ({unseen.why})")
        yield from hanging(Text(f"{'note':<{_INDENT}}", "dim"), told, width, indent=_INDENT)
    yield Text(total(found), "bold")

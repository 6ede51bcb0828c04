"""``rabbitevents doctor``: what is wrong at the broker of a bus, and the way out."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click
import msgspec
from rich.text import Text

from rabbitevents.cli.codes import FOUND
from rabbitevents.cli.console import one_line, out
from rabbitevents.cli.layout import hanging, width_of
from rabbitevents.cli.loop import run
from rabbitevents.cli.reference import BusReference, load_bus
from rabbitevents.cli.seeing import HTTP, http_url
from rabbitevents.operations.doctor import Report, examine
from rabbitevents.operations.scene import Found, Unseen

_STYLES = {"wrong": "bold red", "risk": "yellow", "note": "dim"}
_INDENT = 7


@click.command(
    epilog="""\b
Examples:
  rabbitevents doctor shop.inventory:bus
  rabbitevents doctor shop.inventory:bus --replicas 3 --strict   in CI
  rabbitevents doctor shop.inventory:bus --http http://rabbitmq:15672

\b
Exit codes:
  0  nothing is wrong
  3  something is wrong; with --strict, a risk too"""
)
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@HTTP
@click.option("--replicas", metavar="N", type=click.IntRange(0), help="Each queue should have N consumers.")
@click.option("--health", metavar="URL", multiple=True, help="Ask a process of the service too, or several.")
@click.option("--strict", is_flag=True, help="Exit with 3 for a risk, too.")
@click.option("--json", "as_json", is_flag=True, help="Write it as JSON, in a form that stays.")
def doctor(
    reference: str, http: str | None, replicas: int | None, health: tuple[str, ...], strict: bool, as_json: bool
) -> int:
    """Look what is wrong at the broker of a bus.

    It takes 10 s at most; nothing is written, published or consumed. Findings
    are wrong (events are lost, or stand still), a risk, or a note. What could
    not be looked at is said, too: RabbitMQ's management API sees most, and a
    user with the tag "management" is enough for it.
    """
    report = run(examine(load_bus(reference), http=http_url(http), replicas=replicas, health=health))
    report = msgspec.structs.replace(report, found=tuple(_with_name(each, reference) for each in report.found))
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        for line in _lines(report, width_of(out)):
            out.print(line)
    return FOUND if report.count("wrong") or (strict and report.count("risk")) else 0


def _lines(report: Report, width: int) -> Iterator[Text]:
    where = f"{report.broker or report.address}, vhost {report.vhost}"
    yield from hanging(Text(), f"{where}; {report.http or 'no HTTP'}", width, indent=2)
    for found in report.found:
        yield from hanging(Text(f"{found.grade:<{_INDENT}}", _STYLES[found.grade]), _said(found), width, indent=_INDENT)
    for unseen in report.unseen:
        yield from hanging(Text(f"{'note':<{_INDENT}}", "dim"), _not_seen(unseen), width, indent=_INDENT)
    yield Text(_sum(report), "bold")


def _with_name(found: Found, reference: str) -> Found:
    """Write the bus's own name into the commands that a finding says."""
    return msgspec.structs.replace(found, way_out=found.way_out.replace("MODULE:BUS", reference))


def _said(found: Found) -> str:
    return one_line(f"{found.where}: {found.what}{f'; {found.way_out}' if found.way_out else ''}")


def _not_seen(unseen: Unseen) -> str:
    return one_line(f"not looked at: {', '.join(unseen.about)} ({unseen.why})")


def _sum(report: Report) -> str:
    wrong, risks, checks = report.count("wrong"), report.count("risk"), report.checks
    parts = (f"{wrong} wrong", _counted(risks, "risk"), _counted(checks, "check"), f"{report.seconds:.1f} s")
    return ", ".join(parts)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

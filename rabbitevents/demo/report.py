"""What came out, for people: a table of the services, one order's story, and the closing lines."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Final

from rich.table import Table
from rich.text import Text
from yarl import URL

from rabbitevents.cli import out
from rabbitevents.demo.run import Counts, Result
from rabbitevents.demo.services import SERVICES, owner
from rabbitevents.demo.story import NAMES, tree
from rabbitevents.demo.tally import Tally

COMMAND: Final = "rabbitevents dlq list"
"""What shows dead letters."""


def show(result: Result) -> None:
    """Print everything."""
    whole = table(result.tally)
    fits = out.measure(whole, options=out.options.update(width=1000)).maximum <= out.width
    for each in (whole,) if fits else narrow(result.tally):
        out.print(each, soft_wrap=False)
    if result.story:
        out.print(tree(result.story), soft_wrap=False)
    if result.trace:
        out.print("Its trace, when each step began and how long it took:", style="bold", soft_wrap=not out.is_terminal)
        out.print(result.trace)
    style = "green" if result.counts.flawless else "bold red"
    for line in (*closing(result.counts), *graves(result)):
        out.print(line, style=style, soft_wrap=not out.is_terminal or COMMAND in line)  # which is to be copied


def table(tally: Tally) -> Table:
    """Return what each service did."""
    table = Table("service")
    for heading in ("handled", "effects", "retries", "dead letters", "published"):
        table.add_column(heading, justify="right")
    table.add_column("of these")
    for service in SERVICES:
        names = "\n".join(f"{number:,} {name}" for name, number in _published(tally, service))
        table.add_row(service, *_counts(tally, service), names, end_section=True)
    return table


def narrow(tally: Tally) -> tuple[Table, Table]:
    """Return the same as two tables, which 50 columns have room for."""
    counts = Table("service", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("handled", "effects", "retries", "dead", "pub-\nlished"):
        counts.add_column(heading, justify="right")
    events = Table("", "of these", "of", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    events.columns[0].justify = "right"
    for service in SERVICES:
        counts.add_row(service, *_counts(tally, service))
        for name, number in _published(tally, service):
            events.add_row(f"{number:,}", name, Text(service, style="dim"))
    return counts, events


def _counts(tally: Tally, service: str) -> list[str]:
    dead = sum(owner(queue) == service for queue, _ in tally.dead)
    published = sum(number for _, number in _published(tally, service))
    counts = (tally.handled[service], tally.effects[service], tally.retried[service], dead, published)
    return [f"{count:,}" for count in counts]


def _published(tally: Tally, service: str) -> list[tuple[str, int]]:
    return [(NAMES[type], number) for (by, type), number in tally.published.items() if by == service]


def closing(counts: Counts) -> list[str]:
    """Return the lines that say whether all went well."""
    verdict = f"{counts.lost:,} lost, {counts.duplicates:,} duplicates"
    if counts.unconfirmed:
        verdict += f", {counts.unconfirmed:,} orders that the broker did not confirm"
    if counts.duplicates and counts.restarts and counts.store is None:
        verdict += " (a service was killed: what it had not acknowledged came again, and changed nothing)"
    orders = f"{counts.confirmed:,} confirmed, {counts.cancelled:,} cancelled, {counts.dead:,} dead"
    confirmed = f"confirmed by {counts.broker}" if counts.store is None else f"committed to {counts.store}"
    effects = f"{counts.handled:,} effects, {counts.retried:,} retries"
    lines = [
        f"{counts.placed:,} orders placed: {orders}",
        f"{counts.published:,} events {confirmed}, {effects}, in {counts.seconds:.2f} s",
        *([f"{counts.overdue:,} payments overdue: nobody waits for them any more"] if counts.overdue else []),
        verdict,
    ]
    if counts.replayed is not None:
        outcome = "equal to" if counts.equal else "NOT equal to"
        lines.append(f"{counts.replayed:,} stored events replayed: the read models are {outcome} those of the run")
    return lines


def graves(result: Result) -> list[str]:
    """Return the lines that say what is among the dead letters, and how to look at it; none where nothing is."""
    dead = result.tally.dead
    if not dead:
        return []
    kinds = Counter((error.rpartition(".")[2], queue) for (queue, _), error in dead.items())
    lines = [f"{number:,} dead of {error} in {queue}.dead" for (error, queue), number in kinds.most_common()]
    return [*lines, *_way_to(sorted({queue for queue, _ in dead}), result.counts.broker)]


def _way_to(queues: Sequence[str], broker: str) -> list[str]:
    if broker.startswith("memory:"):
        return []  # they are gone with it
    url = URL(broker)
    if url.user not in (None, "guest"):
        url = url.with_password("PASSWORD")  # which is not shown, and has to be written there
    names = (word for queue in queues for word in ("--queue", queue))
    return [f"look at them: {shlex.join([*COMMAND.split(), '--url', str(url), *names])}"]

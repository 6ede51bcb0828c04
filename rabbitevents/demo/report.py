"""What came out, for people: a table of the services, one order's story, and the closing lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rabbitevents.cli import out
from rabbitevents.demo.ledger import Published
from rabbitevents.demo.run import Counts, Result
from rabbitevents.demo.services import SERVICES
from rabbitevents.demo.shop import events
from rabbitevents.demo.tally import Tally
from rabbitevents.events import event_type, is_event

_NAMES: Final = {event_type(each).name: each.__name__ for each in vars(events).values() if is_event(each)}
"""What the shop's code calls each type of event."""


def show(result: Result) -> None:
    """Print everything."""
    out.print(table(result.tally), soft_wrap=False)
    story = longest(result.tally.stories.values())
    if story:
        out.print(tree(story), soft_wrap=False)
    for line in closing(result.counts):
        out.print(line, style="green" if result.counts.flawless else "bold red")


def table(tally: Tally) -> Table:
    """Return what each service did."""
    table = Table("service")
    for heading in ("handled", "effects", "published"):
        table.add_column(heading, justify="right")
    table.add_column("of these")
    for service in SERVICES:
        published = {_NAMES[type]: number for (by, type), number in tally.published.items() if by == service}
        table.add_row(
            service,
            f"{tally.handled[service]:,}",
            f"{tally.effects[service]:,}",
            f"{sum(published.values()):,}",
            "\n".join(f"{number:,} {name}" for name, number in published.items()),
            end_section=True,
        )
    return table


def longest(stories: Iterable[Sequence[Published]]) -> Sequence[Published]:
    """Return the cascade with the most events, and of those the first one; empty if there is none."""
    return max(stories, key=len, default=())


def tree(story: Sequence[Published]) -> Tree:
    """Return a cascade as a tree: each event below the one that it was published for."""
    by_cause: dict[str, list[Published]] = {}
    for event in sorted(story, key=lambda each: each.at):
        by_cause.setdefault(event.cause, []).append(event)
    (root,) = by_cause[""]
    drawn = Tree(Text(f"The story of order {root.about.partition('-')[2]}, each event below its cause:", style="bold"))
    _grow(drawn, root, None, by_cause)
    return drawn


def _grow(under: Tree, event: Published, cause: Published | None, by_cause: dict[str, list[Published]]) -> None:
    branch = under.add(_label(event, cause))
    for consequence in by_cause.get(event.event, ()):
        _grow(branch, consequence, event, by_cause)


def _label(event: Published, cause: Published | None) -> Text:
    when = datetime.fromisoformat(event.at)
    label = Text(_NAMES[event.type], style="bold")
    label.append(f"  {when.astimezone():%H:%M:%S}.{when.microsecond // 1000:03}", style="default not bold")
    if cause is not None:
        took = (when - datetime.fromisoformat(cause.at)).total_seconds()
        label.append(f"  +{took * 1000:.1f} ms", style="cyan not bold")
    label.append(f"  {event.service}", style="dim not bold")
    return label


def closing(counts: Counts) -> list[str]:
    """Return the last lines."""
    verdict = f"{counts.lost:,} lost, {counts.duplicates:,} duplicates"
    if counts.unconfirmed:
        verdict += f", {counts.unconfirmed:,} orders that the broker did not confirm"
    if counts.duplicates and counts.restarts:
        verdict += " (a service was killed: what it had not acknowledged came again, and changed nothing)"
    return [
        f"{counts.placed:,} orders placed: {counts.confirmed:,} confirmed, {counts.cancelled:,} cancelled",
        f"{counts.published:,} events confirmed by {counts.broker}, {counts.handled:,} effects, in {counts.seconds:.2f} s",
        verdict,
    ]

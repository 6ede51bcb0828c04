"""One order's story as a tree: each event below its cause, and what failed where it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from rich.text import Text
from rich.tree import Tree

from rabbitevents.demo.ledger import Published, Retried
from rabbitevents.demo.shop import events
from rabbitevents.demo.tally import Trouble
from rabbitevents.events import event_type, is_event

NAMES: Final = {event_type(each).name: each.__name__ for each in vars(events).values() if is_event(each)}
"""What the shop's code calls each type of event."""

Steps = Mapping[str, Sequence[Published | Trouble]]
"""What came of each event, in order; of none at all, the first one."""


def tree(story: Sequence[Published | Trouble]) -> Tree:
    """Return a cascade as a tree; ``story`` is in the order in which it happened."""
    steps: dict[str, list[Published | Trouble]] = {}
    for step in story:
        steps.setdefault(step.cause if isinstance(step, Published) else step.event, []).append(step)
    (root,) = (step for step in steps[""] if isinstance(step, Published))
    drawn = Tree(Text(f"The story of order {root.about}, each event below its cause:", style="bold"))
    _grow(drawn, root, None, steps)
    return drawn


def _grow(under: Tree, event: Published, cause: Published | None, steps: Steps) -> None:
    branch = under.add(_label(event, cause))
    for step in steps.get(event.event, ()):
        if isinstance(step, Published) and step.timeout and step.event not in steps:
            continue  # nobody waited for it when it came
        if isinstance(step, Published):
            _grow(branch, step, event, steps)
        else:
            branch.add(_trouble(step, event))


def _label(event: Published, cause: Published | None) -> Text:
    label = Text(NAMES.get(event.type, event.type), style="bold")
    return _when(label, event, cause)


def _trouble(trouble: Trouble, cause: Published) -> Text:
    if isinstance(trouble, Retried):
        where = "in its process" if trouble.inline else "at the broker"
        label = Text(f"attempt {trouble.attempt} failed", style="yellow")
        said = f"{trouble.error}; tried again after {trouble.after:g} s {where}"
    else:
        label = Text("given up", style="bold red")
        said = f"{trouble.error} at attempt {trouble.attempts}; it is in {trouble.queue}.dead"
    return _when(label, trouble, cause).append(f"  {said}", style="default not bold")


def _when(label: Text, step: Published | Trouble, cause: Published | None) -> Text:
    """Say when it was, how long after its cause, and which service it was."""
    when = datetime.fromisoformat(step.at)
    label.append(f"  {when.astimezone():%H:%M:%S}.{when.microsecond // 1000:03}", style="default not bold")
    if cause is not None:
        took = (when - datetime.fromisoformat(cause.at)).total_seconds()
        label.append(f"  +{took * 1000:.1f} ms", style="cyan not bold")
    return label.append(f"  {step.service}", style="dim not bold")

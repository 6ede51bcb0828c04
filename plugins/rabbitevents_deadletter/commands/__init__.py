"""``rabbitevents dlq``: what is in the dead letter queues, and what is to become of it."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import click

from rabbitevents.cli import BusCommands, out, run, say
from rabbitevents.texts import printable
from rabbitevents_deadletter.commands import rendering, targets
from rabbitevents_deadletter.commands.progress import NOT_ALL, Progress
from rabbitevents_deadletter.commands.targets import FILE, NAMES_ONLY, Target
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.workbench import EVERY, By, DeadLetters, Lines, Result, Selection, Summary, read_lines
from rabbitevents_deadletter.workbench.lines import Edits, edited


@click.group(
    cls=BusCommands,
    epilog="""\b
Examples:
  rabbitevents dlq list shop.inventory:bus --by error
  rabbitevents dlq show shop.inventory:bus --error PaymentRefused
  rabbitevents dlq replay shop.inventory:bus --type 'order.*' --newer-than 2h
  rabbitevents dlq list --url amqp://localhost --queue inventory.reserve""",
)
def dlq() -> None:
    """Look at dead letters, and replay, discard or export them.

    It works on the live queues of a bus, or of a broker and names of queues.
    Whatever is not replayed or discarded goes back to its place; while it is
    looked at, nobody else gets it.
    """


@dlq.command("list")
@targets.letters
@click.option("--by", type=click.Choice([by for by in get_args(By) if by]), help="Count by this alone.")
@click.option("--json", "as_json", is_flag=True, help="Write the counts as JSON.")
def list_(where: Target, selection: Selection, by: By | None, as_json: bool) -> int:
    """Count the dead letters by queue, error and type.

    delay.lost is counted too: what came back from its wait when its queue was
    gone, whichever service's it was.
    """

    async def summaries() -> list[Summary]:
        async with where.opened(NAMES_ONLY, lost=True) as queues:
            return [await each.summary(selection, by=by or "") for each in queues]

    found = run(summaries())
    partial = [each for each in found if each.partial]
    if as_json:
        click.echo(rendering.as_json(found))
    elif any(each.groups for each in found):
        rendering.put(out, *rendering.summary(found, by or "", out.width))
    elif not partial:
        out.print(_nothing(selection))
    for each in partial:
        rendering.tell(say, *rendering.outcome(each, ""))
    if where.is_blind:
        rendering.tell(
            say,
            "AMQP tells nobody which queues there are: name them with --queue, or the bus as MODULE:BUS; "
            "at the broker, `rabbitmqctl list_queues name messages` lists them (those of dead letters end with .dead)",
        )
    return NOT_ALL if where.is_blind or partial else 0


def _nothing(selection: Selection) -> str:
    return "no dead letters" if selection == EVERY else "no dead letters that are meant"


@dlq.command()
@targets.letters
@targets.LIMIT
@click.option("--json", "as_json", is_flag=True, help="Write each as a line of JSON.")
def show(where: Target, selection: Selection, limit: int | None, as_json: bool) -> int:
    """Show the first dead letter in full, or others."""
    found: list[DeadLetterMessage] = []
    progress = Progress("", selection, max(limit or 1, len(selection.ids)))
    code = progress.go(where, DeadLetters.look, "", take=found.append)
    for number, letter in enumerate(found):
        if as_json:
            click.echo(rendering.letter_json(letter))
            continue
        if number:
            out.rule()
        rendering.put(out, *rendering.whole(letter, out.width))
    if not found and not selection.ids and not code:
        say.print(_nothing(selection))
    return code


@dlq.command()
@targets.letters
@targets.LIMIT
@click.option("--rate", metavar="N", type=float, help="Replay at most N a second.")
@click.option("--at", metavar="TIME", type=targets.begin, help="Wait until then: 02:30, or a date and time.")
@click.option("--to", metavar="QUEUE", help="Send them to this queue, such as the renamed one.")
@click.option("--dry-run", is_flag=True, help="Say what would be replayed, and leave it.")
@click.option("--edit", "edits", metavar="FILE", type=FILE, help="Give events the bodies in FILE.")
@click.option("--from", "source", metavar="FILE", type=FILE, help="Replay what was exported to FILE.")
def replay(
    where: Target,
    selection: Selection,
    limit: int | None,
    at: datetime | None,
    dry_run: bool,
    edits: Path | None,
    source: Path | None,
    **how: Any,
) -> int:
    """Send dead letters back to their handlers.

    Each goes to the queue whose handler failed, and to no other, as a first
    attempt. It is taken out of the dead letter queue only once it is confirmed
    there: broken off at any moment, nothing is lost. Ctrl-C ends it after the
    current one. While somebody else looks at a queue, nothing is replayed.

    FILE of --edit is an export whose bodies were changed, or one body for the
    one event of --id. With --from the queues are left alone.
    """
    if edits is not None and source is not None:
        raise click.UsageError("--edit changes what is in the queues; with --from, change that file itself")
    edit = Edits(selection) if edits is None else edited(edits, selection)
    # The whole file is read before anything of it is sent.
    numbers = Counter(letter.dead_queue for letter in read_lines(source)) if source is not None else Counter[str]()
    if at is not None:
        say.print(f"waiting until {at:%Y-%m-%d %H:%M:%S %z}")
        run(asyncio.sleep(max(0.0, (at - datetime.now(at.tzinfo)).total_seconds())))
    progress = Progress("replaying", edit.selection, limit, names=dry_run)
    word = "would be replayed" if dry_run else "replayed"
    if source is None:
        how |= {"bodies": edit.bodies, "only": edit.only}
        return progress.go(where, DeadLetters.replay, word, dry_run=dry_run, **how)

    def exported(letters: DeadLetters, **how: Any) -> Awaitable[Result]:
        theirs = (each for each in read_lines(source) if each.dead_queue == letters.dead_queue)
        return letters.replay_exported(theirs, **how)

    code = progress.go(where, exported, word, dry_run=dry_run, **how)
    foreign = sorted(numbers.keys() - set(progress.queues))
    for queue in foreign:
        of = f"{numbers[queue]:,} of queue {printable(queue)!r}"
        say.print(f"{source} has {of}, which is not meant: they are left out")
    return NOT_ALL if foreign and not where.queues else code


@dlq.command()
@targets.letters
@targets.LIMIT
@click.option("--export", "export_to", metavar="FILE", type=FILE, help="Write each to FILE first (a new file).")
@click.option("--dry-run", is_flag=True, help="Say what would be discarded, and leave it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(
    where: Target, selection: Selection, limit: int | None, export_to: Path | None, dry_run: bool, yes: bool
) -> int:
    """Take dead letters out of their queues, for good.

    It counts them first, and asks; what comes meanwhile is not discarded. With
    --export, each is on disk before it is gone; `replay --from` brings it back.
    """
    seen: set[bytes] | None = None
    if dry_run or not yes:
        looking = Progress("looking at", selection, limit, names=dry_run, remember=not dry_run)

        code = looking.go(where, DeadLetters.discard, "would be discarded", dry_run=True)
        if dry_run or not looking.shown:
            return code
        if not _agreed():
            say.print("nothing was discarded")
            return NOT_ALL
        seen = looking.shown
    with nullcontext() if export_to is None else Lines(export_to) as lines:
        progress = Progress("discarding", selection, limit)
        return progress.go(where, DeadLetters.discard, "discarded", lines=lines, only=seen)


def _agreed() -> bool:
    try:
        return click.confirm("Discard them for good?", err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise click.UsageError("nobody is here to answer: say --yes") from None


@dlq.command()
@targets.letters
@targets.LIMIT
@click.option("--to", "to", metavar="FILE", type=FILE, required=True, help="The new file; - is stdout.")
def export(where: Target, selection: Selection, limit: int | None, to: Path) -> int:
    """Write dead letters to a file, as JSON lines.

    They stay where they are. A body that is JSON can be read and edited in its
    line; `replay --edit` and `replay --from` take the file.
    """
    with Lines(to) as lines:
        return Progress("exporting", selection, limit).go(where, DeadLetters.export, "exported", lines=lines)

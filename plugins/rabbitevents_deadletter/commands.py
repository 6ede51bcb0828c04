"""``rabbitevents dlq``: what is in the dead letter queues, and what is to become of it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import click
import msgspec

from rabbitevents import BrokerError, ConfigurationError, PublishError
from rabbitevents.cli import out, run, say
from rabbitevents_deadletter import options, rendering
from rabbitevents_deadletter.edits import edited
from rabbitevents_deadletter.harmless import harmless
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.lines import Lines, read_lines
from rabbitevents_deadletter.progress import Progress
from rabbitevents_deadletter.results import Result, Summary
from rabbitevents_deadletter.selection import Selection
from rabbitevents_deadletter.targets import NAMES_ONLY, Target
from rabbitevents_deadletter.workbench import DeadLetters

NOT_ALL: Final = 1
"""The exit code where something that was asked for was not found, or could not be done."""

Step = Callable[[DeadLetters, int | None], Awaitable[Result]]
"""Does something with the letters of one queue, at most so many."""


@click.group(
    cls=options.Commands,
    epilog="""\b
Examples:
  rabbitevents dlq list shop.inventory:bus
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
@options.target
@options.selection
@click.option("--json", "as_json", is_flag=True, help="Write the counts as JSON.")
def list_(where: Target, selection: Selection, as_json: bool) -> None:
    """Count the dead letters by queue, error and type."""

    async def summaries() -> list[Summary]:
        async with where.opened(NAMES_ONLY) as queues:
            return [await each.summary(selection) for each in queues]

    found = run(summaries())
    if as_json:
        click.echo(rendering.summary_json(found))
    elif any(each.groups for each in found):
        rendering.put(out, rendering.summary_table(found))
    else:
        out.print("no dead letters" if selection == Selection() else "no dead letters that are meant")
    for each in found:
        if each.looked_at < each.there:
            say.print(f"{each.queue}: counted the first {each.looked_at:,} of {each.there:,}")


@dlq.command()
@options.target
@options.selection
@options.limit(1, "Show")
def show(where: Target, selection: Selection, limit: int) -> int:
    """Show the first dead letter in full, or others."""

    async def letters() -> list[DeadLetterMessage]:
        found: list[DeadLetterMessage] = []
        wanted = max(limit, len(selection.ids))
        async with where.opened() as queues:
            for each in queues:
                if len(found) < wanted:
                    found += await each.find(selection, limit=wanted - len(found))
        return found

    found = run(letters())
    for number, letter in enumerate(found):
        if number:
            out.rule()
        rendering.put(out, rendering.whole(letter))
    if not found and not selection.ids:
        say.print("no dead letters" if selection == Selection() else "no dead letters that are meant")
    return NOT_ALL if _missing(selection, {letter.id for letter in found}) else 0


@dlq.command()
@options.target
@options.selection
@options.limit(None, "Replay")
@click.option("--rate", metavar="N", type=float, help="Replay at most N a second.")
@click.option("--dry-run", is_flag=True, help="Say what would be replayed, and leave it.")
@click.option("--edit", "edits", metavar="FILE", type=options.FILE, help="Give events the bodies in FILE.")
@click.option("--from", "source", metavar="FILE", type=options.FILE, help="Replay what was exported to FILE.")
def replay(
    where: Target,
    selection: Selection,
    limit: int | None,
    rate: float | None,
    dry_run: bool,
    edits: Path | None,
    source: Path | None,
) -> int:
    """Send dead letters back to their handlers.

    Each goes to the queue whose handler failed, and to no other, as a first
    attempt. It is taken out of the dead letter queue only once it is confirmed
    there: broken off at any moment, nothing is lost. Ctrl-C ends it after the
    current one.

    FILE of --edit is an export whose bodies were changed, or one body for the
    one event of --id. With --from the queues are left alone.
    """
    if edits is not None and source is not None:
        raise click.UsageError("--edit changes what is in the queues; with --from, change that file itself")
    how = _Replaying(rate, dry_run, Progress("replaying", limit=limit, names=dry_run))
    if source is not None:
        return _replay_file(where, selection, limit, source, how)
    selection, bodies = _no_edits(selection) if edits is None else edited(edits, selection)

    async def step(letters: DeadLetters, most: int | None) -> Result:
        theirs = bodies.get("") or bodies.get(letters.queue) or {}
        return await letters.replay(
            selection, limit=most, rate=how.rate, dry_run=how.dry_run, bodies=theirs, watch=how.progress
        )

    _go(how.progress, where, limit, step, how.word)
    return _ended(selection, how.progress)


class _Replaying(msgspec.Struct, frozen=True):
    """How to replay."""

    rate: float | None
    dry_run: bool
    progress: Progress

    @property
    def word(self) -> str:
        return "would be replayed" if self.dry_run else "replayed"


def _no_edits(selection: Selection) -> tuple[Selection, Mapping[str, Mapping[str, bytes]]]:
    return selection, {}


def _replay_file(where: Target, selection: Selection, limit: int | None, source: Path, how: _Replaying) -> int:
    numbers = _lines_by_queue(source)

    async def step(letters: DeadLetters, most: int | None) -> Result:
        theirs = (each for each in read_lines(source) if each.queue == letters.queue)
        return await letters.replay_exported(
            theirs, selection, limit=most, rate=how.rate, dry_run=how.dry_run, watch=how.progress
        )

    _go(how.progress, where, limit, step, how.word)
    foreign = {queue: number for queue, number in numbers.items() if queue not in how.progress.queues}
    for queue, number in foreign.items():
        say.print(f"{source} has {number:,} of queue {harmless(queue)!r}, which is not meant: they are left out")
    return NOT_ALL if foreign and not where.queues else _ended(selection, how.progress)


@dlq.command()
@options.target
@options.selection
@options.limit(None, "Discard")
@click.option("--export", "export_to", metavar="FILE", type=options.FILE, help="Write each to FILE first (a new file).")
@click.option("--dry-run", is_flag=True, help="Say what would be discarded, and leave it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(
    where: Target, selection: Selection, limit: int | None, export_to: Path | None, dry_run: bool, yes: bool
) -> int:
    """Take dead letters out of their queues, for good.

    With --export, each is on disk before it is gone; `replay --from` brings
    it back.
    """
    if dry_run or not yes:
        looking = Progress("looking at", limit=limit, names=dry_run)
        _go(looking, where, limit, _discarding(selection, looking, None, dry_run=True), _DISCARDED[True])
        if dry_run or not looking.ids:
            return _ended(selection, looking)
        if not _agreed():
            say.print("nothing was discarded")
            return NOT_ALL
    progress = Progress("discarding", limit=limit)
    with nullcontext() if export_to is None else Lines(export_to) as lines:
        _go(progress, where, limit, _discarding(selection, progress, lines, dry_run=False), _DISCARDED[False])
    return _ended(selection, progress)


def _agreed() -> bool:
    try:
        return click.confirm("Discard them for good?", err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise click.UsageError("nobody is here to answer: say --yes") from None


def _discarding(selection: Selection, progress: Progress, lines: Lines | None, *, dry_run: bool) -> Step:
    async def step(letters: DeadLetters, most: int | None) -> Result:
        return await letters.discard(selection, limit=most, dry_run=dry_run, lines=lines, watch=progress)

    return step


@dlq.command()
@options.target
@options.selection
@options.limit(None, "Export")
@click.option("--to", "to", metavar="FILE", type=options.FILE, required=True, help="The new file; - is stdout.")
def export(where: Target, selection: Selection, limit: int | None, to: Path) -> int:
    """Write dead letters to a file, as JSON lines.

    They stay where they are. A body that is JSON can be read and edited in its
    line; `replay --edit` and `replay --from` take the file.
    """
    progress = Progress("exporting", limit=limit)
    with Lines(to) as lines:

        async def step(letters: DeadLetters, most: int | None) -> Result:
            return await letters.export(lines, selection, limit=most, watch=progress)

        _go(progress, where, limit, step, "exported")
    return _ended(selection, progress)


# --- what they share -----------------------------------------------------------------------------------------------

_DISCARDED: Final = {False: "discarded", True: "would be discarded"}


def _go(progress: Progress, where: Target, limit: int | None, step: Step, word: str) -> None:
    """Take the step for one queue after the other, and say how far it came, also when it is broken off."""

    async def steps() -> None:
        async with where.opened() as queues:
            progress.queues = [letters.queue for letters in queues]
            left = limit
            for letters in queues:
                if left == 0:
                    return
                result = await step(letters, left)
                progress.latest[result.queue] = result
                left = None if left is None else left - result.meant

    broken_off = True
    try:
        with progress:
            run(steps())
        broken_off = False
    except PublishError as error:
        raise BrokerError(harmless(str(error))) from error  # it names the event, in words of whoever published it
    finally:
        for result in progress.latest.values():
            for line in rendering.outcome(result, word, hold=where.hold, broken_off=broken_off):
                say.print(line)


def _ended(selection: Selection, progress: Progress) -> int:
    """Say which letters were not there; return the exit code."""
    refused = any(result.refused for result in progress.latest.values())
    return NOT_ALL if _missing(selection, progress.ids) or refused else 0


def _missing(selection: Selection, seen: set[str]) -> bool:
    missing = rendering.not_found(selection.ids, seen)
    for id in missing:
        say.print(f"no dead letter of the event {id} was found")
    return bool(missing)


def _lines_by_queue(source: Path) -> Counter[str]:
    """Read the whole file before anything of it is sent. Raises `ConfigurationError` for a line that cannot be read."""
    try:
        return Counter(letter.queue for letter in read_lines(source))
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be read: {error.strerror}") from error

"""How far a command is: a bar on a terminal, and what is said at its end, also when it is broken off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rabbitevents import BrokerError, PublishError
from rabbitevents.cli import run, say
from rabbitevents.texts import printable
from rabbitevents_deadletter.commands import rendering
from rabbitevents_deadletter.commands.targets import Target
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.workbench import Result, Selection

NOT_ALL = 1
"""The exit code where something that was asked for was not found, could not be done, or may not have been seen."""


class Progress:
    """Watches passes over dead letters, one queue after the other: a bar, where stderr is a terminal.

    Without a word for what is done there is no bar. With ``names``, each letter that is meant is a line on stderr; with
    ``remember``, its digest is in ``shown``.
    """

    def __init__(
        self, doing: str, selection: Selection, limit: int | None, *, names: bool = False, remember: bool = False
    ) -> None:
        self.latest: dict[str, Result] = {}
        """How far each queue's pass has come."""
        self.queues: list[str] = []
        """The dead letter queues that are meant."""
        self.shown: set[bytes] = set()
        self._ids = {id.lower(): id for id in selection.ids}
        """Those that were asked for, and were not seen."""
        self._selection = selection
        self._doing = doing
        self._limit = limit
        self._names = names
        self._remembers = remember
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Bar(*columns, console=say, transient=True, disable=not (doing and say.is_terminal))
        self._task = self._bar.add_task(doing, total=None)

    def __call__(self, result: Result, letter: DeadLetterMessage | None) -> None:
        """Note how far a pass is."""
        self.latest[result.queue] = result
        if letter is not None:
            for id in (letter.id, printable(letter.id)):
                self._ids.pop(id.lower(), None)
            if self._remembers:
                self.shown.add(letter.digest())
            if self._names:
                rendering.tell(say, rendering.line_of(letter))
        total = min(result.there, self._limit or result.there) or None
        at = result.meant if self._limit is not None else result.looked_at
        self._bar.update(self._task, completed=at, total=total, description=f"{self._doing} {printable(result.queue)}")

    def go(self, where: Target, doing: Callable[..., Awaitable[Result]], word: str, **how: Any) -> int:
        """Have a method of `DeadLetters` do its work on one queue after the other, say how far it came; return the exit code."""
        broken_off = True
        try:
            with self._bar:
                run(self._steps(where, doing, how))
            broken_off = False
        except PublishError as error:
            raise BrokerError(printable(str(error))) from error  # it names the event, in words of whoever published it
        finally:
            for result in self.latest.values():
                rendering.tell(say, *rendering.outcome(result, word, broken_off=broken_off))
        for id in self._ids.values():
            rendering.tell(say, f"no dead letter of the event {printable(id)} was found")
        return NOT_ALL if self._ids or any(each.failed or each.partial for each in self.latest.values()) else 0

    async def _steps(self, where: Target, doing: Callable[..., Awaitable[Result]], how: dict[str, Any]) -> None:
        async with where.opened() as queues:
            self.queues = [letters.dead_queue for letters in queues]
            left = self._limit
            for letters in queues:
                if left != 0:
                    result = await doing(letters, selection=self._selection, limit=left, watch=self, **how)
                    self.latest[letters.dead_queue] = result
                    left = None if left is None else left - result.meant

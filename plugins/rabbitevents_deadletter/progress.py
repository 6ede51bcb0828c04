"""How far a command is: a bar on a terminal, and what is said when it is broken off."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rabbitevents.cli import say
from rabbitevents_deadletter.harmless import harmless
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.rendering import line_of
from rabbitevents_deadletter.results import Result


class Progress:
    """Watches passes over dead letters, one queue after the other: a bar, where stderr is a terminal.

    ``latest`` says how far each queue's pass has come. With ``names``, each letter that is meant is a line on stderr.
    """

    def __init__(self, doing: str, *, limit: int | None, names: bool = False) -> None:
        self.latest: dict[str, Result] = {}
        self.queues: list[str] = []
        """The queues that are meant."""
        self.ids: set[str] = set()
        """Of the letters that were meant."""
        self._doing = doing
        self._limit = limit
        self._names = names
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=say,
            transient=True,
            disable=not say.is_terminal,
        )
        self._task = self._bar.add_task(doing, total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, result: Result, letter: DeadLetterMessage | None) -> None:
        """Note how far a pass is."""
        self.latest[result.queue] = result
        if letter is not None:
            self.ids.add(letter.id)
            if self._names:
                say.print(line_of(letter))
        total = min(result.there, self._limit or result.there) or None
        at = result.meant if self._limit is not None else result.looked_at
        what = f"{self._doing} {harmless(result.queue)}"
        self._bar.update(self._task, completed=at, total=total, description=what)

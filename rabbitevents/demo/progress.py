"""How it goes, on standard error: bars for people who watch a terminal, lines for everybody else."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rabbitevents.cli import say
from rabbitevents.demo.run import Audience


@contextmanager
def watching(orders: int) -> Generator[Audience]:
    """Yield who is to be told of ``orders`` orders, for as long as the context is open."""
    if not say.is_terminal:
        yield Lines(orders)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    with Progress(*columns, console=say, transient=True) as progress:
        yield Bars(orders, progress)


class Lines:
    """Writes a line for each batch of orders that is placed, and then one a second."""

    def __init__(self, orders: int) -> None:
        self._orders = orders
        self._placed = 0
        self._last = monotonic()

    def say(self, line: str, /) -> None:
        """Write the line."""
        say.print(line)

    def progress(self, placed: int, closed: int, effects: int, /) -> None:
        """Write how far it is, if there is news."""
        if placed > self._placed:
            self.say(f"{placed:,} of {self._orders:,} orders placed")
        elif monotonic() > self._last + 1:
            self.say(f"{closed:,} of {self._orders:,} orders closed, {effects:,} effects recorded")
        else:
            return
        self._placed, self._last = placed, monotonic()


class Bars:
    """Moves two bars: one as orders are placed, one as they are closed."""

    def __init__(self, orders: int, progress: Progress) -> None:
        self._orders = orders
        self._progress = progress
        self._placing = self._add("placed")
        self._closing = self._add("closed")

    def _add(self, name: str) -> TaskID:
        return self._progress.add_task(name, total=self._orders, said="")

    def say(self, line: str, /) -> None:
        """Write the line above the bars."""
        say.print(line)

    def progress(self, placed: int, closed: int, effects: int, /) -> None:
        """Move the bars."""
        of = f"of {self._orders:,}"
        self._progress.update(self._placing, completed=placed, said=f"{placed:,} {of}")
        self._progress.update(self._closing, completed=closed, said=f"{closed:,} {of}, {effects:,} effects")

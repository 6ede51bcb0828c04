"""The books: what a service knows, by key, wherever it is kept: in files, or in a database (`store`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rabbitevents.demo.journal import Journal

V = TypeVar("V")

Sums = Callable[[V], Mapping[str, Decimal]]
"""What a new entry adds to which of a service's sums."""


def no_sums(_value: object) -> Mapping[str, Decimal]:
    """Add to no sum."""
    return {}


class Book(Protocol[V]):
    """What is known of each key. In a database, it is read and written in the handler's transaction."""

    async def get(self, key: str) -> V | None:
        """Return what is noted for ``key``."""
        ...

    async def keep(self, key: str, value: V) -> V:
        """Note ``value`` unless something is noted for ``key``, and add to the sums if so; return what is noted."""
        ...

    async def put(self, key: str, value: V) -> None:
        """Note ``value`` in the place of what is noted; no sum changes."""
        ...


class Shelf(Protocol):
    """Where a service's books are, and its sums."""

    def book(self, name: str, kind: type[V], sums: Sums[V] = no_sums) -> Book[V]:
        """Open a book whose values are of ``kind``."""
        ...

    async def sum(self, name: str) -> Decimal:
        """Return a sum: 0 if nothing was added."""
        ...

    async def hold(self, name: str) -> Decimal:
        """Return a sum that nobody else changes, or holds, until this handler is done."""
        ...


class Folder:
    """A shelf of files. Nothing in here waits, so no other handler comes between two of its calls."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sums: dict[str, Decimal] = {}

    def book(self, name: str, kind: type[V], sums: Sums[V] = no_sums) -> Book[V]:
        """Open a file, and add up what it says."""
        book = FileBook(Journal(self._path / f"{name}.jsonl", kind), lambda value: self._add(sums(value)))
        book.add_up()
        return book

    def _add(self, amounts: Mapping[str, Decimal]) -> None:
        for name, amount in amounts.items():
            self._sums[name] = self._sums.get(name, Decimal(0)) + amount

    async def sum(self, name: str) -> Decimal:
        """Return a sum."""
        return self._sums.get(name, Decimal(0))

    async def hold(self, name: str) -> Decimal:
        """Return a sum."""
        return await self.sum(name)


class FileBook(Generic[V]):
    """A book that is a `Journal`."""

    def __init__(self, journal: Journal[V], add: Callable[[V], None]) -> None:
        self._journal = journal
        self._add = add

    def add_up(self) -> None:
        """Add what is noted already to the sums."""
        for value in self._journal.values():
            self._add(value)

    async def get(self, key: str) -> V | None:
        """Return what is noted."""
        return self._journal.get(key)

    async def keep(self, key: str, value: V) -> V:
        """Note the first word."""
        if key not in self._journal:
            self._journal[key] = value
            self._add(value)
        return self._journal[key]

    async def put(self, key: str, value: V) -> None:
        """Note the last word."""
        self._journal[key] = value

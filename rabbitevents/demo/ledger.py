"""The ledger: what services did, each effect on the disk before its event is acknowledged.

It stands outside of what is counted: an event that the broker confirmed and that has no effect here was lost, one
that has two was handled twice.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from rabbitevents.demo.journal import append, finished_lines


class Published(msgspec.Struct, frozen=True, array_like=True, tag_field="record", tag="published"):
    """An event that the broker has confirmed.

    ``cause`` is the event that it was published for ("" for none), ``root`` the first one of the cascade, ``about``
    what it happened to, ``at`` when it did (RFC 3339). A ``timeout`` is what a process has sent itself, to come ``at``
    that time: nobody may wait for it any more by then.
    """

    service: str
    event: str
    type: str
    cause: str
    root: str
    about: str
    at: str
    timeout: bool = False


class Handled(msgspec.Struct, frozen=True, array_like=True, tag_field="record", tag="handled"):
    """What came of an event in one queue: its handler has ended, and what it published is confirmed."""

    service: str
    queue: str
    event: str
    root: str


class Retried(msgspec.Struct, frozen=True, array_like=True, tag_field="record", tag="retried"):
    """A handling that failed, and is tried again ``after`` so many seconds, in the process or by way of the broker."""

    service: str
    queue: str
    event: str
    at: str
    attempt: int
    error: str
    after: float
    inline: bool


class GivenUp(msgspec.Struct, frozen=True, array_like=True, tag_field="record", tag="given up"):
    """An event that its handler will not see again, after so many ``attempts``: it goes to the dead letters."""

    service: str
    queue: str
    event: str
    at: str
    attempts: int
    error: str


Record = Published | Handled | Retried | GivenUp


class Records(Protocol):
    """Where records go: a `Ledger`, or what stands in the place of one."""

    def note(self, record: Record) -> None:
        """Have ``record`` kept, and in any case before what is recorded later."""
        ...

    async def record(self, record: Record) -> None:
        """Return once ``record`` is kept at least as well as what it is about."""
        ...

    async def close(self) -> None:
        """Keep what is waiting, and end."""
        ...


class Ledger:
    """An append-only file of records, shared by any number of handlers.

    A handler's event is acknowledged only after its record is fsynced. An fsync takes milliseconds, so records that
    arrive while one runs wait for the next, and share it.
    """

    def __init__(self, path: Path) -> None:
        finished_lines(path)
        self._file = path.open("ab", buffering=0)
        self._waiting: list[tuple[Record, asyncio.Future[None] | None]] = []
        self._committing: asyncio.Task[None] | None = None

    def note(self, record: Record) -> None:
        """Have ``record`` on the disk soon, and in any case before what is recorded later."""
        self._add(record, None)

    async def record(self, record: Record) -> None:
        """Return once ``record`` is on the disk, and what was noted before. Raises OSError if it cannot be put there."""
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(record, recorded)
        await recorded

    def _add(self, record: Record, recorded: asyncio.Future[None] | None) -> None:
        self._waiting.append((record, recorded))
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit())

    async def _commit(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._write, [record for record, _ in batch])
            except OSError as error:
                _answer((recorded for _, recorded in batch), error)
                notes = [(record, recorded) for record, recorded in batch if recorded is None]
                self._waiting[:0] = notes
                if len(self._waiting) == len(notes):
                    return  # nobody waits: the notes go with the next record
            else:
                _answer((recorded for _, recorded in batch), None)

    def _write(self, records: Iterable[Record]) -> None:
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size
        append(descriptor, b"".join(msgspec.json.encode(record) + b"\n" for record in records))
        try:
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)  # a record is there in full and for good, or not at all
            raise

    async def close(self) -> None:
        """Write what is waiting, and close the file. Raises OSError."""
        try:
            if self._committing is not None:
                await self._committing
            if self._waiting:
                await asyncio.to_thread(self._write, [record for record, _ in self._waiting])
        finally:
            self._file.close()


def _answer(waiting: Iterable[asyncio.Future[None] | None], error: OSError | None) -> None:
    for recorded in waiting:
        if recorded is None or recorded.done():
            continue  # a note, or a handler that was cancelled meanwhile
        if error is None:
            recorded.set_result(None)
        else:
            recorded.set_exception(error)

"""The ledger: what handlers did, each effect on the disk before its event is acknowledged.

It stands outside of what is counted: an event that the broker confirmed and that has no record here was lost, one
that has two was handled twice.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from attrs import frozen


@frozen
class Effect:
    """What one handler did about one event."""

    handler: str
    order_id: str
    event_id: str


class Ledger:
    """An append-only file of effects, shared by any number of handlers.

    A handler returns, and so has its event acknowledged, only after its record is fsynced. An fsync takes
    milliseconds, so records that arrive while one runs wait for the next, and share it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._size = 0
        self._waiting: list[tuple[Effect, asyncio.Future[None]]] = []
        self._committing: asyncio.Task[None] | None = None
        self._recorded: set[tuple[str, str]] = set()
        self._grown = asyncio.Event()

    async def record(self, effect: Effect) -> None:
        """Return once ``effect`` is on the disk. Raises OSError if it cannot be put there."""
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((effect, recorded))
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit())
        await recorded

    async def _commit(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            lines = b"".join(msgspec.json.encode(effect) + b"\n" for effect, _ in batch)
            error: OSError | None = None
            try:
                await asyncio.to_thread(self._append, lines)
            except OSError as raised:
                error = raised
            else:
                self._recorded.update((effect.handler, effect.order_id) for effect, _ in batch)
                self._tell_growth()
            _answer([recorded for _, recorded in batch], error)

    def _append(self, lines: bytes) -> None:
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), self._size)  # a record is there in full, or not at all
            raise
        self._size += len(lines)

    def _tell_growth(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    async def wait_for(self, expected: Iterable[tuple[str, str]], patience: float) -> None:
        """Return once each (handler, order id) is recorded. Raises TimeoutError after ``patience`` s without a new one."""
        for effect in expected:
            while effect not in self._recorded:
                async with asyncio.timeout(patience):
                    await self._grown.wait()

    def read(self) -> list[Effect]:
        """Return what is in the file."""
        return msgspec.json.Decoder(Effect).decode_lines(self.path.read_bytes())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _answer(waiting: Iterable[asyncio.Future[None]], error: OSError | None) -> None:
    for recorded in waiting:
        if recorded.done():
            continue  # its handler was cancelled meanwhile
        if error is None:
            recorded.set_result(None)
        else:
            recorded.set_exception(error)

"""The journal: what a service knows, kept in a file, so that the next process knows it too."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

V = TypeVar("V")


class Journal(Mapping[str, V], Generic[V]):
    """A mapping that is also a file: each assignment is a line, and opening it again reads them.

    It outlives a process that is killed, and not a power cut; a service that must uses a database.
    """

    def __init__(self, path: Path, kind: type[V]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._known: dict[str, V] = {}
        for line in finished_lines(path):
            key, value = msgspec.json.decode(line, type=tuple[str, msgspec.Raw])
            self._known[key] = msgspec.json.decode(value, type=kind)

    def __getitem__(self, key: str) -> V:
        return self._known[key]

    def __setitem__(self, key: str, value: V) -> None:
        with self._path.open("ab", buffering=0) as file:
            append(file.fileno(), msgspec.json.encode((key, value)) + b"\n")
        self._known[key] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def keep(self, key: str, value: V) -> V:
        """Note ``value`` unless something is noted for ``key``; return what is noted."""
        if key not in self._known:
            self[key] = value
        return self._known[key]


def finished_lines(path: Path) -> list[bytes]:
    """Return a file's lines. A last one that a killed process has not finished is cut off."""
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        finished = content.rfind(b"\n") + 1
        file.truncate(finished)
    return content[:finished].splitlines()


def append(descriptor: int, lines: bytes) -> None:
    """Write all of ``lines`` to the end of a file, or nothing. Raises OSError."""
    size = os.fstat(descriptor).st_size
    rest = memoryview(lines)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        os.ftruncate(descriptor, size)
        raise

"""What several processes write, on one stderr and one stdout: each line whole, whoever else is writing, however long.

A pipe takes only 4,096 bytes at once from one of several writers, and a line of a log with a traceback is longer. So each
process writes into pipes of its own, and a thread a pipe hands on whole lines. Nothing here is on the event loop, and
nothing is thrown away: where nobody reads our stderr, a process that writes waits, as it would without us.
"""

from __future__ import annotations

import io
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr, suppress
from queue import Full, Queue
from typing import Any, Final

from rabbitevents.logs import TextFormatter

CHUNK: Final = 65_536
LONGEST: Final = 1_048_576
"""Bytes that a line may have, and one `CHUNK` more. A longer one is divided: what a process writes without an end is not kept in memory."""

WAITING: Final = 1_000
"""Lines of our own that wait while stderr takes none; the next ones are lost. Processes wait, the supervisor must not."""

STUCK: Final = 0.5
"""Seconds after which a write that goes on counts as stuck."""

LAST_LINES: Final = 1.0
"""Seconds that what was written has to be handed on at the end."""

WITHIN: Final = "\0"
"""What stands for a line's end within a record: so a record of several lines is a single one until it is handed on."""


class RecordFormatter(TextFormatter):
    """Writes a record as `TextFormatter` does, as one line of a `Relay`, which makes several of it again."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record; no text of ours has a `WITHIN` in it."""
        return super().format(record).replace("\n", WITHIN)


class Output:
    """A file that several threads write to, whole lines at a time."""

    def __init__(self, descriptor: int) -> None:
        try:
            self.descriptor: int = os.dup(descriptor)
        except OSError:  # it was closed by whoever started us
            self.descriptor = os.open(os.devnull, os.O_WRONLY)
        self._lock = threading.Lock()
        self._since: float | None = None
        self._torn = False

    @property
    def stuck(self) -> bool:
        """Whether it takes nothing at the moment: nobody reads what we write."""
        since = self._since
        return since is not None and time.monotonic() - since > STUCK

    def write(self, lines: bytes) -> None:
        """Write whole lines, and wait until that is done. What cannot be written, as on a full disk, is lost."""
        with self._lock:
            if self._torn:
                lines = b"\n" + lines
            self._since = time.monotonic()
            left = memoryview(lines)
            with suppress(OSError):
                while left:
                    left = left[self._write(left) :]
            if len(left) < len(lines):
                self._torn = bool(left)
            self._since = None

    def _write(self, data: memoryview) -> int:
        try:
            written = os.write(self.descriptor, data)
        except BlockingIOError:  # somebody who has the file too wants it so
            select.select([], [self.descriptor], [])
            return 0
        self._since = time.monotonic()
        return written


class Relay:
    """Hands on what processes write to their stdout and stderr, to ours, or to other files. It ends with `close`."""

    def __init__(self, stdout: int = 1, stderr: int = 2) -> None:
        self.outputs: tuple[Output, Output] = Output(stdout), Output(stderr)
        """Where all of it goes."""
        self._threads: set[threading.Thread] = set()
        self._own: Queue[bytes | None] = Queue(WAITING)
        self._begin(self._hand_on_own)

    @property
    def stuck(self) -> bool:
        """Whether a process may be waiting for somebody to read what it writes."""
        return any(output.stuck for output in self.outputs)

    @contextmanager
    def pipes(self) -> Generator[tuple[int, int]]:
        """Make a pipe for a process's stdout and one for its stderr; yield their ends for writing, closed at the end."""
        ends = list[int]()
        try:
            for output, within in zip(self.outputs, (b"", WITHIN.encode()), strict=True):
                ours, theirs = os.pipe()
                ends.append(theirs)
                self._begin(_hand_on, ours, output, within)
            yield ends[0], ends[1]
        finally:
            for each in ends:
                os.close(each)

    @contextmanager
    def own_lines(self) -> Generator[None]:
        """Have what this process itself writes to ``sys.stderr`` wait its turn, and not the process."""
        with redirect_stderr(io.TextIOWrapper(_Waiting(self._own), "utf-8", "backslashreplace", write_through=True)):
            yield

    def close(self) -> None:
        """Hand on what was written, as far as that takes no longer than `LAST_LINES`."""
        end = time.monotonic() + LAST_LINES
        with suppress(Full):
            self._own.put_nowait(None)
        for thread in list(self._threads):  # those whose pipe is held by what a process has started and left go on
            thread.join(max(0.0, end - time.monotonic()))

    def _begin(self, what: Callable[..., None], *told: object) -> None:
        def run() -> None:
            what(*told)
            self._threads.discard(thread)

        thread = threading.Thread(target=run, name="rabbitevents relay", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _hand_on_own(self) -> None:
        while (line := self._own.get()) is not None:
            self.outputs[1].write(line)


def _hand_on(descriptor: int, output: Output, within: bytes) -> None:
    """Hand on what comes through a pipe until nobody holds its other end, line by line."""
    kept = b""
    with open(descriptor, "rb", buffering=0) as pipe:
        while block := pipe.read(CHUNK):
            whole, end, rest = block.rpartition(b"\n")
            if end or len(kept) + len(rest) > LONGEST:
                lines, kept = kept + whole, rest
                output.write((lines.replace(within, b"\n") if within else lines) + b"\n")
            else:
                kept += rest
    if kept:
        output.write(kept + b"\n")  # it died in the middle of a line


class _Waiting(io.BytesIO):
    """A file whose lines wait in a queue; what the queue has no room for is lost."""

    def __init__(self, queue: Queue[bytes | None]) -> None:
        super().__init__()
        self._queue = queue

    def write(self, data: Any) -> int:
        """Take a line, or what `print` makes of one."""
        line = bytes(data)
        with suppress(Full):
            self._queue.put_nowait(line)
        return len(line)

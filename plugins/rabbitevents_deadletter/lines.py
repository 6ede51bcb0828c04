"""Dead letters as JSON lines: written so that what is read again is the same, byte for byte and type for type.

A body that is JSON stands in its line as it is, so that it can be read and edited; any other in base64. The properties
stand there as AMQP's own bytes, in base64: JSON has no word for most of what headers hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from rabbitevents import ConfigurationError, DecodeError, Delivery, encode_properties
from rabbitevents_deadletter.labels import DEAD, cut, dead_queue_of, moment
from rabbitevents_deadletter.letters import DeadLetterMessage

FORMAT: Final = "dead-letter/2"


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line. What stands between the queue and the address is for people, and not read again."""

    rabbitevents: str
    queue: str
    id: str = ""
    type: str = ""
    error: str = ""
    failed_at: str = ""
    address: tuple[bytes, bytes] = (b"", b"")
    """The exchange and the routing key that it came with: where this message was published to, not its event first."""
    properties: bytes | None = None
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body_base64: bytes | None = None


def write_line(letter: DeadLetterMessage) -> bytes:
    """Return a dead letter as a line, without its line feed. Raises `DecodeError` for one whose body was not kept."""
    delivery = letter.delivery
    if delivery.oversize:
        raise DecodeError(f"{letter.describe()}: its body of {letter.size:,} bytes was over the limit, and not kept")
    raw = delivery.raw
    line = Line(
        rabbitevents=FORMAT,
        queue=delivery.queue.removesuffix(DEAD),
        id=cut(letter.id, 255),
        type=cut(letter.type, 255),
        error=cut(letter.cause, 255),
        failed_at=moment(letter.failed_at) if letter.failed_at is not None else "",
        address=(_bytes(delivery.via_exchange), _bytes(delivery.via_routing_key)),
        properties=raw if isinstance(raw, bytes) else encode_properties(raw),
    )
    return _with_body(line, delivery.body)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _with_body(line: Line, body: bytes) -> bytes:
    """Put the body in: as it is, where it is JSON and comes out of the line again as the same bytes."""
    if b"\n" not in body:
        try:
            msgspec.json.decode(body)
            line.body = msgspec.Raw(body)
            data = msgspec.json.encode(line)
            if _body_of(msgspec.json.decode(data, type=Line)) == body:
                return data
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass  # it is no JSON, or none that everybody could read
    line.body, line.body_base64 = msgspec.UNSET, body
    return msgspec.json.encode(line)


def read_line(data: bytes) -> DeadLetterMessage:
    """Read what `write_line` wrote, or what somebody made of it. Raises `DecodeError`."""
    try:
        line = msgspec.json.decode(data, type=Line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"it is no line of an export: {error}") from error
    if line.rabbitevents != FORMAT:
        raise DecodeError(f"it is {line.rabbitevents[:40]!r}, and not {FORMAT!r}: take the version that wrote it")
    if line.properties is None:
        raise DecodeError("it has no properties")
    exchange, routing_key = (word.decode("utf-8", "surrogateescape") for word in line.address)
    properties = line.properties
    letter = DeadLetterMessage.of(
        Delivery(dead_queue_of(line.queue), 0, 0, False, exchange, routing_key, _body_of(line), properties)
    )
    # One that has no id of its own is named by its body, which may have been changed since.
    return msgspec.structs.replace(letter, id=line.id) if letter.is_nameless and line.id else letter


def _body_of(line: Line) -> bytes:
    if line.body_base64 is not None:
        return line.body_base64
    if not isinstance(line.body, msgspec.Raw):
        raise DecodeError("it has no body")
    return bytes(line.body)


def is_export(first: bytes) -> bool:
    """Say whether the first line of a file is one of an export."""
    try:
        return msgspec.json.decode(first.removeprefix(_MARK), type=_Head).rabbitevents.startswith("dead-letter/")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


class _Head(msgspec.Struct):
    rabbitevents: str


_MARK: Final = b"\xef\xbb\xbf"
"""What some editors begin a file with."""


def read_lines(path: Path) -> Iterator[DeadLetterMessage]:
    """Read a file of lines, one after the other. Raises `ConfigurationError`, which names the line."""
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            text = data.removeprefix(_MARK).strip()
            try:
                if text:
                    yield read_line(text)
            except DecodeError as error:
                torn = "" if data.endswith(b"\n") else "; it has no end: its writing was broken off, so leave it out"
                raise ConfigurationError(f"{path}, line {number}: {error}{torn}") from error


class Lines:
    """A new file of lines, for one ``with``. What `sync` has returned for survives the machine; an empty one is taken away.

    A ``path`` of ``-`` is the standard output. Raises `ConfigurationError` for a file that is there already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_empty = True
        self._is_stream = str(path) == "-"
        if self._is_stream and os.isatty(1):
            raise ConfigurationError("stdout is a terminal, which bodies could harm: name a file, or pipe it")
        try:
            self._file = os.dup(1) if self._is_stream else os.open(path, _NEW, 0o600)
        except FileExistsError as error:
            raise ConfigurationError(f"{path} is there already, and is not written over: name another file") from error
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sync()
        finally:
            os.close(self._file)
            if self._is_empty and not self._is_stream:
                self.path.unlink(missing_ok=True)

    def write(self, letter: DeadLetterMessage) -> None:
        """Add a line. Raises `DecodeError` for a letter whose body was not kept, and OSError."""
        data = memoryview(write_line(letter) + b"\n")
        self._is_empty = False
        while data:
            data = data[os.write(self._file, data) :]

    def sync(self) -> None:
        """Have the disk keep what was written, and the file's name."""
        if self._is_stream:
            return
        os.fsync(self._file)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
"""A file that was not there, readable by its owner alone: bodies are nobody else's business."""

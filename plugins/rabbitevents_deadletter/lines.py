"""Dead letters as JSON lines: written so that what is read again is the same, byte for byte and type for type.

A body that is JSON stands in its line as it is, so that it can be read and edited; any other in base64. Header values
that JSON has no word for stand in the form of `rabbitevents_deadletter.packing`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import msgspec

from rabbitevents import ConfigurationError, DecodeError, Delivery, Properties
from rabbitevents_deadletter.labels import DEAD, cut, moment
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.packing import pack, pack_properties, unpack, unpack_properties

FORMAT: Final = "dead-letter/1"


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line. What stands before the address is for people, and not read again."""

    rabbitevents: str
    queue: str
    id: str = ""
    type: str = ""
    error: str = ""
    failed_at: str = ""
    exchange: Any = ""
    """The address that it came with: where this message was published to, not where its event was first."""
    routing_key: Any = ""
    properties: dict[str, Any] | None = None
    properties_base64: str | None = None
    """The properties as AMQP's bytes, where they cannot be read."""
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body_base64: str | None = None


def write_line(letter: DeadLetterMessage) -> bytes:
    """Return a dead letter as a line, without its line feed. Raises `DecodeError` for one whose body was not kept."""
    delivery = letter.delivery
    if delivery.oversize:
        raise DecodeError(f"{letter.describe()}: its body of {letter.size:,} bytes was over the limit, and not kept")
    line = Line(
        rabbitevents=FORMAT,
        queue=letter.queue,
        id=cut(letter.id, 255),
        type=cut(letter.type, 255),
        error=cut(letter.cause, 255),
        failed_at=moment(letter.failed_at) if letter.failed_at is not None else "",
        exchange=pack(delivery.via_exchange),
        routing_key=pack(delivery.via_routing_key),
    )
    if letter.unreadable:
        line.properties_base64 = base64.b64encode(cast("bytes", delivery.raw)).decode()
    else:
        line.properties = pack_properties(delivery.properties)
    return _with_body(line, delivery.body)


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
    line.body, line.body_base64 = msgspec.UNSET, base64.b64encode(body).decode()
    return msgspec.json.encode(line)


def read_line(data: bytes) -> DeadLetterMessage:
    """Read what `write_line` wrote, or what somebody made of it. Raises `DecodeError`."""
    try:
        line = msgspec.json.decode(data, type=Line)
        if line.rabbitevents != FORMAT:
            raise DecodeError(f"it is {line.rabbitevents[:40]!r}, and not {FORMAT!r}")
        properties, body = _properties_of(line), _body_of(line)
        exchange, routing_key = str(unpack(line.exchange)), str(unpack(line.routing_key))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"it is no line of an export: {error}") from error
    return DeadLetterMessage.of(Delivery(line.queue + DEAD, 0, 0, False, exchange, routing_key, body, properties))


def _properties_of(line: Line) -> bytes | Properties:
    if line.properties_base64 is not None:
        return base64.b64decode(line.properties_base64, validate=True)
    if line.properties is None:
        raise DecodeError("it has no properties")
    return unpack_properties(line.properties)


def _body_of(line: Line) -> bytes:
    if line.body_base64 is not None:
        return base64.b64decode(line.body_base64, validate=True)
    if not isinstance(line.body, msgspec.Raw):
        raise DecodeError("it has no body")
    return bytes(line.body)


def read_lines(path: Path) -> Iterator[DeadLetterMessage]:
    """Read a file of lines, one after the other. Raises `ConfigurationError`, which names the line."""
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            text = data.removeprefix(b"\xef\xbb\xbf").strip()
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

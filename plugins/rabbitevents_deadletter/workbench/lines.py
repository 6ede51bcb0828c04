"""Dead letters as JSON lines: written so that what is read again is the same, byte for byte and type for type.

A body that is JSON stands in its line as it is, so that it can be read and edited; any other in base64. The properties
stand there as AMQP's own bytes, in base64: JSON has no word for most of what headers hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import msgspec

from rabbitevents import ConfigurationError, DecodeError, Delivery, encode_properties
from rabbitevents.texts import cut
from rabbitevents_deadletter.labels import DEAD, dead_queue_of, moment
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.workbench.selection import Selection

FORMAT: Final = "dead-letter/2"

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL
"""A file that was not there; its owner alone may read it: bodies are nobody else's business."""

_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What comes of reading what is no JSON, or not the one that it should be."""


class Head(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What every line of every version has."""

    rabbitevents: str


class Line(Head, kw_only=True, omit_defaults=True):
    """One line. What stands between the queue and the address is for people, and not read again."""

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

    @property
    def content(self) -> bytes:
        """The body, byte for byte. Raises `DecodeError`."""
        if self.body_base64 is None and not isinstance(self.body, msgspec.Raw):
            raise DecodeError("it has no body")
        return bytes(self.body) if isinstance(self.body, msgspec.Raw) else self.body_base64 or b""


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
    with suppress(*_UNREADABLE):  # it is no JSON, or none that everybody could read
        msgspec.json.decode(body)
        line.body = msgspec.Raw(body)
        data = msgspec.json.encode(line)
        if b"\n" not in body and msgspec.json.decode(data, type=Line).content == body:
            return data
    line.body, line.body_base64 = msgspec.UNSET, body
    return msgspec.json.encode(line)


def read_line(data: bytes) -> DeadLetterMessage:
    """Read what `write_line` wrote, or what somebody made of it. Raises `DecodeError`."""
    try:
        version = msgspec.json.decode(data, type=Head).rabbitevents
        if version != FORMAT:
            raise DecodeError(f"it is {version[:40]!r}, and not {FORMAT!r}: take the version that wrote it")
        line = msgspec.json.decode(data, type=Line)
    except _UNREADABLE as error:
        raise DecodeError(f"it is no line of an export: {error}") from error
    if line.properties is None:
        raise DecodeError("it has no properties")
    exchange, routing_key = (word.decode("utf-8", "surrogateescape") for word in line.address)
    letter = DeadLetterMessage.of(
        Delivery(dead_queue_of(line.queue), 0, 0, False, exchange, routing_key, line.content, line.properties)
    )
    # One that has no id of its own is named by its body, which may have been changed since.
    return msgspec.structs.replace(letter, id=line.id) if letter.is_nameless and line.id else letter


_MARK: Final = b"\xef\xbb\xbf"
"""What some editors begin a file with."""


def read_lines(path: Path) -> Iterator[DeadLetterMessage]:
    """Read a file of lines, one after the other. Raises `ConfigurationError`, which names the line."""
    with _opened(path) as file:
        for number, data in enumerate(file, 1):
            text = data.removeprefix(_MARK).strip()
            try:
                if text:
                    yield read_line(text)
            except DecodeError as error:
                torn = "" if data.endswith(b"\n") else "; it has no end: its writing was broken off, so leave it out"
                raise ConfigurationError(f"{path}, line {number}: {error}{torn}") from error


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


class Edits(msgspec.Struct, frozen=True):
    """What is meant, and with which bodies, as `DeadLetters.replay` takes it."""

    selection: Selection
    bodies: dict[str, bytes] = {}
    only: frozenset[bytes] | None = None


def edited(path: Path, selection: Selection) -> Edits:
    """Return the bodies in a file that a person has changed, and the selection narrowed to their letters.

    The file is an export, with a line for each letter, however many are of one event; or else it is one body, for the one
    event that is selected by its id. Raises `ConfigurationError`.
    """
    with _opened(path) as file:
        first = next((line for line in file if line.strip()), b"")
    if not _is_export(first):
        if len(selection.ids) != 1:
            raise ConfigurationError(
                f"{path} is one body (no export): say with --id which event it is for, and only one"
            )
        return Edits(selection, {selection.ids[0].lower(): path.read_bytes()})
    bodies: dict[bytes, bytes] = {}
    ids: dict[str, None] = {}
    for letter in filter(Selection(ids=selection.ids).takes, read_lines(path)):
        ids[letter.id] = None
        if bodies.setdefault(letter.digest(body=False), letter.body) != letter.body:
            raise ConfigurationError(f"{path} has two bodies for one letter of {letter.describe()}: leave one out")
    if not bodies:
        raise ConfigurationError(f"{path} has none of the events that --id names")
    narrowed = msgspec.structs.replace(selection, ids=tuple(ids))
    return Edits(narrowed, {digest.hex(): body for digest, body in bodies.items()}, frozenset(bodies))


def _is_export(first: bytes) -> bool:
    try:
        return msgspec.json.decode(first.removeprefix(_MARK), type=Head).rabbitevents.startswith("dead-letter/")
    except _UNREADABLE:
        return False


class Lines:
    """A new file of lines, for one ``with``. What `sync` has returned for survives the machine; an empty one is taken away.

    A ``path`` of ``-`` is the standard output. Raises `ConfigurationError` for a file that is there already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_stream = str(path) == "-"
        if self._is_stream and os.isatty(1):
            raise ConfigurationError("stdout is a terminal, which bodies could harm: name a file, or pipe it")
        try:
            self._file: BinaryIO = os.fdopen(os.dup(1) if self._is_stream else os.open(path, _NEW, 0o600), "wb")
        except FileExistsError as error:
            raise ConfigurationError(f"{path} is there already, and is not written over: name another file") from error
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self.sync()
        if not self._is_stream and not self.path.stat().st_size:
            self.path.unlink()

    def write(self, letter: DeadLetterMessage) -> None:
        """Add a line. Raises `DecodeError` for a letter whose body was not kept, and OSError."""
        self._file.write(write_line(letter) + b"\n")

    def sync(self) -> None:
        """Have the disk keep what was written, and the file's name."""
        self._file.flush()
        if self._is_stream:
            return
        os.fsync(self._file.fileno())
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

"""AMQP's frames: their numbers, and the few methods that the lanes read and write. Bytes in, values out.

What is read is held against the frame's end, since the bytes behind it belong to somebody else: a method that is
shorter than its fields, or longer, is a `FrameError`.

Source: AMQP 0-9-1, sections 2.3.5 (frames), 4.2.6 (content), 1.8 (basic).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

METHOD, HEADER, BODY, BEAT = 1, 2, 3, 8
KINDS: Final = frozenset((METHOD, HEADER, BODY, BEAT))
HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
FRAME_END: Final = 0xCE
OVERHEAD: Final = 8
"""Bytes of a frame around its payload: type, channel, size, end."""

FRAME_LIMIT: Final = 1_048_576
"""The largest frame in bytes that is taken for one, unless a larger one was agreed upon. (RabbitMQ does not divide the
headers of a message, and those may come out longer than they went in.)"""

LARGEST_BODY: Final = 2**31
"""Bytes of a body that no broker has: RabbitMQ takes at most 512 MiB."""

CONTENT_HEAD: Final = 12
"""Bytes of a content header before the properties: class, weight, body size."""

CHANNEL_OPEN_OK: Final = b"\x00\x14\x00\x0b"
CHANNEL_CLOSE: Final = b"\x00\x14\x00\x28"
CHANNEL_CLOSE_OK: Final = b"\x00\x14\x00\x29"
BASIC_CANCEL: Final = b"\x00\x3c\x00\x1e"
BASIC_PUBLISH: Final = b"\x00\x3c\x00\x28"
BASIC_RETURN: Final = b"\x00\x3c\x00\x32"
BASIC_DELIVER: Final = b"\x00\x3c\x00\x3c"
BASIC_ACK: Final = b"\x00\x3c\x00\x50"
BASIC_REJECT: Final = b"\x00\x3c\x00\x5a"
BASIC_NACK: Final = b"\x00\x3c\x00\x78"
CONNECTION_CLOSE: Final = b"\x00\x0a\x00\x32"
CONNECTION_CLOSE_OK: Final = b"\x00\x0a\x00\x33"
CONNECTION_BLOCKED: Final = b"\x00\x0a\x00\x3c"
CONNECTION_UNBLOCKED: Final = b"\x00\x0a\x00\x3d"

read_head: Callable[[bytes, int], tuple[int, int, int]] = struct.Struct(">BHI").unpack_from
"""Reads a frame's first seven bytes: type, channel, size of the payload."""

read_tag: Callable[[bytes, int], tuple[int, int]] = struct.Struct(">QB").unpack_from
"""Reads a delivery tag and the bits after it: in a basic.deliver behind the consumer tag, and in an answer."""

_read_content: Callable[[bytes, int], tuple[int, int, int]] = struct.Struct(">HHQ").unpack_from
_BASIC = 60
_NAMES = {METHOD: "method", HEADER: "header", BODY: "body", BEAT: "heartbeat"}


class FrameError(Exception):
    """The broker sent frames that contradict each other, or themselves: nothing that follows can be trusted."""


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return one whole frame."""
    return b"".join((bytes((kind,)), channel.to_bytes(2, "big"), len(payload).to_bytes(4, "big"), payload, b"\xce"))


def named(kind: int) -> str:
    """Name a type of frame in an error."""
    return f"a {_NAMES[kind]} frame" if kind in _NAMES else f"a frame of type {kind}"


def content_size(buffer: bytes, at: int, end: int) -> int:
    """Read a content header: how long the body will be. The properties begin at `CONTENT_HEAD`."""
    if end - at < CONTENT_HEAD + 2:
        raise FrameError(f"a content header of {end - at} bytes")
    class_id, _, size = _read_content(buffer, at)
    if class_id != _BASIC:
        raise FrameError(f"a content header of class {class_id}")
    if size > LARGEST_BODY:
        raise FrameError(f"a body of {size} bytes was announced")
    return size


def delivery_address(data: bytes) -> tuple[str, str]:
    """Read the end of a basic.deliver: exchange and routing key."""
    exchange, at = _text(data, 0, len(data))
    routing_key, at = _text(data, at, len(data))
    _ends("a basic.deliver", at, len(data))
    return exchange, routing_key


def returned_from(buffer: bytes, at: int, end: int) -> tuple[str, str]:
    """Read a basic.return: exchange and routing key, after the reply code and the reply text."""
    _, at = _text(buffer, at + 6, end)
    exchange, at = _text(buffer, at, end)
    routing_key, at = _text(buffer, at, end)
    _ends("a basic.return", at, end)
    return exchange, routing_key


def close_reason(buffer: bytes, at: int, end: int) -> tuple[int, str, int, int]:
    """Read a close of channel or connection: reply code, text, and the class and method that caused it."""
    code = int.from_bytes(buffer[at + 4 : at + 6], "big")
    said, at = _text(buffer, at + 6, end)
    _ends("a close", at + 4, end)
    return code, readable(said), int.from_bytes(buffer[at : at + 2], "big"), int.from_bytes(buffer[at + 2 : end], "big")


def blocked_because(buffer: bytes, at: int, end: int) -> str:
    """Read a connection.blocked: the broker's reason."""
    reason, at = _text(buffer, at + 4, end)
    _ends("a connection.blocked", at, end)
    return readable(reason)


def _text(buffer: bytes, at: int, end: int) -> tuple[str, int]:
    """Read a short string; return it, and where the next field begins, beyond ``end`` for one that is cut off."""
    begin = at + 1
    until = begin + buffer[at] if at < end else begin
    return buffer[begin:until].decode("utf-8", "surrogateescape"), until


def readable(said: str) -> str:
    """Return what the broker said so that it can be logged and shown, whatever bytes it was."""
    return said.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _ends(what: str, at: int, end: int) -> None:
    if at != end:
        raise FrameError(f"{what} that is {'longer' if at < end else 'shorter'} than its fields")

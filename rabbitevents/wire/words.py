"""What strangers say, made sound: types, content types, versions, correlation ids, and how an error shows them.

Whatever is read here came from outside. A text in an error is cut, and never a payload's.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from rabbitevents.errors import DecodeError
from rabbitevents.ids import as_uuid

MOST_BYTES: Final = 255
"""How long a type, a content type or a correlation id may be: what AMQP's short strings carry."""

LATEST_VERSION: Final = 2**31 - 1

BOM: Final = b"\xef\xbb\xbf"
"""The byte order mark, which .NET's writers put before their UTF-8, and which no JSON begins with (RFC 8259, 8.1)."""

_UTF_8: Final = frozenset({"", "utf-8", "utf8", "us-ascii", "ascii"})
_LATIN_1: Final = frozenset({"iso-8859-1", "iso8859-1", "latin-1", "latin1"})
_NO_ENCODING: Final = frozenset({"", "identity", "binary", "7bit", "8bit"})


def shown(text: str) -> str:
    """Return a text from outside as an error shows it: quoted, escaped, and cut."""
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."


def fits(text: str) -> bool:
    """Say whether a text is UTF-8 that one of AMQP's short strings can carry."""
    if text.isascii():
        return len(text) <= MOST_BYTES
    try:
        return len(text.encode()) <= MOST_BYTES
    except UnicodeEncodeError:
        return False


def checked_type(kind: str) -> str:
    """Return a type that a document states. Raises `DecodeError` for one that no property could carry."""
    if not kind or not fits(kind):
        raise DecodeError(f"the type that it states has {len(kind):,} characters; AMQP carries 1 to 255 bytes of UTF-8")
    return kind


def read_content_type(stated: str) -> str:
    """Return a content type without its parameters. Raises `DecodeError` for one that no property could carry."""
    if len(stated) > MOST_BYTES:
        raise DecodeError(f"the content type that it states has {len(stated):,} characters; AMQP carries at most 255")
    return stated.partition(";")[0].strip().lower()


def is_json(content_type: str) -> bool:
    """Say whether a content type (without parameters) is one of JSON's: by name, or by its suffix (RFC 6839, 3.1)."""
    return content_type in ("application/json", "text/json") or content_type.endswith("+json")


def utf_8(body: bytes, content_type: str, encoding: str) -> bytes:
    """Return a body as UTF-8 without a byte order mark. Raises `DecodeError` for what is compressed, or in other signs.

    The content type's parameter says the charset; where it says none the content encoding does, as kombu and Spring
    have it, although HTTP has that word for compression.
    """
    encoding = encoding.strip().lower()
    charset = _charset(content_type)
    if encoding not in _NO_ENCODING:
        if encoding not in _UTF_8 and encoding not in _LATIN_1:
            raise DecodeError(f"the content encoding {shown(encoding)} is not understood: have it sent as it is")
        charset = charset or encoding
    if charset in _LATIN_1:
        return body.decode("latin-1").encode()
    if charset not in _UTF_8:
        raise DecodeError(f"the charset {shown(charset)} is not understood: have it sent as UTF-8")
    return body.removeprefix(BOM)


def _charset(content_type: str) -> str:
    """Return the charset that a content type says, in lower case; empty where it says none."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip("\"'").lower()
    return ""


def read_version(value: object) -> int:
    """Read a schema version: ``1``, ``"1"`` or ``"1.0"``. Raises `DecodeError`."""
    number = math.nan
    if type(value) is int:
        if 0 <= value <= LATEST_VERSION:
            return value
    elif isinstance(value, float):
        number = value
    elif isinstance(value, str) and len(value) <= 32:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
    if not number.is_integer() or not 0 <= number <= LATEST_VERSION:
        raise DecodeError("the event version is no whole number from 0 to 2,147,483,647")
    return int(number)


def carried(correlation_id: str | None) -> str | None:
    """Return a correlation id as it goes on, or None.

    One that the properties cannot carry, or that is no UTF-8 and so cannot stand in a CloudEvent, is replaced by a
    UUID made from it, always the same: what a handler publishes goes on in the same cascade instead of failing.
    """
    if correlation_id is None or fits(correlation_id):
        return correlation_id
    return str(as_uuid(correlation_id))


def readable(text: str) -> str:
    """Return a text as UTF-8 can say it: bytes that were none are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def plain(value: msgspec.Raw) -> Any:
    """Return a value of a document: a text, a number or a truth as it is, an object or an array as it came.

    What nests is never built, however deep it goes: the parser has been over it, and a handler reads text.
    """
    data = bytes(value)
    return value if data[:1] in (b"{", b"[") else msgspec.json.decode(data)


def text(value: object) -> str:
    """Return a value as text: truths and what nests as JSON writes them."""
    if isinstance(value, str):
        return value
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()
    return str(value).lower() if isinstance(value, bool) else str(value)

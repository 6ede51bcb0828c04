"""A payload class and its bytes: one strictness, whichever path they take.

Strict types, nothing coerced, unknown fields ignored. The path is `rabbitevents.paths`'s business; here are versions,
and what an error says: where, and never what.

Each class is bound once, at start; per message there is one call. (A JSON number for a Decimal keeps all its digits
on the first path, and those of a float, 17, on the second; we ourselves write a Decimal as text.)
"""

from __future__ import annotations

import collections.abc
import math
import re
from typing import Any, Generic, TypeVar, cast

import msgspec

from rabbitevents.errors import DecodeError, EncodeError
from rabbitevents.events import Document, EventType, event_type
from rabbitevents.payload.paths import Path, may_hold_nan, path_for

P = TypeVar("P")

_REFUSED = (
    msgspec.MsgspecError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What reading a document raises when it does not fit: msgspec's, and those of converters, validators and upcasters
(``Decimal("one")`` is an ArithmeticError)."""


_VALUE = re.compile(r"^Invalid (enum )?value .*?(?P<where> - at `\$[^`]*`)?$", re.DOTALL)
"""What msgspec says of an enum, a literal or a tag: it shows the value, which we do not."""


class Codec(Generic[P]):
    """What reads and writes one event class, whatever version a document is of."""

    def __init__(self, cls: type[P]) -> None:
        self.spec: EventType = event_type(cls)
        self.spec.check_upcasters(cls)
        self._path: Path[P] = path_for(cls)
        self._may_hold_nan = may_hold_nan(cls)

    def encode(self, payload: P) -> bytes:
        """Return the payload as JSON. Raises `EncodeError`, which says where, and not what, it holds."""
        try:
            body = self._path.encode(payload)
            if self._may_hold_nan and b"null" in body and _holds_nan(self._path.document(payload)):
                raise ValueError("NaN and infinities are no JSON, and would arrive as null")
            return body
        except (msgspec.MsgspecError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise EncodeError(f"{type(payload).__name__} cannot be written as JSON: {_reason(error)}") from error

    def decode(self, body: bytes, version: int) -> P:
        """Read JSON of ``version`` into the class; older documents are led up step by step. Raises `DecodeError`.

        A newer version than known is read too, its unknown fields ignored, if it still fits.
        """
        try:
            if version >= self.spec.version:
                return self._path.decode(body)
        except (*_REFUSED, RecursionError) as error:
            raise self._misfit(version, error) from error
        return self.structure(read_document(body), version)

    def structure(self, document: Any, version: int) -> P:
        """Read a document of ``version`` into the class. Raises `DecodeError`."""
        spec = self.spec
        if version < spec.oldest:
            raise DecodeError(
                f"{spec.name} came in version {version}, older than {spec.oldest}, the oldest understood here",
                type=spec.name,
            )
        try:
            return self._path.structure(spec.upcast(document, version))
        except (*_REFUSED, RecursionError) as error:
            raise self._misfit(version, error) from error

    def _misfit(self, version: int, error: BaseException) -> DecodeError:
        spec = self.spec
        if version > spec.version:
            text = f"{spec.name} came in version {version}, newer than {spec.version}, the newest known here, and does not fit"
        else:
            text = f"{spec.name} version {version} does not fit its class"
        return DecodeError(f"{text}: {_reason(error)}", type=spec.name)


def read_document(body: bytes) -> Any:
    """Read JSON as plain values. Raises `DecodeError`. Depth is capped by the parser at Python's recursion limit."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"the body is no JSON: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Say what was wrong and where, without any value that the document held."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, msgspec.MsgspecError) and error.__cause__ is None:
        return _VALUE.sub(lambda shown: f"invalid value{shown['where'] or ''}", str(error))
    if isinstance(error, KeyError):
        return "a field is missing, or a union's tag is unknown"
    return f"{type(error.__cause__ or error).__name__}"


def _holds_nan(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_holds_nan, cast("Document", value).values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_holds_nan, cast("collections.abc.Iterable[Any]", value)))
    return False

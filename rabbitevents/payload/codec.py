"""A payload class and its bytes: one strictness, whichever path they take.

Strict types, nothing coerced, unknown fields ignored. The path is `paths`'s business; here are versions,
and what an error says: where, and never what.

Each class is bound once, at start; per message there is one call. (A JSON number for a Decimal keeps all its digits
on the first path, and those of a float, 17, on the second; we ourselves write a Decimal as text.)
"""

from __future__ import annotations

import collections.abc
import math
from typing import Any, Generic, TypeVar, cast

import msgspec

from rabbitevents.errors import DecodeError, EncodeError
from rabbitevents.events import Document, EventType, event_type
from rabbitevents.payload.flooding import HARMLESS, can_be_flooded, check
from rabbitevents.payload.kinds import may_hold_nan
from rabbitevents.payload.paths import Path, path_for

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


_SAFE = (
    "Expected ",
    "Object missing required field ",
    "JSON is malformed",
    "Input data was truncated",
    "Integer value out of range",
    "Duration is out of range",
    "Invalid UUID",
    "Invalid RFC3339 encoded ",
    "Invalid ISO8601 ",
    "Invalid decimal string",
    "Invalid base64 encoded string",
    "Invalid epoch timestamp",
)
"""How what msgspec says begins where it shows no value and no name that a document holds."""


class Codec(Generic[P]):
    """What reads and writes one event class, whatever version a document is of."""

    def __init__(self, cls: type[P]) -> None:
        self.spec: EventType = event_type(cls)
        self.spec.check_upcasters(cls)
        self._path: Path[P] = path_for(cls)
        self._may_hold_nan = may_hold_nan(cls)
        self._can_be_flooded = can_be_flooded(cls)

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
        if version < self.spec.version:
            return self.structure(read_document(body), version)
        try:
            if self._can_be_flooded and len(body) > HARMLESS:
                check(read_document(body), self.spec.name)
            return self._path.decode(body)
        except (*_REFUSED, RecursionError) as error:
            raise self._misfit(version, error) from error

    def structure(self, document: Any, version: int) -> P:
        """Read a document of ``version`` into the class. Raises `DecodeError`."""
        spec = self.spec
        if version < spec.oldest:
            raise DecodeError(
                f"{spec.name} came in version {version}, older than {spec.oldest}, the oldest understood here",
                type=spec.name,
            )
        try:
            if self._can_be_flooded:
                check(document, spec.name)
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
    """Read JSON as plain values. Raises `DecodeError`.

    Depth is capped by the parser: at Python's recursion limit, from 3.14 on at the thread's stack.
    """
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
        return _said(str(error))
    if isinstance(error, KeyError):
        return "a field is missing, or a union's tag is unknown"
    return f"{type(error.__cause__ or error).__name__}"


def _said(text: str) -> str:
    """Return what msgspec says, without what it shows of the document: a value, or the name of an unknown field."""
    if text.startswith("Object contains unknown field "):
        return "it has a field that its class does not know"
    if text.startswith(_SAFE):
        return text if len(text) <= 300 else f"{text[:100]} ... {text[-100:]}"
    if text.startswith(("Invalid value ", "Invalid enum value ")):
        return f"invalid value{_where(text)}"
    return "it does not fit"


def _where(text: str) -> str:
    """Return the place that ends a text of msgspec's, if one does: the last one, for a value may look like one too."""
    _, at, place = text.rpartition(" - at `")
    return f" - at `{place[-200:]}" if at and text.endswith("`") and place.startswith("$") else ""


def _holds_nan(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_holds_nan, cast("Document", value).values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_holds_nan, cast("collections.abc.Iterable[Any]", value)))
    return False

"""A payload class and its bytes: one strictness, whichever path they take.

Strict types, nothing coerced, unknown fields ignored. The path is `paths`'s business; here are versions,
and what an error says: where, and never what.

What a class's own converters, validators and types raise is anybody's, so here every exception is caught: none of them
may pass for a failure of the handler, which would be tried again.

Each class is bound once, at start; per message there is one call. (A JSON number for a Decimal keeps all its digits
on the first path, and those of a float, 17, on the second; we ourselves write a Decimal as text.)
"""

from __future__ import annotations

import collections.abc
import math
from typing import Any, Generic, TypeVar, cast

import msgspec

from rabbitevents.errors import ConfigurationError, DecodeError, EncodeError
from rabbitevents.events import Document, EventType, event_type
from rabbitevents.payload.alike import difference
from rabbitevents.payload.describing import describe
from rabbitevents.payload.flooding import HARMLESS, can_be_flooded, check
from rabbitevents.payload.hints import plainly
from rabbitevents.payload.models import is_model
from rabbitevents.payload.paths import Path, Walked, path_for
from rabbitevents.payload.reading import MisfitError, SafeError
from rabbitevents.payload.shapes import Opaque, Record, Scalar, Shape
from rabbitevents.payload.writing import holds_times

P = TypeVar("P")

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
    """What reads and writes one event class, whatever version a document is of. Raises `ConfigurationError`.

    :param cls: The `@event` class.
    """

    def __init__(self, cls: type[P]) -> None:
        self.spec: EventType = event_type(cls)
        self.spec.check_upcasters(cls)
        self._cls = cls
        self._shape = _object_shape(cls)
        self._path: Path[P] = path_for(cls, self._shape)
        rounds = self._shape.is_native() and holds_times(self._shape)  # an offset from UTC that has seconds
        self._careful: Path[P] | None = Walked(self._shape) if rounds else None
        self._may_hold_nan = _may_hold_nan(self._shape)
        self._can_be_flooded = can_be_flooded(self._shape)
        self._compares_exactly = all(map(_is_exact, self._shape.everything()))

    def encode(self, payload: P) -> bytes:
        """Return the payload as JSON. Raises `EncodeError`, which says where, and not what, it holds."""
        try:
            body = self._path.encode(payload)
            if self._may_hold_nan and b"null" in body and _holds_nan(self._path.document(payload)):
                raise ValueError("NaN and infinities are no JSON, and would arrive as null")
            return body
        except Exception as error:
            raise self._unwritten(error) from error

    def encode_checked(self, payload: P) -> bytes:
        """Return the payload as JSON that was read back, and is what was written.

        :param payload: An instance of the class.

        Raises `EncodeError` for what no consumer could read, or would read as something else, with the place.
        """
        try:
            body = self._path.encode(payload)
        except Exception as error:
            raise self._unwritten(error) from error
        lost = self._lost(payload, body)
        if lost is None:
            return body
        if self._careful is not None:
            try:
                body = self._careful.encode(payload)
            except Exception as error:
                raise lost from error
            if self._lost(payload, body) is None:
                return body
        raise lost

    def _lost(self, payload: P, body: bytes) -> EncodeError | None:
        """Return the error that it is that nobody could read ``body`` as ``payload``; None if everybody can."""
        try:
            again = self._path.decode(body)
            if self._compares_exactly and again == payload:
                return None
            place = difference(payload, again)
        except Exception as error:
            lost = EncodeError(f"{self._cls.__name__} is not published, as nobody could read it: {_reason(error)}")
            lost.__cause__ = error
            return lost
        if place is None:
            return None
        return EncodeError(
            f"{self._cls.__name__} is not published, as it would be read as something else: what is at `{place}` does not "
            "come back as it went (another type than the field's, a subclass with more fields, a number that JSON cannot say)"
        )

    def _unwritten(self, error: Exception) -> EncodeError:
        return EncodeError(f"{self._cls.__name__} cannot be written as JSON: {_reason(error)}")

    def decode(self, body: bytes, version: int) -> P:
        """Read JSON of ``version`` into the class; older documents are led up step by step. Raises `DecodeError`.

        A newer version than known is read too, its unknown fields ignored, if it still fits.

        :param body: JSON.
        :param version: The version of the schema that it was written in.
        """
        if version < self.spec.version:
            return self.structure(read_document(body), version)
        if self._can_be_flooded and len(body) > HARMLESS:
            check(read_document(body), self.spec.name)
        try:
            return self._path.decode(body)
        except Exception as error:
            raise self._misfit(version, error) from error

    def structure(self, document: Any, version: int) -> P:
        """Read a document of ``version`` into the class. Raises `DecodeError`."""
        spec = self.spec
        if version < spec.oldest:
            raise DecodeError(
                f"{spec.name} came in version {version}, older than {spec.oldest}, the oldest understood here",
                type=spec.name,
            )
        if self._can_be_flooded:
            check(document, spec.name)
        try:
            return self._path.structure(spec.upcast(document, version))
        except DecodeError:
            raise
        except Exception as error:
            raise self._misfit(version, error) from error

    def _misfit(self, version: int, error: BaseException) -> DecodeError:
        spec = self.spec
        if version > spec.version:
            text = f"{spec.name} came in version {version}, newer than {spec.version}, the newest known here, and does not fit"
        else:
            text = f"{spec.name} version {version} does not fit its class"
        return DecodeError(f"{text}: {_reason(error)}", type=spec.name)


def _is_exact(part: Shape) -> bool:
    """Say whether what is of a shape's type is equal only to what is of the same class, and holds the same."""
    if isinstance(part, Opaque):
        return is_model(part.cls)
    return not isinstance(part, Record) or part.is_exact


def _object_shape(cls: type) -> Shape:
    shape = describe(cls)
    if isinstance(shape, Opaque) and not is_model(cls):
        raise ConfigurationError(
            f"{cls.__name__} is an event, and has a wire_type() too: an event travels as the object of its fields; "
            "take one of the two away"
        )
    if isinstance(shape, Opaque) and not shape.is_object:
        raise ConfigurationError(f"{cls.__name__} is a RootModel: an event is an object, so give it a field")
    return shape


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
    if isinstance(error, MisfitError):
        return _placed(_reason(error.reason), error.place)
    if isinstance(error, SafeError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, msgspec.MsgspecError) and error.__cause__ is None:
        return _said(str(error))
    if isinstance(error, TypeError) and str(error).startswith("Encoding objects of type "):
        return str(error)  # the name of a type, and no value
    if isinstance(error, KeyError):
        return "a field is missing, or a union's tag is unknown"
    return f"{type(error.__cause__ or error).__name__}"


def _placed(reason: str, place: str) -> str:
    """Say a reason with the place where it was found, put before the place that it names itself."""
    text, _, inner = reason.partition(" - at `$")
    return f"{text} - at `${place[-200:]}{inner or '`'}"


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


def _may_hold_nan(shape: Shape) -> bool:
    """Say whether a float can be in there: msgspec writes one that is no number as null, without a word."""
    return any(
        isinstance(part, Opaque) or (isinstance(part, Scalar) and plainly(part.kind)[0] in (float, Any))
        for part in shape.everything()
    )


def _holds_nan(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_holds_nan, cast("Document", value).values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_holds_nan, cast("collections.abc.Iterable[Any]", value)))
    return False

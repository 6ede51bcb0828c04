"""pydantic's models as events, and in them. pydantic is imported only where a model is met.

pydantic writes and reads them itself: by their aliases, and strictly, as JSON. What is looked for here is what would not
come back as it went. (pydantic 2: `model_dump_json`, `model_validate_json`, and the core schema behind them.)
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeGuard, TypeVar, cast

import msgspec

from rabbitevents.errors import ConfigurationError
from rabbitevents.payload.reading import MisfitError, SafeError
from rabbitevents.payload.shapes import Opaque

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo

log: logging.Logger = logging.getLogger("rabbitevents.codec")

M = TypeVar("M", bound="BaseModel")

Refusal = Callable[[str], ConfigurationError]
"""Returns the error that a reason is."""


def is_model(cls: object) -> TypeGuard[type[BaseModel]]:
    """Say whether a class is one of pydantic's models."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(cls, type) and issubclass(cls, pydantic.BaseModel)


def field_names(cls: type) -> list[str] | None:
    """Return the names of a model's fields, without those that stay at home (``exclude=True``); None for other classes."""
    return [name for name, field in cls.model_fields.items() if not field.exclude] if is_model(cls) else None


def shape_of(cls: type[BaseModel], refusal: Refusal) -> Opaque:
    """Return a model as a part of something else: read and written by pydantic. ``refusal`` is told what is wrong."""
    check(cls, refusal)
    model = Model(cls)
    return Opaque(
        cls, frozenset(("object",)), False, cls, model.document, model.structure, not is_root(cls), written_names(cls)
    )


def written_names(cls: type[BaseModel]) -> list[str]:
    """Return the names under which a model's fields are written."""
    return [_written_as(name, field) for name, field in cls.model_fields.items()]


def is_root(cls: type[BaseModel]) -> bool:
    """Say whether a model is a RootModel, which may be anything in a document."""
    return bool(getattr(cls, "__pydantic_root_model__", False))


class Model(Generic[M]):
    """The path through pydantic."""

    def __init__(self, cls: type[M]) -> None:
        self._cls = cls
        self._validate = cls.__pydantic_validator__.validate_json
        self._dump = cls.__pydantic_serializer__.to_json
        self._refused: type[ValidationError] = sys.modules["pydantic"].ValidationError
        self._names = frozenset(_names_in(cls.__pydantic_core_schema__))

    def encode(self, payload: M) -> bytes:
        """Return the payload as JSON, by its aliases, what is computed left out."""
        return self._dump(payload, by_alias=True, round_trip=True, warnings=False)  # they would show values

    def decode(self, body: bytes) -> M:
        """Read JSON into the model, strictly."""
        try:
            return cast("M", self._validate(body, strict=True))
        except self._refused as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise MisfitError(SafeError(f"{first['type']} (pydantic)"), self._place(first["loc"])) from error

    def _place(self, steps: Iterable[int | str]) -> str:
        """Return a place as others name it; what is no field, but a key or a tag of the document, is not shown."""
        known = (
            f"[{step}]" if isinstance(step, int) else f".{step}" if step in self._names else "[...]" for step in steps
        )
        return "".join(known)

    def document(self, payload: M) -> Any:
        """Return the payload as plain values."""
        return payload.__pydantic_serializer__.to_python(
            payload, mode="json", by_alias=True, round_trip=True, warnings=False
        )

    def structure(self, document: Any) -> M:
        """Read a document into the model."""
        return self.decode(msgspec.json.encode(document))


# --- what would not come back ----------------------------------------------------------------------------------------


def check(cls: type[BaseModel], refusal: Refusal) -> None:
    """Have refused, with the field, what nobody could read back; warn of what breaks newer producers."""
    if not cls.__pydantic_complete__ and not cls.model_rebuild(raise_errors=False):
        raise refusal(
            f"{cls.__name__} has annotations that pydantic cannot resolve: what they name must be importable from its "
            f"module's top level, or be there when {cls.__name__}.model_rebuild() is called"
        )
    for name, field in cls.model_fields.items():
        written = _written_as(name, field)
        if field.exclude and field.is_required():
            raise refusal(
                f"{cls.__name__}.{name} is required, and exclude=True keeps it from being written: give it a default"
            )
        if written not in _read_as(cls, name, field):
            raise refusal(
                f"{cls.__name__}.{name} is written as {written!r}, and not read under that name: "
                "give it one alias= for both, or that name among its validation aliases"
            )
    for problem in _problems(cls.__pydantic_core_schema__):
        raise refusal(f"{cls.__name__} {problem}")
    if cls.model_config.get("extra") == "forbid":
        log.warning(
            "%s forbids extra fields: events of a newer version, with one field more, will not be read here; "
            "ConfigDict(extra='ignore') lets producers be upgraded first",
            cls.__name__,
        )


def _written_as(name: str, field: FieldInfo) -> str:
    return field.serialization_alias or field.alias or name


def _read_as(cls: type[BaseModel], name: str, field: FieldInfo) -> set[str]:
    """Return the names under which a field is read."""
    config = cls.model_config
    alias: Any = field.validation_alias or field.alias
    choices = getattr(alias, "choices", [alias])
    found = {choice for choice in choices if isinstance(choice, str)}
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    return found | {name} if by_name or not found else found


def _problems(schema: Any) -> Iterator[str]:
    """Yield what in pydantic's own schema reads something else than was written."""
    for part in _parts(schema, set()):
        if part.get("type") == "is-instance":
            yield f"has a field of {part['cls'].__name__}, which pydantic cannot read from JSON: make it a model"
        alike = _alike(part["choices"]) if part.get("type") == "union" else ""
        if alike == "object":
            yield "has a union of models that nothing in a document tells apart: give it Field(discriminator=...)"
        elif alike:
            yield f"has a union of types that are both written as {alike}: nothing in a document tells them apart"


def _names_in(schema: Any) -> Iterator[str]:
    """Yield the names of all fields, and their aliases."""
    for part in _parts(schema, set()):
        fields = part.get("fields")
        if isinstance(fields, dict):
            for name, field in cast("dict[str, dict[str, Any]]", fields).items():
                alias = field.get("validation_alias")
                yield alias if isinstance(alias, str) else name


def _parts(schema: Any, seen: set[int]) -> Iterator[dict[str, Any]]:
    """Yield every part of a core schema that has a type."""
    if id(schema) in seen:
        return
    seen.add(id(schema))
    if isinstance(schema, dict):
        parts = cast("dict[str, Any]", schema)
        if isinstance(parts.get("type"), str):
            yield parts
        for name, value in parts.items():
            if name not in ("metadata", "serialization", "ref"):
                yield from _parts(value, seen)
    elif isinstance(schema, (list, tuple)):
        for item in cast("list[Any]", schema):
            yield from _parts(item, seen)


_FORMS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("model", "dataclass", "typed-dict", "dict", "definition-ref"), "object"),
    **dict.fromkeys(("list", "set", "frozenset", "tuple", "generator"), "an array"),
    **dict.fromkeys(("str", "bytes", "date", "datetime", "time", "timedelta", "uuid", "decimal", "url"), "text"),
}
"""What pydantic writes a core schema of that type as, as far as unions could be mistaken. (An int and a float are told
apart by the point; of what is not here, nothing is known.)"""


def _alike(choices: list[Any]) -> str:
    """Return the form that two members of a union share; nothing where none do."""
    forms = [form for form in map(_form, choices) if form]
    return next((form for form in forms if forms.count(form) > 1), "")


def _form(choice: Any) -> str:
    """Return what a union's member is written as; members may stand in pairs with a label."""
    schema: dict[str, Any] = cast("tuple[Any, str]", choice)[0] if isinstance(choice, tuple) else choice
    while schema.get("type", "").startswith("function"):
        schema = schema.get("schema", {})
    return _FORMS.get(schema.get("type", ""), "")

"""What an event is: a class marked by `@event`, and the envelope `Event` around each one.

What a mark says (type, version, entity, upcasters) is stored on the class itself; there is no registry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, cast
from uuid import UUID

import attrs
import msgspec

from rabbitevents.arguments import kind_of, text, whole, wrong
from rabbitevents.errors import ConfigurationError

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault  # PEP 696; `typing` has it from Python 3.13 on

    P = TypeVarWithDefault("P", default=Any)
else:
    P = TypeVar("P")
C = TypeVar("C", bound=type)

Document = dict[str, Any]
"""A payload as JSON says it, before it is a class."""

Upcaster = Callable[[Document], Document]
"""Turns the document of one version into that of the next. It may change and return what it was given."""

Rename = Literal["camel", "pascal", "kebab"] | Mapping[str, str] | None
"""How the fields of a class are named on the wire, where that is not as in Python."""

_RULES: Final = ("camel", "pascal", "kebab")

_MARK: Final = "__rabbitevents__"


class EventType(msgspec.Struct, frozen=True):
    """What `@event` says of a class.

    ``oldest`` is the oldest version that is still understood, ``aliases`` are other names that are read as this one, and
    ``rename`` says how the fields are named on the wire.
    """

    name: str
    version: int
    entity: str | None
    key: str | None
    oldest: int
    upcasters: dict[int, Upcaster]
    aliases: tuple[str, ...] = ()
    rename: Rename = None

    @property
    def names(self) -> tuple[str, ...]:
        """The name under which it is published, then those by which it is known too."""
        return (self.name, *self.aliases)

    def entity_id(self, payload: object) -> str | None:
        """Return the id of the entity that ``payload`` is about, as text; None where there is none."""
        id = None if self.key is None else getattr(payload, self.key)
        return None if id is None else str(id)

    def check_upcasters(self, cls: type) -> None:
        """Raise `ConfigurationError` if a step from the oldest version to the current one is missing."""
        missing = [v for v in range(self.oldest, self.version) if v not in self.upcasters]
        if missing:
            steps = ", ".join(f"{v} to {v + 1}" for v in missing)
            raise ConfigurationError(
                f"{cls.__name__} is version {self.version} of {self.name!r}, and nothing leads from version {steps}: "
                f"write @upcast({cls.__name__}, from_version={missing[0]}) for each step, "
                f"or say oldest={missing[-1] + 1} in @event if nothing older is left in any queue or store"
            )

    def upcast(self, document: Document, version: int) -> Document:
        """Lead ``document`` from ``version`` to the current one, step by step."""
        for step in range(version, self.version):
            document = self.upcasters[step](document)
        return document


def event(
    type: str,
    *,
    version: int = 1,
    entity: str | None = None,
    key: str | None = None,
    oldest: int = 1,
    aliases: Sequence[str] = (),
    rename: Rename = None,
) -> Callable[[C], C]:
    """Mark an attrs class, a dataclass or a pydantic model as an event.

    ::

        @event("order.placed", version=2, entity="order", key="order_id")
        @attrs.frozen
        class OrderPlaced: ...

    :param type: Its name on the wire and its routing key: words with dots between them, in the past tense.
    :param version: The version of its schema, from 1 on: 1.
    :param entity: The kind of thing that it happened to: "order". None by default.
    :param key: The attribute that holds that thing's id: "order_id". None by default.
    :param oldest: The oldest version that is still understood: 1. `upcast` leads from there to ``version``.
    :param aliases: Other names that the same type has elsewhere: ``("OrderPlaced",)``. Handlers get those events too; it is
        published under ``type`` alone. None by default.
    :param rename: How its fields are named on the wire: "camel", "pascal" or "kebab", for the classes in it too; or a
        mapping from its attributes to names. By default as in Python. (A pydantic model has aliases of its own.)

    Raises `ConfigurationError`.
    """
    others = _aliases(aliases)
    for each in (type, *others):
        problem = _name_problem(each)
        if problem:
            raise ConfigurationError(problem)
    for name, number in (("version", version), ("oldest", oldest)):
        whole(f"@event({type!r}): {name}", number, least=None)
    for name, word in (("entity", entity), ("key", key)):
        if word is not None:
            text(f"@event({type!r}): {name}", word, such_as="order")
    if not 1 <= oldest <= version:
        raise ConfigurationError(
            f"{type!r}: versions count from 1, and oldest={oldest} must not be above version={version}"
        )

    def mark(cls: C) -> C:
        names = _field_names(cls)
        if names is None:
            raise ConfigurationError(
                f"{cls.__name__} is neither an attrs class nor a dataclass nor a pydantic model: "
                "put @event(...) above @attrs.frozen or @dataclass"
            )
        if key is not None and key not in names:
            raise ConfigurationError(f"{cls.__name__} has no field {key!r} to be its key; it has {', '.join(names)}")
        _check_rename(rename, cls, names)
        setattr(cls, _MARK, EventType(type, version, entity, key, oldest, {}, others, rename))
        return cls

    return mark


def _name_problem(name: object) -> str:
    if not isinstance(name, str):
        return 'an event needs a name: write @event("order.placed") above the class'
    if not name:
        return "the event type is empty: an event needs a name, such as 'order.placed'"
    if "" in name.split(".") or any(sign.isspace() or sign in "*#" for sign in name):
        return f"the event type {name[:80]!r} must be words with single dots between them, without blanks, '*' or '#'"
    length = len(name.encode("utf-8", "surrogateescape"))
    if length > 255:
        return f"the event type {name[:80]!r}... is {length} bytes long; a routing key has at most 255 (AMQP 0-9-1, 4.2.5.3)"
    return ""


def _aliases(aliases: object) -> tuple[str, ...]:
    if isinstance(aliases, (list, tuple)):
        names = tuple(cast("Sequence[str]", aliases))
        for each in names:
            if not isinstance(cast("object", each), str):
                raise ConfigurationError(f"aliases has {kind_of(each)} in it: each other name is a text")
        return names
    raise ConfigurationError(f"aliases={aliases!r}: give the other names as a tuple, as in aliases=('PointsEarned',)")


def _check_rename(rename: object, cls: type, names: Sequence[str]) -> None:
    if rename is None:
        return
    if hasattr(cls, "__pydantic_fields__"):
        raise ConfigurationError(
            f"{cls.__name__} is a pydantic model, whose fields rename= does not reach: "
            "its ConfigDict(alias_generator=...) or Field(alias=...) names them"
        )
    if isinstance(rename, str) and rename in _RULES:
        return
    if not isinstance(rename, Mapping):
        raise ConfigurationError(
            f"{cls.__name__}: rename={rename!r} is no way of naming: say {', '.join(map(repr, _RULES))}, or a mapping"
        )
    strange = [name for name in cast("Mapping[object, object]", rename) if name not in names]
    if strange:
        raise ConfigurationError(f"{cls.__name__} has no field {strange[0]!r} to rename; it has {', '.join(names)}")


def _field_names(cls: type) -> list[str] | None:
    fields = vars(cls).get("__pydantic_fields__")  # pydantic's models, which need not be installed
    if attrs.has(cls):
        return [field.name for field in attrs.fields(cls)]
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return list(cast("Mapping[str, object]", fields)) if isinstance(fields, dict) else None


def upcast(cls: type, *, from_version: int) -> Callable[[Upcaster], Upcaster]:
    """Mark a function as the step that leads a document of ``from_version`` of an event class to the next version.

    :param cls: The event class.
    :param from_version: The version of the documents that the function takes; it returns them as the next one.

    Raises `ConfigurationError` for a class without `@event`, a version without a next one, or a second such step.
    """
    spec = event_type(cls)
    whole(f"@upcast({cls.__name__}): from_version", from_version, least=None)
    if not spec.oldest <= from_version < spec.version:
        raise ConfigurationError(
            f"{cls.__name__} understands versions {spec.oldest} to {spec.version}: no step leads on from version {from_version}"
        )
    if from_version in spec.upcasters:
        raise ConfigurationError(f"{cls.__name__} has a step from version {from_version} already")

    def mark(step: Upcaster) -> Upcaster:
        if not callable(step):
            raise wrong(f"@upcast({cls.__name__}): what stands below it", step, "decorate a function")
        spec.upcasters[from_version] = step
        return step

    return mark


def is_event(cls: object) -> bool:
    """Say whether `@event` stands above this very class (a subclass needs a mark of its own)."""
    return isinstance(cls, type) and _MARK in vars(cls)


def event_type(cls: type) -> EventType:
    """Return what `@event` says of ``cls``. Raises `ConfigurationError` for a class without it."""
    spec = vars(cls).get(_MARK) if isinstance(cast("object", cls), type) else None
    if not isinstance(spec, EventType):
        named = getattr(cls, "__name__", kind_of(cls))
        raise ConfigurationError(f'{named} is no event: put @event("its.name") above the class')
    return spec


# --- the envelope --------------------------------------------------------------------------------------------------

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Metadata(msgspec.Struct, frozen=True):
    """Where an event comes from. ``extra`` are the user's own pairs, text to text."""

    correlation_id: str | None = None
    causation_id: str | None = None
    source: str | None = None
    extra: Mapping[str, str] = _NOTHING


class Event(msgspec.Struct, Generic[P], frozen=True):
    """An event in its envelope: what happened, to what, when, and why. ``timestamp`` is aware, UTC, in microseconds."""

    id: UUID
    type: str
    version: int
    entity_type: str | None
    entity_id: str | None
    timestamp: datetime
    payload: P
    metadata: Metadata


def now() -> datetime:
    """Return this moment, aware, in UTC."""
    return datetime.now(UTC)

"""Classes as people write them, and values of them: the grammar of all types that may travel, for hypothesis.

`written` draws a class and a value of it; `law` says what must hold of both. Run many of them:
``python -m tests.grammar --examples 20000 [--seed N]``, which ends with what was drawn, accepted and refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import time as clock
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rabbitevents.errors import ConfigurationError
from rabbitevents.events import event
from rabbitevents.payload.alike import difference
from rabbitevents.payload.codec import Codec, read_document
from rabbitevents.payload.describing import describe
from rabbitevents.payload.own import wire_type
from rabbitevents.payload.paths import Walked

T = TypeVar("T")
U = TypeVar("U")

Draw = Callable[[st.SearchStrategy[Any]], Any]

CALM: Final = (
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.large_base_example,
)
"""Classes take their time to draw."""


@dataclass(frozen=True)
class Typed:
    """A type, values of it, and what its JSON looks like: ``form``; ``ok`` if it must be accepted."""

    kind: Any
    values: st.SearchStrategy[Any]
    form: str
    ok: bool = True
    hashable: bool = True
    key: bool = False
    tag: str = ""


# --- scalars ---------------------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.StrEnum):
    S = "s"
    L = "l"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Ratio(enum.Enum):
    HALF = 0.5


class Money:
    """A type of one's own."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    def __hash__(self) -> int:
        return hash(self.cents)

    def __repr__(self) -> str:
        return f"Money({self.cents})"


def money_of(value: Any) -> Money:
    if type(value) is not int:
        raise TypeError("no whole number")
    return Money(value)


wire_type(Money, write=lambda money: money.cents, read=money_of)

OrderId = NewType("OrderId", str)

texts = st.text(st.characters(codec="utf-8"), max_size=6)
wholes = st.integers(-(2**63), 2**63)
reals = st.floats(allow_nan=False, allow_infinity=False)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
zones: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        UTC,
        timezone(timedelta(hours=5, minutes=30)),
        timezone(timedelta(seconds=-3_723)),
        ZoneInfo("Europe/Amsterdam"),
        ZoneInfo("America/New_York"),
    ]
)
moments = st.datetimes(datetime(1850, 1, 1), datetime(2100, 1, 1), timezones=zones, allow_imaginary=False)
plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | reals | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)

SCALARS: Final = [
    Typed(str, texts, "text", key=True),
    Typed(int, wholes, "number", key=True),
    Typed(float, reals, "number"),
    Typed(bool, st.booleans(), "truth"),
    Typed(type(None), st.none(), "null"),
    Typed(Decimal, decimals, "text", key=True),
    Typed(UUID, st.uuids(), "text", key=True),
    Typed(datetime, moments, "text"),
    Typed(date, st.dates(), "text", key=True),
    Typed(time, st.times(), "text", key=True),
    Typed(timedelta, st.timedeltas(), "text", key=True),
    Typed(bytes, st.binary(max_size=5), "text", key=True),
    Typed(bytearray, st.binary(max_size=5).map(bytearray), "text", hashable=False),
    Typed(Color, st.sampled_from(Color), "text", key=True),
    Typed(Size, st.sampled_from(Size), "text", key=True),
    Typed(Level, st.sampled_from(Level), "number", key=True),
    Typed(Rights, st.sampled_from([Rights.READ, Rights.WRITE, Rights.READ | Rights.WRITE]), "number"),
    Typed(Literal["a", "b"], st.sampled_from(["a", "b"]), "text", key=True),
    Typed(Literal[1, 2], st.sampled_from([1, 2]), "number", key=True),
    Typed(OrderId, texts, "text", key=True),
    Typed(Annotated[int, "what it is"], wholes, "number", key=True),
    Typed(Annotated[int, msgspec.Meta(ge=0, le=9)], st.integers(0, 9), "number"),
    Typed(Money, st.builds(Money, st.integers(-99, 99)), "own"),
    Typed(Any, plain, "any", hashable=False),
    # refused, each for a reason of its own
    Typed(Ratio, st.just(Ratio.HALF), "number", ok=False),
    Typed(Literal[Color.RED], st.just(Color.RED), "text", ok=False),
    Typed(object, st.just(1), "any", ok=False),
    Typed(complex, st.just(1j), "number", ok=False),
    Typed(Exception, st.just(Exception()), "object", ok=False),
    Typed(T, st.just(1), "any", ok=False),
]

list_of: Any = list
tuple_of: Any = tuple


def made_of(generic: Any, *types: Typed) -> Any:
    """Return a generic type with its arguments."""
    first, *others = (each.kind for each in types)
    return generic[(first, *others) if others else first]


# --- what holds others -----------------------------------------------------------------------------------------------


@st.composite
def containers(draw: Draw, inner: st.SearchStrategy[Typed]) -> Typed:
    """Draw a container of what ``inner`` draws."""
    item: Typed = draw(inner)
    several = st.lists(item.values, max_size=2)
    match draw(st.integers(0, 9)):
        case 0:
            return Typed(made_of(list, item), several, "array", item.ok, hashable=False)
        case 1:
            return Typed(made_of(Sequence, item), several, "array", item.ok, hashable=False)
        case 2:
            return Typed(tuple_of[item.kind, ...], several.map(tuple), "array", item.ok, item.hashable)
        case 3:
            other: Typed = draw(inner)
            both = st.tuples(item.values, other.values)
            return Typed(
                made_of(tuple, item, other),
                both,
                "array",
                item.ok and other.ok,
                item.hashable and other.hashable,
            )
        case 4 | 5:
            of = item if item.hashable else draw(st.sampled_from([s for s in SCALARS if s.ok and s.hashable]))
            kind: Any = draw(st.sampled_from([set, frozenset]))
            values = st.lists(of.values, max_size=2).map(kind)
            return Typed(kind[of.kind], values, "array", of.ok, hashable=kind is frozenset)
        case 6 | 7:
            key = draw(st.sampled_from([s for s in SCALARS if s.key]))
            table: Any = draw(st.sampled_from([dict, Mapping]))
            values = st.dictionaries(key.values, item.values, max_size=2)
            return Typed(table[key.kind, item.kind], values, "object", item.ok, hashable=False)
        case 8:
            bare: Any = draw(st.sampled_from([list, dict]))
            values = st.lists(plain, max_size=2) if bare is list else st.dictionaries(texts, plain, max_size=2)
            return Typed(bare, values, "array" if bare is list else "object", hashable=False)
        case _:
            return Typed(made_of(Collection, item), several, "array", item.ok, hashable=False)


@st.composite
def unions(draw: Draw, inner: st.SearchStrategy[Typed]) -> Typed:
    """Draw a union; it must be accepted where its members differ in form, or are classes of different names."""
    members: list[Typed] = draw(st.lists(inner, min_size=2, max_size=3))
    kind: Any = Union[tuple(member.kind for member in members)]  # noqa: UP007 - a tuple of types
    values = functools.reduce(lambda one, other: one | other, (member.values for member in members))
    forms = Counter("tagged" if member.tag else member.form for member in members)
    tags = [member.tag for member in members if member.tag]
    told = (
        all(count == 1 for form, count in forms.items() if form != "tagged")
        and len(set(tags)) == len(tags)
        and not (tags and forms["object"])
        and not forms["any"]
        and not forms["own"]
        and not forms["several"]
    )
    same = len({member.kind for member in members if _hashes(member.kind)}) < len(members)
    form = members[0].form if len(forms) == 1 else "several"
    return Typed(kind, values, form, told and not same and all(m.ok for m in members), all(m.hashable for m in members))


def _hashes(kind: object) -> bool:
    return kind.__hash__ is not None


@st.composite
def optionals(draw: Draw, inner: st.SearchStrategy[Typed]) -> Typed:
    """Draw what may be None."""
    item: Typed = draw(inner)
    form = item.form if item.form in ("null", "any") else "several"
    told = item.ok
    return Typed(Union[item.kind, None], st.none() | item.values, form, told, item.hashable)  # noqa: UP007


# --- classes ---------------------------------------------------------------------------------------------------------

_names = st.sampled_from(["a", "b_c", "order_id", "type", "payload", "x1", "_private", "class_", "id"])
NUMBER = iter(range(10**9))


def unchanged(value: Any) -> Any:
    """Return what came: a converter that msgspec would not call."""
    return value


def anything(instance: object, attribute: object, value: object) -> None:
    """Accept what came: a validator."""


@st.composite
def attrs_classes(draw: Draw, inner: st.SearchStrategy[Typed]) -> Typed:
    """Draw an attrs class: slots or not, frozen or not, converters, validators, defaults, aliases, cached properties."""
    fields: dict[str, Typed] = draw(st.dictionaries(_names, inner, max_size=3))
    frozen, slots, exact, cached, mixin = (draw(st.booleans()) for _ in range(5))
    made: dict[str, Any] = {}
    for name, of in fields.items():
        options: dict[str, Any] = {"type": of.kind, "kw_only": True}
        if draw(st.booleans()) and draw(st.booleans()):
            options["converter"] = unchanged
        if draw(st.booleans()) and draw(st.booleans()):
            options["validator"] = anything
        if draw(st.booleans()) and draw(st.booleans()):
            options["factory"] = functools.partial(_default, draw(of.values))
        if draw(st.booleans()) and draw(st.booleans()):
            options["alias"] = f"given_{name.strip('_')}"
        made[name] = attrs.field(**options)
    name = f"A{next(NUMBER)}"
    body: dict[str, Any] = {"cached_secret": functools.cached_property(_secret)} if cached and (frozen or slots) else {}
    bases = (Mixed,) if mixin else (object,)
    cls = attrs.make_class(name, made, bases=bases, class_body=body, frozen=frozen, slots=slots, eq=exact or frozen)
    arguments = {f.alias: fields[f.name].values for f in attrs.fields(cls)}
    return _typed_class(cls, fields, st.builds(_made, st.just(cls), st.fixed_dictionaries(arguments)), frozen)


class Mixed:
    """A base with a property, which no field is."""

    @property
    def shown(self) -> str:
        return "shown"


def _default(value: Any) -> Any:
    return value


def _secret(_: object) -> str:
    return "4111 1111 1111 1111"


def _made(cls: Any, arguments: dict[str, Any]) -> Any:
    """Make an instance, and look at what it caches."""
    made = cls(**arguments)
    getattr(made, "cached_secret", None)
    return made


def _typed_class(cls: Any, fields: Mapping[str, Typed], values: st.SearchStrategy[Any], frozen: bool) -> Typed:
    ok = all(of.ok for of in fields.values())
    hashable = frozen and all(of.hashable for of in fields.values())
    return Typed(cls, values, "object", ok, hashable, tag=cls.__name__)


@st.composite
def dataclasses_(draw: Draw, inner: st.SearchStrategy[Typed]) -> Typed:
    """Draw a dataclass: slots or not, frozen or not, defaults, and sometimes an init of its own."""
    fields: dict[str, Typed] = draw(st.dictionaries(_names, inner, max_size=3))
    frozen, slots, own_init = (draw(st.booleans()) for _ in range(3))
    made: list[Any] = []
    for name, of in fields.items():
        if draw(st.booleans()) and draw(st.booleans()):
            made.append(
                (name, of.kind, dataclasses.field(default_factory=functools.partial(_default, draw(of.values))))
            )
        else:
            made.append((name, of.kind))
    namespace: dict[str, Any] = {} if slots else {"cached_secret": functools.cached_property(_secret)}
    if own_init and not frozen:
        namespace["__init__"] = _own_init
    name = f"D{next(NUMBER)}"
    cls = dataclasses.make_dataclass(name, made, namespace=namespace, frozen=frozen, slots=slots, kw_only=True)
    arguments = {name: of.values for name, of in fields.items()}
    return _typed_class(cls, fields, st.builds(_made, st.just(cls), st.fixed_dictionaries(arguments)), frozen)


def _own_init(self: Any, **given: Any) -> None:
    for field in dataclasses.fields(self):
        default: Any = field.default_factory
        setattr(self, field.name, given[field.name] if field.name in given else default())


@st.composite
def tuples_and_dicts(draw: Draw, inner: st.SearchStrategy[Typed]) -> Typed:
    """Draw a NamedTuple, or a TypedDict of which some keys may be missing."""
    fields: dict[str, Typed] = draw(
        st.dictionaries(_names.filter(lambda n: n[0] != "_"), inner, min_size=1, max_size=2)
    )
    ok = all(of.ok for of in fields.values())
    if draw(st.booleans()):
        named: Any = NamedTuple(f"N{next(NUMBER)}", [(name, of.kind) for name, of in fields.items()])  # type: ignore[misc]
        rows: st.SearchStrategy[Any] = st.builds(named, **{name: of.values for name, of in fields.items()})
        return Typed(named, rows, "array", ok, all(of.hashable for of in fields.values()))
    total = draw(st.booleans())
    keys: Any = TypedDict(f"T{next(NUMBER)}", {name: of.kind for name, of in fields.items()}, total=total)  # type: ignore[misc]
    given = {name: of.values for name, of in fields.items()}
    values = st.fixed_dictionaries(given) if total else st.fixed_dictionaries({}, optional=given)
    return Typed(keys, values, "object", ok, hashable=False)


PYDANTIC = [s for s in SCALARS if s.ok and s.kind in (str, int, float, bool, Decimal, UUID, date, Color, Level)]


@st.composite
def models(draw: Draw) -> Typed:
    """Draw a pydantic model."""
    fields: dict[str, Typed] = draw(
        st.dictionaries(st.sampled_from(["a", "b_c", "kind"]), st.sampled_from(PYDANTIC), max_size=3)
    )
    aliased, allows = draw(st.booleans()), draw(st.sampled_from(["allow", "ignore"]))
    config = pydantic.ConfigDict(extra=allows, alias_generator=str.upper if aliased else None)
    name = f"M{next(NUMBER)}"
    definitions: dict[str, Any] = {
        n: (list_of[of.kind] if draw(st.booleans()) else of.kind, ...) for n, of in fields.items()
    }
    cls: Any = pydantic.create_model(name, __config__=config, **definitions)
    arguments: dict[str, st.SearchStrategy[Any]] = {
        (n.upper() if aliased else n): (of.values if definitions[n][0] is of.kind else st.lists(of.values, max_size=2))
        for n, of in fields.items()
    }
    return Typed(cls, st.builds(cls, **arguments), "object", hashable=False, tag=name)


STRUCTURED = [s for s in SCALARS if s.ok and s.form == "text" and s.kind is not datetime]
"""What a Struct may hold: msgspec alone writes it, and a time's offset from UTC to the minute."""


@st.composite
def structs(draw: Draw) -> Typed:
    """Draw a msgspec.Struct, renamed or tagged as those may be."""
    fields: dict[str, Typed] = draw(
        st.dictionaries(st.sampled_from(["a", "b_c"]), st.sampled_from(STRUCTURED), max_size=2)
    )
    array = draw(st.booleans())
    rename = draw(st.sampled_from([None, "camel"]))
    cls: Any = msgspec.defstruct(
        f"S{next(NUMBER)}",
        [(name, of.kind) for name, of in fields.items()],
        array_like=array,
        rename=rename,
        frozen=True,
    )
    values = st.builds(cls, **{name: of.values for name, of in fields.items()})
    return Typed(cls, values, "array" if array else "object", hashable=False)


# --- generic ones, and those that inherit ----------------------------------------------------------------------------


@attrs.frozen
class Page(Generic[T]):
    items: list[T]
    first: T | None = None


@attrs.frozen
class Twofold(Page[T], Generic[T, U]):
    other: U | None = attrs.field(default=None, converter=unchanged)


@dataclasses.dataclass(frozen=True)
class Box(Generic[T]):
    inside: T


@dataclasses.dataclass(frozen=True)
class Lid(Box[list[T]], Generic[T]):
    color: Color = Color.RED


@attrs.frozen
class Tree:
    name: str = attrs.field(converter=unchanged)
    branches: list[Tree] = attrs.field(factory=list["Tree"])
    by_name: dict[str, Tree | int] = attrs.field(factory=dict[str, "Tree | int"])


trees: st.SearchStrategy[Tree] = st.recursive(
    st.builds(Tree, texts),
    lambda inner: st.builds(
        Tree, texts, st.lists(inner, max_size=2), st.dictionaries(texts, inner | st.integers(0, 9), max_size=1)
    ),
    max_leaves=3,
)


@st.composite
def generics(draw: Draw, inner: st.SearchStrategy[Typed]) -> Typed:
    """Draw a generic class with its types, one that inherits from such a one, or none of its types at all."""
    one: Typed = draw(inner)
    other: Typed = draw(inner)
    several = st.lists(one.values, max_size=2)
    match draw(st.integers(0, 4)):
        case 0:
            return Typed(
                made_of(Page, one),
                st.builds(Page[Any], several, st.none() | one.values),
                "object",
                one.ok,
                False,
                tag="Page",
            )
        case 1:
            values = st.builds(Twofold[Any, Any], several, st.none() | one.values, st.none() | other.values)
            ok = one.ok and other.ok
            return Typed(made_of(Twofold, one, other), values, "object", ok, False, tag="Twofold")
        case 2:
            return Typed(made_of(Box, one), st.builds(Box[Any], one.values), "object", one.ok, one.hashable, tag="Box")
        case 3:
            return Typed(
                made_of(Lid, one),
                st.builds(Lid[Any], several, st.sampled_from(Color)),
                "object",
                one.ok,
                False,
                tag="Lid",
            )
        case _:
            return Typed(Tree, trees, "object", True, False, tag="Tree")


# --- all of it -------------------------------------------------------------------------------------------------------

scalars = (
    st.sampled_from([s for s in SCALARS if s.ok])
    | st.sampled_from([s for s in SCALARS if s.ok])
    | st.sampled_from(SCALARS)
)


def _grown(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    return (
        containers(inner)
        | unions(inner)
        | optionals(inner)
        | attrs_classes(inner)
        | dataclasses_(inner)
        | tuples_and_dicts(inner)
        | generics(inner)
        | models()
        | structs()
    )


types_: st.SearchStrategy[Typed] = st.recursive(scalars, _grown, max_leaves=5)


@st.composite
def written(draw: Draw) -> tuple[type, Any, bool]:
    """Draw an event class, a value of it, and whether it must be accepted."""
    of: Typed = draw(attrs_classes(types_) | dataclasses_(types_) | models())
    rename = draw(st.sampled_from([None, None, "camel", "pascal", "kebab"]))
    if issubclass(of.kind, pydantic.BaseModel):
        rename = None
    cls = event(f"drawn.{of.kind.__name__}", rename=rename)(of.kind)
    return cls, draw(of.values), of.ok


def law(cls: type, value: Any, must: bool) -> str:
    """Hold the law: what is accepted comes back as what was written, to every reader; the rest is refused at start.

    Returns which of the two it was. Raises AssertionError, and whatever else is raised that must not be.
    """
    try:
        codec: Codec[Any] = Codec(cls)
    except ConfigurationError as error:
        why = str(error)
        if must or cls.__name__ not in why:
            raise AssertionError(f"refused: {why}") from error
        return "refused"
    body = codec.encode_checked(value)
    shape = describe(cls)
    readers: dict[str, Callable[[], Any]] = {
        "bytes": lambda: codec.decode(body, 1),
        "newer": lambda: codec.decode(body, 2),
        "document": lambda: codec.structure(read_document(body), 1),
    }
    if not issubclass(cls, pydantic.BaseModel):
        readers["walk"] = lambda: Walked[Any](shape).decode(body)
    for name, read in readers.items():
        again = read()
        assert type(again) is cls
        assert difference(value, again) is None, f"{name}: {difference(value, again)}: {body!r}"
    assert b"cached_secret" not in body
    return "accepted"


def main() -> None:
    """Hold the law of many classes and values; say how many, and which seed draws the same again."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=None)
    told = parser.parse_args()
    number = told.seed if told.seed is not None else clock.time_ns() % 2**32
    found: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=told.examples,
        deadline=None,
        database=None,
        suppress_health_check=CALM,
        phases=[Phase.generate],
    )
    @given(written())
    def hold(drawn: tuple[type, Any, bool]) -> None:
        found[law(*drawn)] += 1

    began = clock.monotonic()
    print(f"seed {number}", flush=True)
    try:
        hold()
    finally:
        print(f"seed {number}: {sum(found.values()):,} classes in {clock.monotonic() - began:.0f} s: {dict(found)}")


if __name__ == "__main__":
    main()

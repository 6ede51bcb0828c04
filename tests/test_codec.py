"""A payload class and its bytes: one strictness whichever path they take, and nothing but our errors come of the rest."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from time import process_time
from typing import Annotated, Any, Literal, NoReturn, TypeAlias
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitevents.errors import ConfigurationError, DecodeError, EncodeError
from rabbitevents.events import Document, event, upcast
from rabbitevents.payload.codec import Codec, read_document
from rabbitevents.payload.describing import describe
from rabbitevents.payload.paths import Native, Walked, path_for


def upper(value: str) -> str:
    return value.upper()


def unchanged(value: Any) -> Any:
    """A converter that changes nothing: msgspec would not call it, so the class is walked."""
    return value


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


# Two families of the same classes: those on the left msgspec says in full, those on the right have to be walked.


@attrs.frozen
class Part:
    sku: str
    count: int = 1


@attrs.frozen
class PartWalked:
    sku: str = attrs.field(converter=unchanged)
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Address:
    city: str
    zip: str | None = None


@dataclasses.dataclass(frozen=True)
class AddressWalked:
    city: str
    zip: str | None = None
    country: str = dataclasses.field(default="nowhere", init=False)


@event("everything.happened")
@attrs.frozen
class Everything:
    whole: int
    real: float
    text: str
    flag: bool
    money: Decimal
    id: UUID
    moment: datetime
    day: date
    clock: time
    lasted: timedelta
    color: Color
    level: Level
    choice: Literal["a", "b"]
    perhaps: int | None
    either: int | str
    blob: bytes
    small: Annotated[int, msgspec.Meta(ge=0, le=9)]
    anything: Any
    numbers: list[int]
    counts: dict[str, int]
    by_number: dict[int, str]
    pair: tuple[int, str]
    many: tuple[int, ...]
    unique: set[int]
    frozen: frozenset[str]
    sequence: Sequence[int]
    mapping: Mapping[str, float]
    nested_lists: list[list[int | None]]
    part: Part
    maybe_part: Part | None
    parts: list[Part]
    part_tuple: tuple[Part, ...]
    part_and_number: tuple[Part, int]
    part_sequence: Sequence[Part]
    maybe_parts: list[Part | None] | None
    parts_by_name: dict[str, Part]
    parts_by_number: dict[int, Part]
    parts_by_id: Mapping[UUID, Part]
    parts_by_color: dict[Color, Part]
    part_set: frozenset[Part]
    part_or_number: Part | int
    address: Address
    addresses: list[Address]
    defaulted: int = 7
    made: list[int] = attrs.field(factory=list[int])


@event("everything.happened")
@attrs.frozen
class EverythingWalked:
    whole: int
    real: float
    text: str
    flag: bool
    money: Decimal
    id: UUID
    moment: datetime
    day: date
    clock: time
    lasted: timedelta
    color: Color
    level: Level
    choice: Literal["a", "b"]
    perhaps: int | None
    either: int | str
    blob: bytes
    small: Annotated[int, msgspec.Meta(ge=0, le=9)]
    anything: Any
    numbers: list[int]
    counts: dict[str, int]
    by_number: dict[int, str]
    pair: tuple[int, str]
    many: tuple[int, ...]
    unique: set[int]
    frozen: frozenset[str]
    sequence: Sequence[int]
    mapping: Mapping[str, float]
    nested_lists: list[list[int | None]]
    part: PartWalked
    maybe_part: PartWalked | None
    parts: list[PartWalked]
    part_tuple: tuple[PartWalked, ...]
    part_and_number: tuple[PartWalked, int]
    part_sequence: Sequence[PartWalked]
    maybe_parts: list[PartWalked | None] | None
    parts_by_name: dict[str, PartWalked]
    parts_by_number: dict[int, PartWalked]
    parts_by_id: Mapping[UUID, PartWalked]
    parts_by_color: dict[Color, PartWalked]
    part_set: frozenset[PartWalked]
    part_or_number: PartWalked | int
    address: AddressWalked
    addresses: list[AddressWalked]
    defaulted: int = 7
    made: list[int] = attrs.field(factory=list[int])


texts = st.text(st.characters(codec="utf-8"), max_size=8)
wholes = st.integers(-(2**63), 2**64)
reals = st.floats(allow_nan=False, allow_infinity=False)
zones = st.integers(-720, 720).map(lambda minutes: timezone(timedelta(minutes=minutes)))
parts = st.builds(Part, texts, wholes)
addresses = st.builds(Address, texts, st.none() | texts)
plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "whole": wholes,
    "real": reals,
    "text": texts,
    "flag": st.booleans(),
    "money": st.decimals(allow_nan=False, allow_infinity=False),
    "id": st.uuids(),
    "moment": st.datetimes(timezones=st.just(UTC) | zones) | st.datetimes(),
    "day": st.dates(),
    "clock": st.times(),
    "lasted": st.timedeltas(timedelta(days=-1000), timedelta(days=1000)),
    "color": st.sampled_from(Color),
    "level": st.sampled_from(Level),
    "choice": st.sampled_from(["a", "b"]),
    "perhaps": st.none() | wholes,
    "either": wholes | texts,
    "blob": st.binary(max_size=8),
    "small": st.integers(0, 9),
    "anything": plain,
    "numbers": st.lists(wholes, max_size=3),
    "counts": st.dictionaries(texts, wholes, max_size=3),
    "by_number": st.dictionaries(st.integers(-(2**63), 2**63 - 1), texts, max_size=3),
    "pair": st.tuples(wholes, texts),
    "many": st.lists(wholes, max_size=3).map(tuple),
    "unique": st.sets(wholes, max_size=3),
    "frozen": st.frozensets(texts, max_size=3),
    "sequence": st.lists(wholes, max_size=3),
    "mapping": st.dictionaries(texts, reals, max_size=3),
    "nested_lists": st.lists(st.lists(st.none() | wholes, max_size=2), max_size=2),
    "part": parts,
    "maybe_part": st.none() | parts,
    "parts": st.lists(parts, max_size=3),
    "part_tuple": st.lists(parts, max_size=3).map(tuple),
    "part_and_number": st.tuples(parts, wholes),
    "part_sequence": st.lists(parts, max_size=3),
    "maybe_parts": st.none() | st.lists(st.none() | parts, max_size=2),
    "parts_by_name": st.dictionaries(texts, parts, max_size=2),
    "parts_by_number": st.dictionaries(st.integers(-(2**63), 2**63 - 1), parts, max_size=2),
    "parts_by_id": st.dictionaries(st.uuids(), parts, max_size=2),
    "parts_by_color": st.dictionaries(st.sampled_from(Color), parts, max_size=2),
    "part_set": st.frozensets(parts, max_size=2),
    "part_or_number": parts | wholes,
    "address": addresses,
    "addresses": st.lists(addresses, max_size=2),
    "defaulted": wholes,
    "made": st.lists(wholes, max_size=2),
}
everythings = st.builds(Everything, **FIELDS)

NATIVE = Native(Everything)
WALKED = Walked[EverythingWalked](describe(EverythingWalked))

WRONG: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    10,
    1.0,
    1.5,
    -0.0,
    1e300,
    2**64,
    "",
    "1",
    "1.0",
    "true",
    "None",
    "NaN",
    "red",
    "green",
    "2026-13-01",
    "2026-01-01",
    "2026-01-01T00:00:00Z",
    "00:00:00",
    "P1D",
    "PT",
    "AAAA",
    "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    [],
    {},
    [1],
    ["1"],
    [True],
    [1.0],
    [None],
    [[]],
    [[1]],
    [1, "a"],
    ["a", 1],
    [1, 1, 1],
    {"1": 1},
    {"a": None},
    {"a": 1},
    {"a": "1"},
    {"a": {}},
    {"1": {"sku": "s"}},
    {"red": {"sku": "s"}},
    {"sku": "s"},
    {"sku": 1},
    {"sku": None},
    {"sku": "s", "count": "1"},
    {"sku": "s", "count": True},
    {"sku": "s", "count": None},
    {"sku": "s", "unknown": [1]},
    {"city": "c", "zip": 1},
    {"city": "c", "country": "c"},
    [{"sku": "s"}],
    [{"sku": 1}],
    [{"sku": "s"}, 1],
    [{"sku": "s"}, None],
    [{"city": "c"}],
]


def as_document(value: Everything) -> Document:
    document: Document = msgspec.json.decode(NATIVE.encode(value))
    return document


def outcome(read: Any, of: Any) -> str:
    """Return what came of reading, in the words that both families share; "refused" where it did not fit."""
    try:
        value = read(of)
    except (msgspec.ValidationError, TypeError, ValueError, LookupError):
        return "refused"
    shown = {name: in_order(getattr(value, name)) for name in FIELDS}
    return repr(shown).replace("Walked(", "(").replace(", country='nowhere'", "")


def in_order(value: Any) -> Any:
    return (type(value), sorted(value, key=repr)) if type(value) in (set, frozenset) else value


def outcomes(document: Any) -> list[str]:
    body = msgspec.json.encode(document)
    document = msgspec.json.decode(body)
    return [
        outcome(NATIVE.decode, body),
        outcome(NATIVE.structure, document),
        outcome(WALKED.decode, body),
        outcome(WALKED.structure, document),
    ]


# --- one strictness, whichever path ----------------------------------------------------------------------------------


def test_each_family_takes_the_path_it_stands_for() -> None:
    assert isinstance(path_for(Everything, describe(Everything)), Native)
    assert isinstance(path_for(EverythingWalked, describe(EverythingWalked)), Walked)
    assert set(FIELDS) == {field.name for field in attrs.fields(Everything)}


@given(everythings)
def test_what_one_path_writes_both_read_alike(value: Everything) -> None:
    body = NATIVE.encode(value)

    walked = WALKED.decode(body)

    assert NATIVE.decode(body) == value
    assert len(set(outcomes(msgspec.json.decode(body)))) == 1
    assert "refused" not in outcomes(msgspec.json.decode(body))
    assert NATIVE.decode(WALKED.encode(walked)) == value


@given(everythings, st.data())
def test_a_corrupted_document_has_the_same_outcome_on_both_paths(value: Everything, data: st.DataObject) -> None:
    document = as_document(value)
    for name in data.draw(st.lists(st.sampled_from(list(FIELDS)), min_size=1, max_size=2)):
        wrong = data.draw(st.sampled_from([*WRONG, "missing"]))
        if wrong == "missing":
            document.pop(name, None)
        else:
            document[name] = wrong

    found = outcomes(document)

    assert len(set(found)) == 1, found


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_refuses_the_same_wrong_values_on_both_paths(field: str) -> None:
    document = as_document(EXAMPLE)

    for wrong in WRONG:
        found = outcomes({**document, field: wrong})

        assert len(set(found)) == 1, (wrong, found)


EXAMPLE = Everything(
    whole=1,
    real=1.5,
    text="text",
    flag=True,
    money=Decimal("1.10"),
    id=UUID(int=5),
    moment=datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
    day=date(2026, 1, 2),
    clock=time(3, 4, 5),
    lasted=timedelta(seconds=90),
    color=Color.RED,
    level=Level.HIGH,
    choice="a",
    perhaps=None,
    either="x",
    blob=b"blob",
    small=3,
    anything=None,
    numbers=[1],
    counts={"a": 1},
    by_number={1: "a"},
    pair=(1, "a"),
    many=(1, 2),
    unique={1},
    frozen=frozenset({"a"}),
    sequence=[1],
    mapping={"a": 1.5},
    nested_lists=[[1, None]],
    part=Part("s"),
    maybe_part=None,
    parts=[Part("s")],
    part_tuple=(Part("s"),),
    part_and_number=(Part("s"), 1),
    part_sequence=[Part("s")],
    maybe_parts=None,
    parts_by_name={"a": Part("s")},
    parts_by_number={1: Part("s")},
    parts_by_id={UUID(int=5): Part("s")},
    parts_by_color={Color.RED: Part("s")},
    part_set=frozenset({Part("s")}),
    part_or_number=1,
    address=Address("c"),
    addresses=[Address("c")],
)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("whole", "1"),
        ("whole", 1.5),
        ("whole", True),
        ("whole", None),
        ("real", "1.5"),
        ("real", True),
        ("text", 1),
        ("text", None),
        ("text", ["a"]),
        ("flag", 1),
        ("flag", "true"),
        ("money", True),
        ("money", "ten"),
        ("id", 5),
        ("id", "five"),
        ("moment", 1_700_000_000),
        ("day", "2026-01-02T00:00:00Z"),
        ("clock", 3),
        ("lasted", 90),
        ("color", "RED"),
        ("level", "2"),
        ("level", True),
        ("choice", "c"),
        ("either", 1.5),
        ("blob", [1]),
        ("small", 10),
        ("numbers", "12"),
        ("numbers", {"1": 1}),
        ("numbers", ["1"]),
        ("counts", [["a", 1]]),
        ("pair", [1]),
        ("pair", [1, "a", 2]),
        ("unique", "1"),
        ("part", "s"),
        ("part", ["s"]),
        ("part", None),
        ("part", {}),
        ("parts", {"sku": "s"}),
        ("parts", ""),
        ("part_sequence", ""),
        ("part_sequence", {}),
        ("parts_by_number", {"one": {"sku": "s"}}),
        ("address", {"city": 1}),
    ],
)
def test_nothing_is_coerced(field: str, wrong: Any) -> None:
    assert outcomes({**as_document(EXAMPLE), field: wrong}) == ["refused"] * 4


@pytest.mark.parametrize("field", [name for name in FIELDS if name not in ("defaulted", "made")])
def test_a_field_without_a_default_must_be_there(field: str) -> None:
    document = as_document(EXAMPLE)

    del document[field]

    assert outcomes(document) == ["refused"] * 4


def test_a_field_with_a_default_may_be_missing() -> None:
    document = as_document(EXAMPLE)

    del document["defaulted"], document["made"]

    assert len(set(outcomes(document))) == 1
    assert NATIVE.structure(document).defaulted == 7
    assert WALKED.structure(document).made == []


def test_an_unknown_field_is_ignored_on_both_paths() -> None:
    document = as_document(EXAMPLE)

    more: Document = {
        **document,
        "unknown": {"deep": [1]},
        "part": {"sku": "s", "unknown": 1},
        "address": {"city": "c", "unknown": None},
    }

    assert outcomes(more) == outcomes({**document, "part": {"sku": "s"}, "address": {"city": "c"}})
    assert "refused" not in outcomes(more)


@pytest.mark.parametrize("document", [None, 1, "text", [], [1], True])
def test_a_document_that_is_no_object_is_refused_on_both_paths(document: Any) -> None:
    assert outcomes(document) == ["refused"] * 4


# --- what only the class itself can do -------------------------------------------------------------------------------


@event("price.set")
@attrs.frozen
class PriceSet:
    price: Decimal = attrs.field(converter=Decimal)
    currency: str = attrs.field(default="eur", converter=upper, validator=attrs.validators.max_len(3))


@event("age.told")
@attrs.frozen
class AgeTold:
    age: int = attrs.field(validator=attrs.validators.ge(18))


@event("sum.made")
@dataclasses.dataclass
class SumMade:
    numbers: list[int]
    total: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if not self.numbers:
            raise ValueError("SECRET")
        self.total = sum(self.numbers)


@event("area.measured")
@attrs.define
class AreaMeasured:
    width: int
    height: int
    area: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.area = self.width * self.height


@event("doubled.up")
@attrs.define(init=False)
class DoubledUp:
    number: int

    def __init__(self, number: int) -> None:
        self.__attrs_init__(number * 2)  # pyright: ignore


@event("hidden.kept")
@attrs.frozen
class HiddenKept:
    _secret: int
    shown: int = attrs.field(alias="display")


@event("defaults.taken")
@attrs.frozen
class DefaultsTaken:
    first: int
    second: int = attrs.field()

    @second.default  # pyright: ignore
    def _second(self) -> int:
        return self.first + 1


@event("tree.grown")
@attrs.frozen
class TreeGrown:
    name: str = attrs.field(converter=unchanged)
    branches: "list[TreeGrown]" = attrs.field(factory=list["TreeGrown"])


def test_attrs_converters_are_called_with_what_came() -> None:
    codec = Codec(PriceSet)

    read = codec.decode(b'{"price": "1.50", "currency": "usd"}', 1)

    assert read == PriceSet(Decimal("1.50"), "USD")
    assert codec.decode(codec.encode(read), 1) == read


def test_a_type_stays_strict_before_its_converter_is_called() -> None:
    with pytest.raises(DecodeError):
        Codec(PriceSet).decode(b'{"price": "1.50", "currency": 5}', 1)


@pytest.mark.parametrize("price", [b'"ten"', b"true", b"null", b"[]"])
def test_a_value_that_a_converter_refuses_is_a_decode_error(price: bytes) -> None:
    with pytest.raises(DecodeError):
        Codec(PriceSet).decode(b'{"price": ' + price + b"}", 1)


@pytest.mark.parametrize(
    ("cls", "body"),
    [
        (PriceSet, b'{"price": "1", "currency": "euros"}'),
        (AgeTold, b'{"age": 17}'),
        (SumMade, b'{"numbers": []}'),
    ],
)
def test_a_value_that_a_validator_refuses_is_a_decode_error(cls: type, body: bytes) -> None:
    with pytest.raises(DecodeError):
        Codec[Any](cls).decode(body, 1)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError, AssertionError, IndexError, KeyError, OSError, StopIteration, Exception]
)
def test_whatever_a_converter_raises_of_a_document_is_a_decode_error(error: type[Exception]) -> None:
    def refuse(_: Any) -> NoReturn:
        raise error("SECRET")

    cls = attrs.make_class("Refusing", {"field": attrs.field(type=int, converter=refuse)})

    with pytest.raises(DecodeError) as refused:
        Codec[Any](event("was.refused")(cls)).decode(b'{"field": 1}', 1)

    assert "SECRET" not in str(refused.value)


def test_fields_without_an_init_argument_are_made_by_the_class_and_never_read() -> None:
    summed = Codec(SumMade).decode(b'{"numbers": [1, 2], "total": 99}', 1)
    measured = Codec(AreaMeasured).decode(b'{"width": 2, "height": 3, "area": 99}', 1)

    assert summed.total == 3
    assert measured.area == 6


def test_an_init_of_the_class_s_own_is_called() -> None:
    assert Codec(DoubledUp).decode(b'{"number": 2}', 1).number == 4


def test_private_fields_and_aliases_come_back_as_they_went() -> None:
    codec = Codec(HiddenKept)
    kept = HiddenKept(1, 2)

    assert codec.decode(codec.encode(kept), 1) == kept


def test_a_default_made_from_other_fields_is_made() -> None:
    assert Codec(DefaultsTaken).decode(b'{"first": 1}', 1) == DefaultsTaken(1, 2)


def test_a_class_may_hold_others_of_its_own_kind() -> None:
    codec = Codec(TreeGrown)
    tree = TreeGrown("root", [TreeGrown("a", [TreeGrown("b")]), TreeGrown("c")])

    assert codec.decode(codec.encode(tree), 1) == tree


def holding(kind: Any) -> type:
    """Return an event class with one field of ``kind``."""
    return event("was.held")(attrs.make_class("Holding", {"field": attrs.field(type=kind)}))


# --- unions ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Card:
    number: str


@attrs.frozen
class Cash:
    amount: Decimal


@dataclasses.dataclass(frozen=True)
class Voucher:
    number: str


Means = Card | Cash | Voucher


@event("payment.made")
@attrs.frozen
class PaymentMade:
    means: Means
    maybe: Means | None = None
    more: list[Means] = attrs.field(factory=list[Means])
    named: dict[str, Means] = attrs.field(factory=dict[str, Means])
    several: tuple[Means, ...] = ()
    or_text: Card | Cash | str = "none"


means = st.builds(Card, texts) | st.builds(Cash, FIELDS["money"]) | st.builds(Voucher, texts)


@given(
    st.builds(
        PaymentMade,
        means=means,
        maybe=st.none() | means,
        more=st.lists(means, max_size=3),
        named=st.dictionaries(texts, means, max_size=3),
        several=st.lists(means, max_size=3).map(tuple),
        or_text=texts | st.builds(Card, texts) | st.builds(Cash, FIELDS["money"]),
    )
)
def test_each_member_of_a_union_comes_back_as_itself_wherever_it_stands(payment: PaymentMade) -> None:
    codec = Codec(PaymentMade)

    assert codec.decode(codec.encode(payment), 1) == payment


def test_a_union_s_member_is_told_by_its_class_s_name() -> None:
    document = json.loads(Codec(PaymentMade).encode(PaymentMade(Card("1"))))

    assert document["means"] == {"_type": "Card", "number": "1"}


@pytest.mark.parametrize(
    "member",
    [
        '{"_type": "os.system", "number": "1"}',
        '{"_type": "builtins.eval", "number": "1"}',
        '{"_type": "Address", "city": "c"}',
        '{"_type": "PaymentMade", "number": "1"}',
        '{"_type": ["Card"], "number": "1"}',
        '{"_type": {"Card": 1}, "number": "1"}',
        '{"_type": null, "number": "1"}',
        '{"_type": 1, "number": "1"}',
        '{"_type": "", "number": "1"}',
        '{"number": "1"}',
        '{"_type": "Cash", "number": "1"}',
        '{"_type": "Card", "number": 1}',
        '"Card"',
        "null",
        "[]",
        "1",
    ],
)
def test_a_tag_is_a_look_up_key_among_the_union_s_members_and_nothing_else(member: str) -> None:
    with pytest.raises(DecodeError):
        Codec(PaymentMade).decode(b'{"means": ' + member.encode() + b"}", 1)


def test_what_is_no_object_must_fit_a_union_s_other_members() -> None:
    with pytest.raises(DecodeError):
        Codec(PaymentMade).decode(b'{"means": {"_type": "Card", "number": "1"}, "or_text": 5}', 1)


def test_a_union_of_one_class_and_others_needs_no_tag() -> None:
    document = {**as_document(EXAMPLE), "part_or_number": {"sku": "s"}}

    assert NATIVE.structure(document).part_or_number == Part("s")
    assert WALKED.structure(document).part_or_number == PartWalked("s")


def test_an_instance_that_is_no_member_of_its_union_is_an_encode_error() -> None:
    class GoldCard(Card):
        pass

    with pytest.raises(EncodeError):
        Codec(PaymentMade).encode(PaymentMade(GoldCard("1")))


def test_a_union_whose_members_no_tag_tells_apart_is_an_error_at_start() -> None:
    other_card = attrs.make_class("Card", {"holder": attrs.field(type=str)})

    with pytest.raises(ConfigurationError, match="same name"):
        Codec(holding(Card | other_card))


def test_a_union_s_member_with_a_field_where_the_tag_goes_is_an_error_at_start() -> None:
    tagged = attrs.make_class("Tagged", {"_type": attrs.field(type=str)})

    with pytest.raises(ConfigurationError, match="_type"):
        Codec(holding(Card | tagged))


# --- what cannot be carried at all -----------------------------------------------------------------------------------


class Opaque:
    pass


@pytest.mark.parametrize("kind", [Opaque, object, list[Opaque], dict[str, Opaque], Opaque | None, complex, type])
def test_a_field_that_json_cannot_say_is_an_error_at_start_that_names_the_class(kind: Any) -> None:
    cls = holding(kind)

    with pytest.raises(ConfigurationError, match="Holding cannot be carried as JSON"):
        Codec(cls)


def test_an_init_only_argument_is_an_error_at_start() -> None:
    @event("was.made")
    @dataclasses.dataclass
    class Made:
        number: int
        factor: dataclasses.InitVar[int]

    with pytest.raises(ConfigurationError, match="Made"):
        Codec(Made)


def test_an_annotation_that_cannot_be_resolved_is_an_error_at_start() -> None:
    @event("was.held")
    @attrs.frozen
    class Holding:
        field: "NobodyKnowsThis"  # type: ignore[name-defined]  # pyright: ignore  # noqa: F821

    with pytest.raises(ConfigurationError, match="Holding"):
        Codec(Holding)


def test_a_class_without_a_mark_is_an_error_at_start() -> None:
    with pytest.raises(ConfigurationError, match=r"Part is no event: put @event"):
        Codec(Part)


@pytest.mark.parametrize(
    "changes",
    [
        {"text": "\ud800"},
        {"anything": Opaque()},
        {"anything": {1j: 2}},
        {"numbers": [Opaque()]},
    ],
    ids=["surrogate", "object", "key", "item"],
)
def test_a_payload_that_cannot_be_written_is_an_encode_error(changes: dict[str, Any]) -> None:
    with pytest.raises(EncodeError, match="Everything cannot be written as JSON"):
        Codec(Everything).encode(attrs.evolve(EXAMPLE, **changes))


@pytest.mark.parametrize("payload", [EXAMPLE, WALKED.decode(NATIVE.encode(EXAMPLE))], ids=["native", "walked"])
def test_a_payload_that_holds_itself_is_an_encode_error(payload: Any) -> None:
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(EncodeError, match="nested too deeply"):
        Codec(payload.__class__).encode(attrs.evolve(payload, anything=endless))


# --- what anybody may send -------------------------------------------------------------------------------------------

HOSTILE = {
    "empty": b"",
    "blank": b"   ",
    "NUL": b"\0",
    "NUL inside": b'{"whole": 1\0}',
    "cut short": b'{"whole": 1',
    "two documents": b"{}{}",
    "NaN": b'{"real": NaN}',
    "Infinity": b'{"real": Infinity}',
    "too large a float": b'{"real": 1e999}',
    "not UTF-8": b'{"text": "\xff\xfe"}',
    "lone surrogate": b'{"text": "\\ud800"}',
    "a raw lone surrogate": b'{"text": "\xed\xa0\x80"}',
    "100,000 deep": b"[" * 100_000,
    "100,000 deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "100,000 deep in a field": b'{"anything": ' + b'{"x":' * 100_000 + b"1" + b"}" * 100_001,
    "100,000 deep in an unknown field": b'{"unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "10^6 digits": b'{"whole": ' + b"9" * 1_000_000 + b"}",
    "10^6 digits and a point": b'{"money": ' + b"9" * 1_000_000 + b".5}",
    "10^6 digits in text": b'{"money": "' + b"9" * 1_000_000 + b'x"}',
    "10^6 digits of a float": b'{"real": ' + b"9" * 1_000_000 + b"}",
    "17 MiB of text": b'{"text": "' + b"x" * (17 << 20) + b'"}',
    "17 MiB of brackets": b"[]," * (17 << 20 >> 2),
    "YAML": b"!!python/object/apply:os.system ['true']",
    "a pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("cls", [Everything, EverythingWalked, PaymentMade, TreeGrown])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_nothing_but_a_decode_error_comes_of_a_hostile_body(body: bytes, version: int, cls: type) -> None:
    with pytest.raises(DecodeError):
        Codec[Any](cls).decode(body, version)


@given(everythings, st.data())
def test_nothing_but_a_decode_error_comes_of_changed_bytes(value: Everything, data: st.DataObject) -> None:
    body = bytearray(NATIVE.encode(value))
    places = st.integers(0, len(body) - 1)
    for place, octet in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=5)):
        body[place] = octet

    for codec in CODECS:
        with contextlib.suppress(DecodeError):
            codec.decode(bytes(body), 1)


CODECS: list[Codec[Any]] = [Codec(Everything), Codec(EverythingWalked)]

# --- what an error says ----------------------------------------------------------------------------------------------

MARKER = "S3CRET - at `$.x`"


@event("tagged.struct")
@attrs.frozen
class TaggedStruct:
    class One(msgspec.Struct, tag="one"):
        pass

    class Two(msgspec.Struct, tag="two"):
        pass

    either: One | Two


def hiding_places() -> list[Any]:
    return [MARKER, [MARKER], {MARKER: MARKER}, {"sku": {MARKER: 1}}, [{"sku": [MARKER]}], {"_type": MARKER}]


def refusal(codec: Codec[Any], document: Document) -> str:
    """Return what the error says; nothing where the document is read."""
    try:
        codec.decode(msgspec.json.encode(document), 1)
    except DecodeError as error:
        return f"{error} {error!r}"
    return ""


@pytest.mark.parametrize("cls", [Everything, EverythingWalked])
@pytest.mark.parametrize("field", FIELDS)
def test_no_value_of_a_document_appears_in_an_error(field: str, cls: type) -> None:
    document = as_document(EXAMPLE)
    codec = Codec[Any](cls)

    for hidden in hiding_places():
        said = refusal(codec, {**document, field: hidden})

        assert "S3CRET" not in said


@pytest.mark.parametrize(
    ("cls", "body"),
    [
        (PaymentMade, {"means": {"_type": MARKER}}),
        (PaymentMade, {"means": MARKER}),
        (PriceSet, {"price": MARKER}),
        (PriceSet, {"price": "1", "currency": MARKER}),
        (TaggedStruct, {"either": {"type": MARKER}}),
        (TaggedStruct, {"either": MARKER}),
        (AgeTold, {"age": MARKER}),
        (AgeTold, {"age": -31_337}),
    ],
)
def test_no_value_appears_in_the_error_of_a_special_class(cls: type, body: Any) -> None:
    with pytest.raises(DecodeError) as refused:
        Codec[Any](cls).decode(msgspec.json.encode(body), 1)

    assert "S3CRET" not in str(refused.value)
    assert "31337" not in str(refused.value)


def test_an_error_of_writing_shows_no_value_either() -> None:
    with pytest.raises(EncodeError) as refused:
        Codec(Everything).encode(attrs.evolve(EXAMPLE, text="S3CRET\ud800"))

    assert "S3CRET" not in str(refused.value)


def test_a_decode_error_says_type_version_and_place() -> None:
    document = {**as_document(EXAMPLE), "parts": [{"sku": "s"}, {"sku": 1}]}

    with pytest.raises(
        DecodeError, match=r"everything\.happened version 1 does not fit.*Expected `str`.*\$\.parts"
    ) as it:
        Codec(Everything).decode(msgspec.json.encode(document), 1)

    assert it.value.type == "everything.happened"


# --- versions --------------------------------------------------------------------------------------------------------


@event("order.placed", version=3)
@attrs.frozen
class OrderPlaced:
    order_id: str
    total: Decimal
    currency: str


@upcast(OrderPlaced, from_version=1)
def _total_as_text(document: Document) -> Document:
    document["total"] = str(document.pop("amount"))
    return document


@upcast(OrderPlaced, from_version=2)
def _currency(document: Document) -> Document:
    return {**document, "currency": "EUR"}


@pytest.mark.parametrize(
    ("version", "document"),
    [
        (1, {"order_id": "o", "amount": 5}),
        (2, {"order_id": "o", "total": "5"}),
        (3, {"order_id": "o", "total": "5", "currency": "EUR"}),
        (4, {"order_id": "o", "total": "5", "currency": "EUR", "channel": "web"}),
        (400, {"order_id": "o", "total": "5", "currency": "EUR"}),
    ],
)
def test_every_version_is_led_up_to_the_class(version: int, document: Document) -> None:
    codec = Codec(OrderPlaced)

    assert codec.decode(msgspec.json.encode(document), version) == OrderPlaced("o", Decimal(5), "EUR")
    assert codec.structure(document, version) == OrderPlaced("o", Decimal(5), "EUR")


def test_a_newer_version_that_does_not_fit_is_an_error_that_names_both() -> None:
    with pytest.raises(DecodeError, match=r"version 7, newer than 3.*does not fit") as refused:
        Codec(OrderPlaced).decode(b'{"order_id": "o", "sum": "5"}', 7)

    assert refused.value.type == "order.placed"


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_below_the_oldest_is_an_error_that_names_both(version: int) -> None:
    with pytest.raises(DecodeError, match=rf"version {version}, older than 1"):
        Codec(OrderPlaced).decode(b"{}", version)


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"text"', b"{}", b'{"amount": 1}', b"", b"["])
@pytest.mark.parametrize("version", [1, 2])
def test_what_a_step_cannot_lead_up_is_a_decode_error(body: bytes, version: int) -> None:
    with pytest.raises(DecodeError):
        Codec(OrderPlaced).decode(body, version)


def test_a_missing_step_is_an_error_at_start_that_names_the_class_and_the_way_out() -> None:
    @event("order.moved", version=4, oldest=1)
    @attrs.frozen
    class OrderMoved:
        to: str

    @upcast(OrderMoved, from_version=2)
    def _(document: Document) -> Document:
        return document

    with pytest.raises(ConfigurationError) as refused:
        Codec(OrderMoved)

    assert "OrderMoved is version 4" in str(refused.value)
    assert "1 to 2, 3 to 4" in str(refused.value)
    assert "@upcast(OrderMoved, from_version=1)" in str(refused.value)
    assert "oldest=4" in str(refused.value)


def test_versions_given_up_need_no_step_and_are_refused() -> None:
    @event("order.moved", version=3, oldest=3)
    @attrs.frozen
    class OrderMoved:
        to: str

    with pytest.raises(DecodeError, match="version 2, older than 3"):
        Codec(OrderMoved).decode(b'{"to": "x"}', 2)


def test_a_step_s_own_failure_does_not_show_the_document() -> None:
    @event("order.moved", version=2)
    @attrs.frozen
    class OrderMoved:
        to: str

    @upcast(OrderMoved, from_version=1)
    def _(document: Document) -> Document:
        raise ValueError(document["to"])

    with pytest.raises(DecodeError) as refused:
        Codec(OrderMoved).decode(b'{"to": "S3CRET"}', 1)

    assert "S3CRET" not in str(refused.value)


@event("measured")
@attrs.frozen
class Measured:
    value: float | None
    series: list[float] = attrs.field(factory=list[float])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_cannot_say_fails_at_the_caller(number: float) -> None:
    codec = Codec(Measured)

    for hopeless in (Measured(number), Measured(None, [1.0, number])):
        with pytest.raises(EncodeError, match="Measured"):
            codec.encode(hopeless)
    assert codec.decode(codec.encode(Measured(None)), 1) == Measured(None)


# --- a union's members that are no classes --------------------------------------------------------------------------


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    a: int = 0


def made_of(kind: Any) -> Any:
    """Return a class with one field, ``value``, of ``kind``."""
    return attrs.make_class("Made", {"value": attrs.field(type=kind)}, frozen=True)


@attrs.frozen
class Token:
    number: str = attrs.field(converter=unchanged)


@attrs.frozen
class Coins:
    amount: int


@attrs.frozen
class Transfer:
    amount: int


Money: TypeAlias = Coins | Transfer


@event("bill.paid")
@attrs.frozen
class BillPaid:
    one_or_many: Token | list[Money]
    two_or_many: Token | Coins | list[Money] | None = None
    many: tuple[Token | list[Money], ...] = ()
    by_name: dict[str, Token | tuple[Money, ...]] = attrs.field(factory=dict[str, Any])


moneys = st.lists(st.builds(Coins, st.integers(0, 9)) | st.builds(Transfer, st.integers(0, 9)), max_size=3)
tokens = st.builds(Token, st.text("ab", max_size=3))


@given(
    st.builds(
        BillPaid,
        tokens | moneys,
        st.none() | tokens | st.builds(Coins, st.integers(0, 9)) | moneys,
        st.lists(tokens | moneys, max_size=3).map(tuple),
        st.dictionaries(st.text("ab", max_size=2), tokens | moneys.map(tuple), max_size=2),
    )
)
def test_classes_in_a_list_that_is_one_of_a_union_s_members_come_back_as_themselves(bill: BillPaid) -> None:
    assert Codec(BillPaid).decode(Codec(BillPaid).encode(bill), 1) == bill


@pytest.mark.parametrize(
    "kind",
    [
        Token | dict[str, int],
        Token | dict[str, Money] | None,
        Token | Coins | Mapping[str, int],
        Coins | Transfer | dict[str, Any],
    ],
    ids=str,
)
def test_a_class_and_a_mapping_in_one_union_are_refused_since_nobody_could_tell_them_apart(kind: Any) -> None:
    made = made_of(kind)

    with pytest.raises(
        ConfigurationError, match=r"Made cannot be carried as JSON: Made\.value: nothing in a document tells"
    ):
        Codec(event("made.it")(made))


@pytest.mark.parametrize(
    "kind",
    [datetime | str, UUID | Decimal, list[int] | set[int], Token | datetime | str, dict[str, int] | Closed],
    ids=str,
)
def test_members_that_look_alike_in_json_are_refused_at_start(kind: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"Made cannot be carried as JSON: Made\.value: nothing in a document tells"
    ):
        Codec(event("made.it")(made_of(kind)))


def test_a_lone_class_of_a_union_may_have_a_field_of_the_tag_s_name() -> None:
    @attrs.frozen
    class Typed:
        _type: str = attrs.field(alias="_type", converter=unchanged)

    made = event("typed.it")(made_of(Typed | None))
    codec: Codec[Any] = Codec(made)

    for value in (Typed("own"), None):
        assert codec.decode(codec.encode(made(value)), 1) == made(value)
    assert codec.encode(made(Typed("own"))) == b'{"value":{"_type":"own"}}'


@pytest.mark.parametrize("key", ["1.0", "1e3", " 1", "x", "", "1_0", "true"])
def test_keys_of_a_mapping_are_as_strict_whichever_path_they_take(key: str) -> None:
    kinds: list[Any] = [dict[int, int], dict[int, PartWalked]]
    for kind in kinds:
        made = event("made.it")(made_of(kind))
        body = msgspec.json.encode({"value": {key: 1 if kind == dict[int, int] else {"sku": "s"}}})
        good = body.replace(msgspec.json.encode(key), b'"7"', 1)

        assert list(Codec(made).decode(good, 1).value) == [7]
        with pytest.raises(DecodeError):
            Codec(made).decode(body, 1)


# --- what errors say -------------------------------------------------------------------------------------------------

SECRET = "4111 1111 1111 1111"
HOSTILE_TEXTS = [
    SECRET,
    SECRET * 50_000,
    f"x - at `$.{SECRET}`",
    f"x - at `$.{SECRET}",
    f"x` - at `$.{SECRET}",
    f"Expected `{SECRET}`",
    f"\n{SECRET}\x1b[2J",
]


class Rejecting(msgspec.Struct):
    a: str

    def __post_init__(self) -> None:
        raise msgspec.ValidationError(f"not {self.a}")


def refuse(value: str) -> str:
    if value:
        raise msgspec.ValidationError(f"Unacceptable: {value}")
    return value


@event("secret.kept")
@attrs.frozen
class SecretKept:
    closed: Closed = attrs.field(factory=Closed)
    color: Color = Color.RED
    word: Literal["a", "b"] = "a"
    number: int = 0
    id: UUID | None = None
    when: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    amount: Decimal = Decimal(0)
    by_color: dict[Color, int] = attrs.field(factory=dict[Color, int])
    rejecting: Rejecting | None = None


@event("secret.kept")
@attrs.frozen
class SecretWalked(SecretKept):
    refusing: str = attrs.field(default="", converter=refuse)
    part: PartWalked | Literal["a"] = "a"


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=range(len(HOSTILE_TEXTS)))
@pytest.mark.parametrize("cls", [SecretKept, SecretWalked])
@pytest.mark.parametrize("version", [1, 2])
def test_an_error_is_short_and_says_no_value_and_no_key_of_a_document(cls: type, text: str, version: int) -> None:
    fields = ("color", "word", "number", "id", "when", "amount", "by_color", "closed")
    bodies: list[dict[str, Any]] = [{name: text} for name in fields]
    bodies += [{"closed": {text: 1}}, {"by_color": {text: 1}}, {"rejecting": {"a": text}}]
    bodies += [{"refusing": text}, {"part": text}, {"part": {text: 1}}] if cls is SecretWalked else []

    for body in map(msgspec.json.encode, bodies):
        with pytest.raises(DecodeError) as refused:
            Codec(cls).decode(body, version)

        assert len(str(refused.value)) < 500
        assert "4111" not in str(refused.value)
        assert str(refused.value).isprintable()


def test_an_error_still_says_where_it_is() -> None:
    with pytest.raises(DecodeError, match=r"invalid value - at `\$\.color`$"):
        Codec(SecretKept).decode(b'{"color": "green"}', 1)
    with pytest.raises(DecodeError, match=r"Expected `int`, got `str` - at `\$\.number`$"):
        Codec(SecretKept).decode(b'{"number": "1"}', 1)
    with pytest.raises(DecodeError, match=r"it has a field that its class does not know$"):
        Codec(SecretKept).decode(b'{"closed": {"b": 1}}', 1)


@pytest.mark.parametrize("body", [b"", b"{", b"no JSON", b'{"a": 1', b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_a_decode_error_for_those_who_take_any_document(body: bytes) -> None:
    with pytest.raises(DecodeError, match="the body is no JSON"):
        read_document(body)


# --- keys that are chosen to collide ---------------------------------------------------------------------------------

MODULUS = 2**61 - 1
MANY = range(1, 4_000)


@attrs.frozen
class Point:
    x: int
    y: int


@attrs.frozen
class PointWalked:
    x: int = attrs.field(converter=unchanged)


FLOODS: dict[str, tuple[Any, Any]] = {
    "integers": (set[int], [n * MODULUS for n in MANY]),
    "negative integers": (set[int], [-n * MODULUS for n in MANY]),
    "UUIDs": (set[UUID], [str(UUID(int=n * MODULUS)) for n in MANY]),
    "UUIDs without dashes": (set[UUID], [UUID(int=n * MODULUS).hex for n in MANY]),
    "UUIDs in upper case": (frozenset[UUID], [str(UUID(int=n * MODULUS)).upper() for n in MANY]),
    "decimals": (set[Decimal], [str(n * MODULUS) for n in MANY]),
    "decimals of 32 digits": (set[Decimal], [f"{n * MODULUS:032d}" for n in MANY]),
    "decimals with exponents": (set[Decimal], [f"{n * MODULUS}e3" for n in MANY]),
    "decimals as numbers": (set[Decimal], [n * MODULUS for n in MANY]),
    "keys that are integers": (dict[int, int], {str(n * MODULUS): 0 for n in MANY}),
    "keys that are UUIDs": (dict[UUID, int], {str(UUID(int=n * MODULUS)): 0 for n in MANY}),
    "keys that are decimals": (dict[Decimal, int], {str(n * MODULUS): 0 for n in MANY}),
    "pairs of 64 bits": (set[tuple[int, ...]], [[(n >> 3 * k & 7) * MODULUS for k in range(4)] for n in MANY]),
    "classes": (set[Point], [{"x": n * MODULUS, "y": 0} for n in MANY]),
    "classes that are walked": (set[PointWalked], [{"x": n * MODULUS} for n in MANY]),
    "deep within": (dict[str, list[set[int]]], {"a": [[1], [n * MODULUS for n in MANY]]}),
    "sets of anything": (set[Any], [n * MODULUS for n in MANY]),
}


def codec_for(kind: Any) -> Codec[Any]:
    made = made_of(kind)
    return Codec(event("made.it", version=2, oldest=2)(made))


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("version", [2, 3])
def test_keys_that_are_chosen_to_collide_are_a_decode_error(flood: str, version: int) -> None:
    kind, value = FLOODS[flood]
    codec = codec_for(kind)

    with pytest.raises(DecodeError, match=r"made\.it: [\d,]+ of its values have one hash"):
        codec.decode(msgspec.json.encode({"value": value}), version)
    with pytest.raises(DecodeError, match="one hash"):
        codec.structure({"value": value}, version)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (set[int], list(range(-5_000, 5_000))),
        (set[int], [n << 40 for n in range(-5_000, 5_000)]),
        (list[int], [7] * 10_000),
        (set[UUID], [str(UUID(int=n << 64 | n)) for n in MANY]),
        (set[Decimal], [f"{n}.50" for n in MANY]),
        (set[Decimal], ["1.0", "1.00", "1"] * 3_000),
        (dict[int, list[str]], {str(n): ["same", "same"] for n in MANY}),
        (set[str], ["a" * n for n in range(300)]),
        (list[Point], [{"x": 1, "y": 1}] * 2_000),
        (list[set[int]], [[n] for n in MANY]),
    ],
    ids=range(10),
)
def test_what_people_send_is_read_however_much_it_is(kind: Any, value: Any) -> None:
    codec = codec_for(kind)

    read = codec.decode(msgspec.json.encode({"value": value}), 2)

    assert codec.decode(codec.encode(read), 2) == read


def test_looking_for_them_takes_no_longer_than_the_document_is() -> None:
    nested: Any = [0] * 70
    for _ in range(300):
        nested = [nested, *range(70)]
    codec = codec_for(set[int] | None)
    began = process_time()

    read = codec.decode(msgspec.json.encode({"value": None, "unknown": [nested] * 3}), 2)

    assert read.value is None
    assert process_time() - began < 3  # 0.1 s; looked at again at each depth, it takes 10 s

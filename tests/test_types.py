"""The law of types: a class that is accepted can be read back as what was written, and every other one is refused."""

import dataclasses
import functools
import logging
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from hypothesis import given, settings
from pydantic.alias_generators import to_camel
from typing_extensions import TypeAliasType

from rabbitevents.errors import ConfigurationError, DecodeError, EncodeError
from rabbitevents.events import event
from rabbitevents.payload.codec import Codec
from rabbitevents.payload.own import wire_type
from tests.grammar import CALM, Color, Page, law, written

T = TypeVar("T")


def holding(kind: Any, **options: Any) -> Any:
    """Return an event class with one field, ``value``, of ``kind``."""
    return event("was.held", **options)(attrs.make_class("Holding", {"value": attrs.field(type=kind)}, frozen=True))


def codec_of(payload: object) -> Codec[Any]:
    """Return the codec of a payload's class."""
    cls: Any = type(payload)
    return Codec(cls)


def there_and_back(payload: Any) -> Any:
    """Return what a consumer gets of a payload that is published."""
    codec = codec_of(payload)
    return codec.decode(codec.encode_checked(payload), 1)


def refusal(cls: type) -> str:
    """Return what is said when a class is bound that cannot travel."""
    with pytest.raises(ConfigurationError) as refused:
        Codec[Any](cls)
    return str(refused.value)


def unpublished(payload: Any) -> str:
    """Return what is said when a payload is published that nobody could read."""
    with pytest.raises(EncodeError) as refused:
        codec_of(payload).encode_checked(payload)
    return str(refused.value)


@settings(max_examples=600, deadline=None, suppress_health_check=CALM, print_blob=True)
@given(written())
def test_what_is_accepted_comes_back_as_it_went_and_the_rest_is_refused_at_start(drawn: tuple[type, Any, bool]) -> None:
    law(*drawn)


# --- classes -----------------------------------------------------------------------------------------------------------


def test_a_cached_property_stays_at_home() -> None:
    @event("card.paid")
    @attrs.frozen
    class Paid:
        token: str

        @functools.cached_property
        def number(self) -> str:
            return "4111 1111 1111 1111"

    paid = Paid("t")

    assert paid.number
    assert Codec(Paid).encode(paid) == b'{"token":"t"}'


def test_what_an_instance_was_given_besides_its_fields_stays_at_home() -> None:
    @event("card.paid")
    @attrs.define(slots=False)
    class Paid:
        token: str

    paid = Paid("t")
    paid.secret = "4111"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]

    assert Codec(Paid).encode(paid) == b'{"token":"t"}'


def test_an_init_of_its_own_is_called() -> None:
    @event("was.counted")
    @dataclasses.dataclass
    class Counted:
        number: int

        def __init__(self, number: int) -> None:
            self.number = abs(number)

    assert Codec(Counted).decode(b'{"number": -3}', 1) == Counted(3)
    assert there_and_back(Counted(3)) == Counted(3)


def test_an_init_that_does_not_take_the_fields_is_refused_at_start() -> None:
    @event("was.counted")
    @dataclasses.dataclass
    class Counted:
        number: int

        def __init__(self, text: str) -> None:
            self.number = int(text)

    assert "__init__ of its own, which does not take its fields" in refusal(Counted)


def test_a_converter_that_changes_what_it_made_is_found_when_it_is_published() -> None:
    made = attrs.make_class("Doubled", {"value": attrs.field(type=int, converter=lambda number: number * 2)})

    assert "`$.value` does not come back as it went" in unpublished(event("was.doubled")(made)(1))


def test_a_type_variable_stands_for_what_the_base_was_given() -> None:
    @attrs.frozen
    class Item:
        number: int

    @event("items.listed")
    @attrs.frozen
    class Listed(Page[Item]):
        total: int = attrs.field(default=0, converter=int)

    assert there_and_back(Listed([Item(1)], Item(2), 3)) == Listed([Item(1)], Item(2), 3)


@pytest.mark.parametrize("kind", [Page, list[Page[Any]] | Page[T]], ids=str)  # type: ignore[valid-type]
def test_a_type_variable_that_stands_for_nothing_is_refused(kind: Any) -> None:
    assert "nothing says what ~T stands for: write the class with its types, as in Page[Item]" in refusal(holding(kind))


@attrs.frozen
class Base:
    name: str


@attrs.frozen
class Derived(Base):
    more: int


class Undecorated(Base):
    more: int = 0


@dataclasses.dataclass
class UndecoratedData(dataclasses.make_dataclass("Made", [("name", str)])):  # type: ignore[misc]
    def __init_subclass__(cls) -> None: ...


def test_a_subclass_without_a_decorator_is_refused_with_the_way_out() -> None:
    class Bare(UndecoratedData):
        more: int

    assert "Undecorated has the fields of the class that it inherits from" in refusal(holding(Undecorated))
    assert "put @attrs.frozen above it" in refusal(holding(Undecorated))
    assert "put @dataclass above it" in refusal(holding(Bare))


def test_a_subclass_in_a_field_of_its_base_is_not_cut_off_in_silence() -> None:
    for value, kind in (
        (Derived("a", 1), Base),
        ([Derived("a", 1)], list[Base]),
        ({"x": Derived("a", 1)}, dict[str, Base]),
    ):
        said = unpublished(holding(kind)(value))

        assert "a subclass with more fields" in said
        assert "`$.value" in said


def test_nor_where_the_class_does_not_compare_that_field() -> None:
    @event("was.held")
    @attrs.frozen
    class Lax:
        value: Base = attrs.field(eq=False)

    assert "a subclass with more fields" in unpublished(Lax(Derived("a", 1)))
    assert there_and_back(Lax(Base("a"))).value == Base("a")


def test_a_field_without_an_annotation_is_refused() -> None:
    made = event("was.made")(attrs.make_class("Made", ["number"]))

    assert "Made.number: the field has no annotation that says its type" in refusal(made)


def test_two_fields_of_one_name_are_refused() -> None:
    @event("was.made", rename="camel")
    @attrs.frozen
    class Made:
        order_id: str
        orderId: str  # noqa: N815

    assert "two fields of Made are named 'orderId' in the document" in refusal(Made)


# --- unions ------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Card:
    number: str


@attrs.frozen
class Cash:
    amount: int


class Place(NamedTuple):
    x: int
    y: int = 0


class Keys(TypedDict, total=False):
    a: int


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Card | dict[str, Any], "dict[str, typing.Any] is an object too, as Card: make it a class of its own"),
        (Card | Cash | Keys, "Keys is an object too"),
        (datetime | str, "datetime and str are both written as text"),
        (list[int] | Place, "list[int] and Place are both written as an array"),
        (set[str] | list[Card], "are both written as an array"),
        (Color | str, "are both written as text"),
        (Literal["a"] | str, "are both written as text"),
        (Any | Card, "Any is an object too"),
        (Decimal | str | None, "are both written as text"),
        (Page[int] | Page[str], "two classes of a union have the same name, Page, by which they are told apart"),
    ],
    ids=str,
)
def test_a_union_that_no_reader_could_tell_apart_is_refused(kind: Any, why: str) -> None:
    said = refusal(holding(kind))

    assert "Holding.value" in said or "same name" in said
    assert why in said


DIFFERING: list[tuple[Any, list[Any]]] = [
    (Card | Cash | list[Card | Cash], [Card("1"), Cash(1), [Card("1"), Cash(2)], []]),
    (Card | list[Card] | str | int | None, [Card("1"), [Card("1")], "Card", 1, None]),
    (int | float | bool, [1, 1.0, True, 2**53]),
    (int | list[Cash | Card] | Color, [1, [Cash(1)], Color.RED]),
    (dict[str, Card | Cash] | list[Card] | None, [{"a": Cash(1)}, [Card("1")], None]),
    (Literal["a"] | Literal[1] | None, ["a", 1, None]),
    (Annotated[Card, "a card"] | Cash, [Card("1"), Cash(1)]),
    (Annotated[Card, msgspec.Meta(title="a card")] | Cash, [Card("1"), Cash(1)]),
    (Place | Card, [Place(1), Card("1")]),
    (Keys | list[Keys], [{"a": 1}, [{}]]),
]


@pytest.mark.parametrize(("kind", "values"), DIFFERING, ids=str)
def test_a_union_whose_members_differ_comes_back_as_it_went(kind: Any, values: list[Any]) -> None:
    cls = holding(kind)

    for value in values:
        again = there_and_back(cls(value)).value

        assert again == value
        assert type(again) is type(value)


Numbers = TypeAliasType("Numbers", list[int])
Pair = TypeAliasType("Pair", tuple[T, T | None], type_params=(T,))


@pytest.mark.parametrize(
    ("kind", "value"),
    [(Numbers, [1]), (Numbers | None, None), (dict[str, Numbers], {"a": [1]}), (Pair[Card], (Card("1"), None))],
    ids=str,
)
def test_an_alias_stands_for_what_it_names(kind: Any, value: Any) -> None:
    assert there_and_back(holding(kind)(value)).value == value


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is Python 3.12's")
def test_generic_classes_and_aliases_may_be_written_in_the_short_way() -> None:
    names: dict[str, Any] = {"attrs": attrs, "event": event, "Card": Card}
    exec(
        "type Many[T] = list[T]\n"
        "@attrs.frozen\nclass Short[T]:\n    items: Many[T]\n"
        "@event('was.short')\n@attrs.frozen\nclass Cards(Short[Card]):\n    pass\n",
        names,
    )

    assert there_and_back(names["Cards"]([Card("1")])).items == [Card("1")]


def test_a_union_of_literals_is_one_literal() -> None:
    cls = holding(Literal["a"] | Literal["b"])

    assert there_and_back(cls("b")).value == "b"


# --- times, numbers, texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1930, 1, 1, tzinfo=ZoneInfo("Europe/Amsterdam")),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Amsterdam")),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(seconds=-1))),
        datetime(2026, 1, 1, 0, 0, 0, 1, UTC),
        datetime(2026, 1, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [datetime, list[datetime], datetime | int, dict[str, datetime | None]], ids=str)
def test_a_moment_stays_the_same_moment_whatever_its_zone(moment: datetime, kind: Any) -> None:
    wrapped: Any = (
        [moment] if kind == list[datetime] else {"a": moment} if kind == dict[str, datetime | None] else moment
    )

    again = there_and_back(holding(kind)(wrapped)).value

    unwrapped: datetime = again[0] if kind == list[datetime] else again["a"] if isinstance(wrapped, dict) else again
    assert (unwrapped.tzinfo is None) == (moment.tzinfo is None)
    assert (unwrapped.astimezone(UTC) if moment.tzinfo else unwrapped) == (
        moment.astimezone(UTC) if moment.tzinfo else moment
    )


@pytest.mark.parametrize(
    ("kind", "value", "place"),
    [
        (int, "seven", "$.value"),
        (list[int], [1, "seven"], "$.value[1]"),
        (float, float("nan"), "$.value"),
        (float | None, float("nan"), "$.value"),
        (float, 2**63 + 1, "$.value"),
        (str, Decimal(1), "$.value"),
        (Any, datetime(2026, 1, 1), "$.value"),
        (Any, {"a": {1: "a"}}, "$.value[...]"),
        (Any, {1, 2}, "$.value"),
        (Annotated[int, msgspec.Meta(ge=0)], -1, "$.value"),
        (Keys, {"a": 1, "b": 2}, "$.value"),
    ],
    ids=str,
)
def test_a_value_that_no_consumer_could_read_is_refused_with_its_place(kind: Any, value: Any, place: str) -> None:
    said = unpublished(holding(kind)(value))

    assert "Holding is not published" in said
    assert f"`{place}`" in said
    assert "seven" not in said


def test_a_list_may_stand_for_a_tuple() -> None:
    assert there_and_back(holding(tuple[int, ...])([1, 2])).value == (1, 2)


# --- types of one's own --------------------------------------------------------------------------------------------------


class Weight:
    def __init__(self, grams: int) -> None:
        self.grams = grams

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weight) and other.grams == self.grams


def _weight(value: Any) -> Weight:
    if not isinstance(value, str) or not value.endswith(" g"):
        raise ValueError(f"{value} is no weight")
    return Weight(int(value[:-2]))


wire_type(Weight, write=lambda weight: f"{weight.grams} g", read=_weight)


@pytest.mark.parametrize(
    "kind", [Weight, Weight | None, list[Weight], dict[str, Weight], tuple[int, Weight], Page[Weight]], ids=str
)
def test_a_type_of_ones_own_travels_wherever_it_stands(kind: Any) -> None:
    weight = Weight(5)
    makers: dict[str, Any] = {"list": [weight], "dict": {"a": weight}, "tuple": (1, weight), "Page": Page([weight])}
    value = makers.get(getattr(kind, "__name__", ""), weight)

    payload = holding(kind)(value)

    assert b'"5 g"' in codec_of(payload).encode(payload)
    assert there_and_back(payload).value == value


def test_what_is_no_such_type_is_a_decode_error_that_shows_no_value() -> None:
    with pytest.raises(DecodeError, match=r"ValueError - at `\$\.value`$"):
        Codec(holding(Weight)).decode(b'{"value": "4111"}', 1)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (lambda: wire_type(Weight, write=str, read=_weight), "has a way of its own already"),
        (lambda: wire_type(Weight(1), write=str, read=_weight), "takes the class itself"),  # type: ignore[arg-type]  # pyright: ignore
        (lambda: wire_type(int, write=str, read=int), "in one way, or not at all; make a class of your own"),
        (lambda: wire_type(complex, write=str, read=complex), "in one way, or not at all; make a class of your own"),
        (lambda: wire_type(Card, write=None, read=_weight), "give a function"),  # type: ignore[arg-type]  # pyright: ignore
    ],
)
def test_a_wire_type_that_cannot_be_meant_is_refused(told: Callable[[], None], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        told()


def test_a_subclass_of_a_type_of_ones_own_is_not_cut_off_in_silence() -> None:
    @event("was.weighed")
    @attrs.frozen
    class Weighed:
        weight: Weight

    class Marked(Weight):
        mark = "fragile"

    assert "`$.weight`" in unpublished(Weighed(Marked(5)))
    assert codec_of(Weighed(Weight(5))).encode_checked(Weighed(Weight(5))) == b'{"weight":"5 g"}'


def test_an_event_with_a_wire_type_is_refused_as_that() -> None:
    @attrs.frozen
    class Doubled:
        number: int

    wire_type(Doubled, write=lambda doubled: doubled.number, read=lambda number: Doubled(number))

    assert "Doubled is an event, and has a wire_type() too" in refusal(event("was.doubled")(Doubled))


def test_a_class_that_nobody_knows_is_refused_with_the_way_out() -> None:
    class Opaque:
        pass

    said = refusal(holding(list[Opaque]))

    assert said == (
        "Holding cannot be carried as JSON: Holding.value[]: Opaque is nothing that JSON can say: make it an attrs class or a "
        "dataclass, or say wire_type(Opaque, write=..., read=...)"
    )


@pytest.mark.parametrize(("kind", "way_out"), [(complex, "make it an attrs class"), (object, "say Any")])
def test_what_python_has_built_in_is_refused_with_a_way_out_that_is_open(kind: type, way_out: str) -> None:
    said = refusal(holding(kind))

    assert f"{kind.__name__} is nothing that JSON can say" in said
    assert way_out in said
    assert "wire_type" not in said


# --- names on the wire -----------------------------------------------------------------------------------------------------


@attrs.frozen
class LineItem:
    unit_price: Decimal


@event("cart.filled", rename="camel")
@attrs.frozen
class CartFilled:
    cart_id: str
    line_items: list[LineItem]
    _internal_note: str = ""


def test_camel_case_names_the_fields_and_those_of_the_classes_in_them() -> None:
    cart = CartFilled("c", [LineItem(Decimal(1))])

    body = Codec(CartFilled).encode(cart)

    assert body == b'{"cartId":"c","lineItems":[{"unitPrice":"1"}],"_internalNote":""}'
    assert there_and_back(cart) == cart


def test_a_mapping_names_single_fields_and_a_reader_names_them_in_its_errors() -> None:
    cls = holding(int, rename={"value": "Wert"})

    assert Codec(cls).encode(cls(1)) == b'{"Wert":1}'
    with pytest.raises(DecodeError, match=r"Expected `int`, got `str` - at `\$\.Wert`"):
        Codec(cls).decode(b'{"Wert": "1"}', 1)
    with pytest.raises(DecodeError, match="Object missing required field `Wert`"):
        Codec(cls).decode(b'{"value": 1}', 1)


@pytest.mark.parametrize(
    ("rename", "why"),
    [
        ("camelCase", "rename='camelCase' is no way of naming: say 'camel', 'pascal', 'kebab', or a mapping"),
        ({"valeu": "Wert"}, "Holding has no field 'valeu' to rename; it has value"),
        (str.upper, "is no way of naming"),
    ],
)
def test_a_rename_that_means_nothing_is_refused_above_the_class(rename: Any, why: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        holding(int, rename=rename)

    assert why in str(refused.value)


# --- pydantic --------------------------------------------------------------------------------------------------------------


class Line(pydantic.BaseModel):
    sku: str
    pieces: int = pydantic.Field(ge=1)


class ByCard(pydantic.BaseModel):
    kind: Literal["card"] = "card"
    number: str


class ByCash(pydantic.BaseModel):
    kind: Literal["cash"] = "cash"
    amount: Decimal


@event("order.priced", entity="order", key="order_id")
class OrderPriced(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=to_camel, populate_by_name=True)

    order_id: str
    lines: list[Line]
    paid_by: Annotated[ByCard | ByCash, pydantic.Field(discriminator="kind")]
    at: datetime
    total: Decimal | None = None
    tags: set[str] = set()


PRICED = OrderPriced(
    order_id="o-1",
    lines=[Line(sku="s", pieces=2)],
    paid_by=ByCash(amount=Decimal("1.50")),
    at=datetime(2026, 1, 1, tzinfo=UTC),
)


def test_a_model_travels_by_its_aliases() -> None:
    body = Codec(OrderPriced).encode(PRICED)

    assert b'"orderId":"o-1"' in body
    assert b'"paidBy":{"kind":"cash","amount":"1.50"}' in body
    assert there_and_back(PRICED) == PRICED


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("orderId", 1),
        ("orderId", None),
        ("lines", {}),
        ("lines", [{"sku": "s", "pieces": "2"}]),
        ("lines", [{"sku": "s", "pieces": True}]),
        ("lines", [{"sku": "s", "pieces": 0}]),
        ("lines", [{"sku": "s", "pieces": 1.5}]),
        ("paidBy", {"kind": "cheque"}),
        ("paidBy", {"number": "1"}),
        ("at", 1_700_000_000),
        ("at", "yesterday"),
        ("total", True),
        ("tags", "abc"),
    ],
)
def test_a_model_is_read_as_strictly_as_any_class(field: str, wrong: Any) -> None:
    document = {**msgspec.json.decode(Codec(OrderPriced).encode(PRICED)), field: wrong}

    with pytest.raises(DecodeError, match=r"order\.priced version 1 does not fit its class"):
        Codec(OrderPriced).decode(msgspec.json.encode(document), 1)
    with pytest.raises(DecodeError):
        Codec(OrderPriced).structure(document, 1)


def test_the_error_of_a_model_names_the_place_and_no_value() -> None:
    document = {**msgspec.json.decode(Codec(OrderPriced).encode(PRICED)), "lines": [{"sku": "s", "pieces": "4111"}]}

    with pytest.raises(DecodeError) as refused:
        Codec(OrderPriced).decode(msgspec.json.encode(document), 1)

    assert "4111" not in str(refused.value)
    assert "`$.lines[0].pieces`" in str(refused.value)


def test_a_newer_version_of_a_model_with_one_field_more_is_read() -> None:
    document = {**msgspec.json.decode(Codec(OrderPriced).encode(PRICED)), "channel": "web"}

    assert Codec(OrderPriced).decode(msgspec.json.encode(document), 2) == PRICED


def test_a_model_in_an_attrs_class_and_in_a_union_travels_too() -> None:
    cls = holding(Line | Card | list[Line])

    for value in (Line(sku="s", pieces=1), Card("1"), [Line(sku="s", pieces=2)]):
        assert there_and_back(cls(value)).value == value
    assert Codec(cls).encode(cls(Line(sku="s", pieces=1))) == b'{"value":{"_type":"Line","sku":"s","pieces":1}}'


def test_a_model_that_keeps_or_forbids_what_it_does_not_know_is_not_disturbed_by_the_tag() -> None:
    class Strict(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        number: int

    class Loose(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        number: int

    cls = holding(Strict | Loose)

    for value in (Strict(number=1), Loose(number=2)):
        assert there_and_back(cls(value)).value == value


def test_a_model_that_forbids_extra_fields_is_warned_of_at_start(caplog: pytest.LogCaptureFixture) -> None:
    @event("was.closed")
    class Closed(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        number: int

    with caplog.at_level(logging.WARNING):
        Codec(Closed)

    assert "Closed forbids extra fields: events of a newer version" in caplog.text


class Sealed:
    pass


def _models() -> list[tuple[type, str]]:
    class Differing(pydantic.BaseModel):
        number: int = pydantic.Field(serialization_alias="Number")

    class Hidden(pydantic.BaseModel):
        number: int = pydantic.Field(exclude=True)

    class Undiscriminated(pydantic.BaseModel):
        paid_by: ByCard | ByCash

    class Arbitrary(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        sealed: Sealed

    class Root(pydantic.RootModel[list[int]]):
        pass

    names: Any = {"__module__": __name__, "__annotations__": {"place": "Nowhere"}}
    unresolved = type("Unresolved", (pydantic.BaseModel,), names)

    return [
        (Differing, "Differing.number is written as 'Number', and not read under that name"),
        (Hidden, "Hidden.number is required, and exclude=True keeps it from being written"),
        (Undiscriminated, "give it Field(discriminator=...)"),
        (Arbitrary, "has a field of Sealed, which pydantic cannot read from JSON"),
        (Root, "Root is a RootModel: an event is an object, so give it a field"),
        (unresolved, "Unresolved has annotations that pydantic cannot resolve"),
    ]


@pytest.mark.parametrize(("model", "why"), _models(), ids=lambda each: getattr(each, "__name__", ""))
def test_a_model_that_would_not_come_back_as_it_went_is_refused(model: type, why: str) -> None:
    assert why in refusal(event("was.modelled")(model))


@pytest.mark.parametrize("rename", ["camel", {"sku": "SKU"}, {}])
def test_a_model_names_its_fields_itself(rename: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"ConfigDict\(alias_generator=...\) or Field\(alias=...\)"):
        event("was.modelled", rename=rename)(type("Named", (Line,), {}))


def test_a_model_with_a_value_of_another_type_is_not_published_and_no_warning_shows_the_value() -> None:
    @attrs.frozen
    class Box:
        line: Line

    event("was.boxed")(Box)
    lined: Any = event("was.lined")(type("Lined", (Line,), {"__module__": __name__}))
    wrong: dict[str, Any] = {"sku": 4111, "pieces": 1}

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        said = unpublished(lined.model_construct(**wrong)), unpublished(Box(Line.model_construct(**wrong)))

    assert [str(each.message) for each in shown] == []
    assert all("string_type (pydantic)" in each and "4111" not in each for each in said)


def test_nan_in_a_model_is_refused() -> None:
    @event("was.measured")
    class Measured(pydantic.BaseModel):
        value: float | None

    with pytest.raises(EncodeError):
        Codec(Measured).encode(Measured(value=float("nan")))
    assert "`$.value`" in unpublished(Measured(value=float("nan")))


def test_a_subclass_of_a_model_in_a_field_of_its_base_is_not_cut_off_in_silence() -> None:
    class Derived(Line):
        more: int

    @event("was.lined")
    class Lined(pydantic.BaseModel):
        line: Line

    unpublished(Lined(line=Derived(sku="s", pieces=1, more=2)))


def test_generic_bases_of_pydantic_and_dataclasses_come_back_too() -> None:
    class Batch(pydantic.BaseModel, Generic[T]):
        items: list[T]

    @event("batch.made")
    class Lines(Batch[Line]):
        pass

    lines = Lines(items=[Line(sku="s", pieces=1)])

    assert there_and_back(lines) == lines


@pydantic.dataclasses.dataclass(frozen=True)
class Checked:
    number: Annotated[int, pydantic.Field(ge=0)]


@attrs.define
class TroubleError(Exception):
    code: int


@pytest.mark.parametrize("value", [Checked(1), TroubleError(2)], ids=["a pydantic dataclass", "an exception"])
def test_what_else_has_fields_comes_back_too(value: Any) -> None:
    cls = holding(value.__class__)

    again = there_and_back(cls(value)).value

    assert type(again) is type(value)
    assert attrs.asdict(again) == attrs.asdict(value) if isinstance(value, TroubleError) else again == value


class WeirdError(Exception):
    """An error of nobody's kind."""


def test_whatever_a_type_of_ones_own_raises_is_our_error() -> None:
    class Odd:
        pass

    def odd(_: object) -> Any:
        raise WeirdError("4111")

    wire_type(Odd, write=odd, read=odd)
    cls = holding(Odd)

    with pytest.raises(EncodeError, match="Holding cannot be written as JSON: WeirdError"):
        Codec(cls).encode(cls(Odd()))
    with pytest.raises(DecodeError, match=r"WeirdError - at `\$\.value`"):
        Codec(cls).decode(b'{"value": 1}', 1)


def test_a_model_s_union_of_types_that_look_alike_is_refused_as_any_other() -> None:
    @event("was.dated")
    class Dated(pydantic.BaseModel):
        at: datetime | str

    @event("was.counted")
    class Counted(pydantic.BaseModel):
        number: int | float | str | None

    assert "Dated has a union of types that are both written as text" in refusal(Dated)
    assert there_and_back(Counted(number=1.5)) == Counted(number=1.5)


def test_what_a_model_excludes_stays_at_home() -> None:
    @event("was.noted")
    class Noted(pydantic.BaseModel):
        number: int
        note: str = pydantic.Field(default="", exclude=True)

    again = there_and_back(Noted(number=1, note="for us alone"))

    assert (again.number, again.note) == (1, "")


@pytest.mark.parametrize("kind", [Any, Color.__base__])
def test_what_stands_for_anything_has_no_way_of_its_own(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="travels in one way, or not at all"):
        wire_type(kind, write=str, read=str)

"""What `@event` and `@upcast` say of a class, and what they say when they are written wrong."""

import dataclasses
import re
from typing import Any
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitevents import ConfigurationError, event, upcast
from rabbitevents.events import Document, EventType, event_type, is_event


@event("order.placed", version=2, entity="order", key="order_id")
@attrs.frozen
class OrderPlaced:
    order_id: str
    note: str = ""


@event("stock.counted")
@dataclasses.dataclass(frozen=True, slots=True)
class StockCounted:
    number: int


# --- what a mark says ------------------------------------------------------------------------------------------------


def test_a_mark_on_an_attrs_class_is_stored_on_the_class() -> None:
    spec = event_type(OrderPlaced)

    assert (spec.name, spec.version, spec.entity, spec.key, spec.oldest) == ("order.placed", 2, "order", "order_id", 1)
    assert is_event(OrderPlaced)


def test_a_mark_on_a_dataclass_is_stored_on_the_class() -> None:
    assert event_type(StockCounted) == EventType("stock.counted", 1, None, None, 1, {})


def test_a_mark_returns_the_class_itself() -> None:
    @attrs.frozen
    class Happened:
        pass

    assert event("it.happened")(Happened) is Happened
    assert Happened() == Happened()


@pytest.mark.parametrize("define", [attrs.define, attrs.frozen, attrs.define(slots=False), attrs.mutable])
def test_every_kind_of_attrs_class_can_be_an_event(define: Any) -> None:
    class Happened:
        pass

    assert is_event(event("it.happened")(define(Happened)))


def test_an_entity_s_id_is_the_key_s_value_as_text() -> None:
    @event("it.happened", key="id")
    @attrs.frozen
    class Happened:
        id: UUID | int | None

    spec = event_type(Happened)

    assert spec.entity_id(Happened(UUID(int=5))) == "00000000-0000-0000-0000-000000000005"
    assert spec.entity_id(Happened(5)) == "5"
    assert spec.entity_id(Happened(0)) == "0"


def test_an_entity_that_is_not_there_has_no_id() -> None:
    @event("it.happened", entity="thing", key="id")
    @attrs.frozen
    class Happened:
        id: int | None

    assert event_type(Happened).entity_id(Happened(None)) is None
    assert event_type(StockCounted).entity_id(StockCounted(5)) is None


def test_a_subclass_needs_a_mark_of_its_own() -> None:
    @attrs.frozen
    class OrderPlacedTwice(OrderPlaced):
        pass

    assert not is_event(OrderPlacedTwice)
    with pytest.raises(ConfigurationError, match=r"OrderPlacedTwice is no event: put @event"):
        event_type(OrderPlacedTwice)
    assert event_type(event("order.placed.twice")(OrderPlacedTwice)).name == "order.placed.twice"
    assert event_type(OrderPlaced).name == "order.placed"


@pytest.mark.parametrize("thing", [None, 5, "order.placed", OrderPlaced("o"), int, dict[str, int], OrderPlaced | int])
def test_what_is_no_marked_class_is_no_event(thing: object) -> None:
    assert not is_event(thing)


# --- names -----------------------------------------------------------------------------------------------------------

words = st.text(st.characters(categories=["L", "N"], include_characters="-_"), min_size=1, max_size=20)


@given(st.lists(words, min_size=1, max_size=5).map(".".join).filter(lambda name: len(name.encode()) <= 255))
def test_words_with_single_dots_between_them_are_a_name(name: str) -> None:
    assert event_type(event(name)(attrs.make_class("Happened", []))).name == name


@pytest.mark.parametrize(
    "name",
    [
        ".",
        ".order",
        "order.",
        "order..placed",
        "order.*",
        "#",
        "order.pl*ced",
        "order placed",
        " order",
        "order.placed ",
        "order.\tplaced",
        "order.placed\n",
        "order.\u00a0placed",
    ],
)
def test_a_name_that_is_no_routing_key_is_refused_and_shown(name: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(repr(name))):
        event(name)


def test_a_name_longer_than_a_routing_key_is_refused() -> None:
    event("é" * 127)

    with pytest.raises(ConfigurationError, match=r"256 bytes long; a routing key has at most 255"):
        event("é" * 128)


def test_a_missing_name_is_refused_with_an_example() -> None:
    with pytest.raises(ConfigurationError, match=r"order\.placed"):
        event("")


def test_a_mark_without_parentheses_is_refused_with_an_example() -> None:
    bare: Any = event

    with pytest.raises(ConfigurationError, match=r'write @event\("order\.placed"\) above the class'):

        @bare
        @attrs.frozen
        class Happened:  # pyright: ignore[reportUnusedClass]
            pass


# --- classes ---------------------------------------------------------------------------------------------------------


def test_decorators_in_the_wrong_order_are_refused_with_the_right_one() -> None:
    with pytest.raises(ConfigurationError, match=r"Happened is neither.*put @event\(\.\.\.\) above @attrs\.frozen"):

        @attrs.frozen
        @event("it.happened")
        class Happened:  # pyright: ignore[reportUnusedClass]
            number: int


@pytest.mark.parametrize("cls", [int, dict, type("Plain", (), {})])
def test_a_class_that_is_neither_attrs_nor_a_dataclass_is_refused_by_name(cls: type) -> None:
    with pytest.raises(ConfigurationError, match=f"{cls.__name__} is neither"):
        event("it.happened")(cls)


def test_a_key_that_is_no_field_is_refused_with_the_fields_there_are() -> None:
    @attrs.frozen
    class Happened:
        id: int
        number: int

    with pytest.raises(ConfigurationError, match=r"Happened has no field 'order_id'.*it has id, number"):
        event("it.happened", key="order_id")(Happened)


@pytest.mark.parametrize(("version", "oldest"), [(0, 1), (-1, 1), (1, 0), (1, 2), (3, 4), (0, 0)])
def test_versions_that_make_no_sense_are_refused(version: int, oldest: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"'it\.happened'.*oldest={oldest}.*version={version}"):
        event("it.happened", version=version, oldest=oldest)


# --- upcasters -------------------------------------------------------------------------------------------------------


def same(document: Document) -> Document:
    return document


def test_a_step_returns_the_function_itself() -> None:
    @event("it.happened", version=2)
    @attrs.frozen
    class Happened:
        pass

    assert upcast(Happened, from_version=1)(same) is same


@pytest.mark.parametrize("from_version", [0, 2, 5, -1])
def test_a_step_that_leads_nowhere_is_refused_with_the_versions_there_are(from_version: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"OrderPlaced understands versions 1 to 2.*version {from_version}"):
        upcast(OrderPlaced, from_version=from_version)


def test_a_second_step_from_the_same_version_is_refused() -> None:
    @event("it.happened", version=2)
    @attrs.frozen
    class Happened:
        pass

    upcast(Happened, from_version=1)(same)

    with pytest.raises(ConfigurationError, match="Happened has a step from version 1 already"):
        upcast(Happened, from_version=1)


def test_a_step_for_a_class_without_a_mark_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"int is no event: put @event"):
        upcast(int, from_version=1)

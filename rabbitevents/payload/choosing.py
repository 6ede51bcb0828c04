"""Unions: which members a reader can tell apart, by what a document is (a text, an array ...) or by a tag."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from rabbitevents.payload.hints import plainly
from rabbitevents.payload.shapes import TAG, Choice, Form, Opaque, Record, Shape, is_class


def choice_of(kind: Any, members: list[Shape]) -> tuple[str, Choice | None]:
    """Return a union of ``members``; or why nobody could tell them apart, and None."""
    forms = frozenset[Form]().union(*(shape.forms for shape in members))
    choice = Choice(kind, forms, False, tuple(members))
    problem = _alike(kind, choice)
    if problem:
        return problem, None
    choice.direct = len(choice.classes) < 2 and _can_be_told(kind)
    return "", choice


def _alike(kind: Any, choice: Choice) -> str:
    """Say which members have one form, so that a document does not tell which of them it is."""
    classes = choice.classes
    for form, shapes in choice.by_form.items():
        if form == "object" and classes:
            return _untold(
                choice,
                f"{_names(shapes)} is an object too, as {_names(list(classes.values()))}: make it a class of its own",
            )
        if len(shapes) > 1 and not (form == "number" and _are_numbers(shapes)) and not _are_told_structs(kind, shapes):
            return _untold(choice, f"{_names(shapes)} are both written as {_FORMS[form]}: make each a class of its own")
    return ""


_FORMS: dict[Form, str] = {
    "null": "null",
    "truth": "true or false",
    "number": "a number",
    "text": "text",
    "array": "an array",
    "object": "an object",
}


def _untold(choice: Choice, why: str) -> str:
    members = " | ".join(map(_name, choice.members))
    return f"nothing in a document tells the members of {members} apart: {why}"


def _names(shapes: list[Shape]) -> str:
    return " and ".join(map(_name, shapes))


def _name(shape: Shape) -> str:
    kind, _ = plainly(shape.kind)
    return "None" if kind in (None, type(None)) else kind.__name__ if isinstance(kind, type) else str(kind)


def _are_numbers(shapes: list[Shape]) -> bool:
    """Say whether they are int and float: a float is written with a point."""
    return {plainly(shape.kind)[0] for shape in shapes} == {int, float}


def _are_told_structs(kind: Any, shapes: list[Shape]) -> bool:
    """Say whether they are Structs that msgspec tells apart by tags of their own."""
    return all(isinstance(shape, Record) and shape.cls is None for shape in shapes) and _can_be_told(kind)


def _can_be_told(kind: Any) -> bool:
    """Say whether msgspec reads a union."""
    try:
        msgspec.json.Decoder(kind)
    except (TypeError, NotImplementedError, NameError):
        return False
    return True


def tag_problem(choice: Choice) -> str:
    """Say why classes are not told apart by their tags; nothing where they are."""
    classes = [shape for shape in choice.members if is_class(shape)]
    if len(classes) < 2:
        return ""
    names = [shape.cls.__name__ for shape in classes]
    if len(set(names)) < len(names):
        return f"two classes of a union have the same name, {names[0]}, by which they are told apart: rename one"
    for shape in classes:
        if TAG in _field_names(shape):
            return f"{_names([shape])} has a field {TAG!r}, where the tag of a union goes: rename it"
    return ""


def _field_names(shape: Record | Opaque) -> Iterable[str]:
    """Return the names of a class's fields in a document."""
    return [field.name for field in shape.fields] if isinstance(shape, Record) else shape.names


def form_of(value: Any) -> Form:
    """Return what a value of a document is."""
    return _FORM_OF[type(value)]


_FORM_OF: dict[type, Form] = {
    type(None): "null",
    bool: "truth",
    int: "number",
    float: "number",
    str: "text",
    list: "array",
    dict: "object",
}

"""What writes a class that msgspec cannot: cattrs, and a tag for each class of a union."""

from __future__ import annotations

import collections.abc
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import cattrs

from rabbitevents.payload.kinds import TAG, is_class, is_union, walked_members


def writing_converter() -> cattrs.Converter:
    """Return what makes plain values of classes, those of unions tagged."""
    converter = cattrs.Converter(unstruct_collection_overrides={collections.abc.Set: list})
    converter.register_unstructure_hook_factory(_is_ours_to_write, partial(_tagging_hook, converter))
    return converter


def _is_ours_to_write(kind: Any) -> bool:
    """Say whether a union has classes to tell apart, or a member that has (which cattrs would write by what is there)."""
    return is_union(kind) and (sum(map(is_class, get_args(kind))) > 1 or bool(walked_members(kind)))


def _tagging_hook(converter: cattrs.Converter, kind: Any) -> Callable[[Any], Any]:
    classes = {cls for cls in get_args(kind) if is_class(cls)}
    walked = walked_members(kind)
    write_walked = converter.get_unstructure_hook(walked[0]) if walked else converter.unstructure

    def write_union(value: Any) -> Any:
        if value is None:
            return None
        if not is_class(type(value)):
            return write_walked(value)
        if type(value) not in classes:
            raise TypeError(f"{type(value).__name__} is no member of its union: nobody could read it")
        document = converter.unstructure(value)
        return {TAG: type(value).__name__, **document} if len(classes) > 1 else document

    return write_union

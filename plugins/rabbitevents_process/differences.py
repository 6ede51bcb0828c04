"""What was expected and what came, as lines that can be told apart at a glance."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, cast

import attrs

from rabbitevents.arguments import instance, kind_of

Parts = Callable[[Any], list[Any]]
"""Takes what came apart: each part is shown by itself."""

IGNORED: Final[Mapping[str, str]] = {
    "missing": "it was ignored: there is no process, and missing='ignore'",
    "late": "it was ignored: the process has ended",
    "stale": "it was ignored: nobody waits for that timeout (any more)",
}
"""What is said of an event for which nothing was done."""

WIDTH = 60
"""How long a value may be that stands in one line."""


def shown(value: Any) -> str:
    """Return a value in one line."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def difference(expected: Iterable[Any], came: Iterable[Any]) -> str:
    """Return two lists of values as one text, line by line: what was expected with ``-``, what came with ``+``."""
    wanted, got = list(expected), list(came)
    before, after = ([line for each in those for line in _lines(each)] for those in (wanted, got))
    lines = list(difflib.unified_diff(before, after, "expected", "came", n=10_000, lineterm=""))
    if not lines:
        return "they look alike, and are not equal:\n" + "\n".join(before)
    return "\n".join(line for line in lines if not line.startswith("@@"))


def listing(values: Iterable[Any]) -> str:
    """Return values as one text, an object's fields line by line."""
    return "\n".join(line for each in values for line in _lines(each)) or "nothing"


def _lines(value: Any, name: str = "", indent: str = "") -> Iterator[str]:
    """Yield a value, an object of several fields with a line for each."""
    fields = _fields(value)
    if fields is None or (indent and len(repr(value)) <= WIDTH):
        yield f"{indent}{name}{value if isinstance(value, str) and not indent else repr(value)}"
        return
    yield f"{indent}{name}{type(value).__name__}("
    for field, inner in fields.items():
        yield from _lines(inner, f"{field}=", f"{indent}    ")
    yield f"{indent})"


def _fields(value: Any) -> Mapping[str, Any] | None:
    """Return the fields of an object that has some; None for any other value."""
    cls = cast("Any", type(value))
    if attrs.has(cls):
        names: Iterable[str] = [each.name for each in attrs.fields(cls)]
    elif dataclasses.is_dataclass(cls):
        names = [each.name for each in dataclasses.fields(cls)]
    elif isinstance(found := getattr(cls, "__pydantic_fields__", None), dict):
        names = list(cast("Mapping[str, Any]", found))
    else:
        names = getattr(cls, "__struct_fields__", ())
    return {name: getattr(value, name) for name in names} or None


# --- what was to come, and what came -----------------------------------------------------------------------------------


def expect(what: str, expected: Any, came: Any, parts: Parts) -> None:
    """Raise AssertionError where something else came than what was expected.

    :param what: How it is called.
    :param expected: What was expected.
    :param came: What came: the same, an exception, or why nothing was done.
    :param parts: What takes either apart.
    """
    __tracebackhide__ = True
    if isinstance(came, (str, Exception)):
        wanted = listing(parts(expected))
        raise AssertionError(f"{what}: {said(came, parts)}\nexpected:\n{wanted}") from cause(came)
    if parts(came) != parts(expected):
        raise AssertionError(f"{what}:\n{difference(parts(expected), parts(came))}")


def expect_failure(what: str, kind: type[Exception], match: str, came: Any, parts: Parts) -> None:
    """Raise AssertionError where something else came than an exception of this kind, with that in its text."""
    __tracebackhide__ = True
    instance("raises: kind", kind, type, "say the exception's class")
    if not isinstance(came, kind):
        raise AssertionError(f"{what} was to raise {kind.__name__}:\n{said(came, parts)}") from cause(came)
    if not re.search(match, str(came)):
        raise AssertionError(f"{what} raised {kind_of(came)}, and its text has no {match!r} in it: {came}") from came


def said(came: Any, parts: Parts) -> str:
    """Say what came."""
    if isinstance(came, Exception):
        return f"it raised {type(came).__name__}: {came}"
    return IGNORED[came] if isinstance(came, str) else f"what came:\n{listing(parts(came))}"


def cause(came: Any) -> Exception | None:
    """Return the exception that came, if one did."""
    return came if isinstance(came, Exception) else None

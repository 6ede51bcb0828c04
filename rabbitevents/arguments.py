"""What an argument must be, checked where it is given: what is written wrong is not found out at shutdown.

Each check takes the argument's name as an error says it ("Bus: grace"), and returns the argument as it is kept.
Raises `ConfigurationError` that says what was given, and the way out. A text is not shown, since it may be a password
in the wrong place; unless it is a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final, TypeAlias, TypeVar, cast, get_args

from rabbitevents.errors import ConfigurationError

__all__ = ["Seconds", "flag", "instance", "kind_of", "one_of", "seconds", "several", "span", "text", "whole", "wrong"]

T = TypeVar("T")

Seconds: TypeAlias = float | timedelta
"""A time: a number of seconds, or a timedelta."""

LONGEST: Final = timedelta(days=36_500).total_seconds()
"""Beyond a hundred years a time is a mistake, and soon no timedelta."""


def kind_of(value: object) -> str:
    """Say what a value is, without showing it: "text", "a Router", "the class Retry"."""
    if value is None:
        return "None"
    if isinstance(value, (str, bytes)):
        return "text" if isinstance(value, str) else "bytes"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def wrong(name: str, value: object, way_out: str) -> ConfigurationError:
    """Return the error of an argument that cannot be meant."""
    small = isinstance(value, (int, float)) and (isinstance(value, float) or abs(value) < 10**18)
    if value is None or small or isinstance(value, timedelta):
        return ConfigurationError(f"{name}={value}: {way_out}")
    return ConfigurationError(f"{name} is {kind_of(value)}: {way_out}")


def seconds(name: str, value: object, *, least: float = 0.0, positive: bool = False) -> float:
    """Return a time in seconds, ``least`` or more; with ``positive``, more than that."""
    if isinstance(value, str):
        raise _text_for_a_number(name, value, f"say {_digits(value) or 30} (seconds) or a timedelta")
    if isinstance(value, timedelta):
        found = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found = float(value) if abs(value) <= LONGEST else math.inf
    else:
        raise wrong(name, value, "say seconds, such as 30, or a timedelta")
    if not least <= found <= LONGEST or (positive and found == least):
        enough = f"more than {least:g}" if positive else f"{least:g} or more" if least >= 0 else "100 years at most"
        raise wrong(name, value, f"say seconds, {enough} and finite, or a timedelta")
    return found


def span(name: str, value: object, *, least: float = 0.0, positive: bool = False) -> timedelta:
    """Return a time as a timedelta; see `seconds`."""
    found = seconds(name, value, least=least, positive=positive)
    return value if isinstance(value, timedelta) else timedelta(seconds=found)


def whole(name: str, value: object, *, least: int | None = 1, most: int | None = None, why: str = "") -> int:
    """Return a whole number, ``least`` to ``most``. ``why`` is added to the error, in parentheses."""
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if number is not None and (least is None or least <= number) and (most is None or number <= most):
        return number
    if isinstance(value, str) and _digits(value):
        raise _text_for_a_number(name, value, f"say {_digits(value)}, a whole number")
    which = "" if least is None else f", {least} or more" if most is None else f", {least} to {most}"
    raise wrong(name, value, f"say a whole number{which}{f' ({why})' if why else ''}")


def _digits(value: str) -> str:
    """Return the whole number that a text is, as text; nothing, where it is none."""
    return value.strip() if re.fullmatch(r"\s*[0-9]{1,9}\s*", value) else ""


def _text_for_a_number(name: str, value: str, way_out: str) -> ConfigurationError:
    shown = f"={value!r}" if _digits(value) else ""
    return ConfigurationError(f"{name}{shown} is text: {way_out}")


def flag(name: str, value: object) -> bool:
    """Return True or False, and take nothing else for either."""
    if not isinstance(value, bool):
        raise wrong(name, value, "say True or False")
    return value


def one_of(name: str, value: T, literal: object) -> T:
    """Return the word that was chosen among those of ``literal``, a `typing.Literal`."""
    words: tuple[str, ...] = get_args(literal)
    if isinstance(value, str) and value in words:
        return value
    said = " or ".join((", ".join(map(repr, words[:-1])), repr(words[-1])))
    if isinstance(value, str) and re.fullmatch(r"[\w.-]{1,24}", value):
        raise ConfigurationError(f"{name}={value!r}: say {said}")
    raise wrong(name, value, f"say {said}")


def text(name: str, value: object, *, such_as: str, most: int = 255) -> str:
    """Return a text that is not blank, and ``most`` bytes long at most."""
    if not isinstance(value, str):
        raise wrong(name, value, f"say a text, such as {such_as!r}")
    if not value.strip():
        raise ConfigurationError(f"{name} is blank: say a text, such as {such_as!r}")
    if len(value.encode("utf-8", "surrogatepass")) > most:
        raise ConfigurationError(f"{name} is longer than {most} bytes: say a shorter text, such as {such_as!r}")
    return value


def instance(name: str, value: object, kind: type[T], way_out: str) -> T:
    """Return what is an instance of ``kind``."""
    if not isinstance(value, kind):
        raise wrong(name, value, way_out)
    return value


def several(name: str, value: object, kind: type[T], such_as: str) -> tuple[T, ...]:
    """Return instances of ``kind`` that were given as a list, or in any other order."""
    given = value
    if isinstance(value, (str, bytes, Mapping, kind)) or not isinstance(value, Iterable):
        raise wrong(name, given, f"it takes a list, such as {such_as}")
    items = tuple(cast("Iterable[object]", value))
    for item in items:
        if not isinstance(item, kind):
            raise ConfigurationError(f"{name} has {kind_of(item)} in it: it takes instances, such as {such_as}")
    return cast("tuple[T, ...]", items)

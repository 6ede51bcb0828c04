"""Words of strangers, made fit for a line, a header or a terminal: a type, an id, an exception's text is whatever somebody sent."""

from __future__ import annotations

import sys
from traceback import walk_tb
from types import FrameType
from typing import Final

__all__ = ["cut", "name_of", "printable", "text_of", "users_frames"]

_BLANK: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters that show nothing, though Unicode calls them printable: fillers, and the Braille pattern without dots."""

_MACHINERY: Final = frozenset({"asyncio", "concurrent", "contextlib", "rabbitevents", "tenacity", "threading"})
"""The packages that stand between an event and its handler; plugins (``rabbitevents_*``) besides."""


def printable(text: str, *, lines: bool = False) -> str:
    """Return ``text`` with a backslash escape for each sign that is not shown as itself.

    Those are ends of lines, every control and format character (escape sequences, direction overrides, signs of no
    width), letters that show nothing, and bytes that were no UTF-8: nothing in it moves a cursor or turns other text around.

    :param text: Whatever somebody sent.
    :param lines: Whether line feeds and tabs stay: False.
    """
    if text.isprintable() and (text.isascii() or _BLANK.isdisjoint(text)):
        return text
    kept = "\n\t" if lines else ""
    return "".join(s if (s.isprintable() and s not in _BLANK) or s in kept else _escaped(s) for s in text)


def _escaped(sign: str) -> str:
    if "\udc80" <= sign <= "\udcff":  # a byte that was no UTF-8 (surrogateescape)
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")


def cut(text: str, limit: int) -> str:
    """Return the beginning of ``text``; halves of surrogate pairs are written as escapes.

    :param text: Any text.
    :param limit: How many bytes of UTF-8 it may have at most, 3 or more.
    """
    data = text.encode("utf-8", "backslashreplace")
    return data.decode() if len(data) <= limit else f"{data[: limit - 3].decode('utf-8', 'ignore')}..."


def name_of(error: BaseException) -> str:
    """Name an exception's class, with its module unless it is Python's own: ``shop.PaymentRefused``. 255 bytes at most.

    One of ours is named by the package that it is imported from.

    :param error: Any exception. Its text may quote an event; its name does not.
    """
    kind = type(error)
    module, name = kind.__module__, kind.__qualname__
    package = module.partition(".")[0]
    if package.startswith("rabbitevents") and getattr(sys.modules.get(package), name, None) is kind:
        module = package
    return cut(name if module == "builtins" else f"{module}.{name}", 255)


def text_of(error: BaseException) -> str:
    """Return what an exception says. Raises nothing, whatever its ``__str__`` does.

    :param error: Any exception.
    """
    try:
        return str(error)
    except Exception as failure:
        # An exception that cannot say its text must not keep its event from being logged, or dead-lettered.
        return f"({type(failure).__name__} in its __str__)"


def users_frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Return the frames of a traceback with their lines, from the first one of the user's on; none where none is theirs.

    :param error: An exception that was raised.
    """
    frames = list(walk_tb(error.__traceback__))
    return frames[next((at for at, (frame, _) in enumerate(frames) if not _is_machinery(frame)), len(frames)) :]


def _is_machinery(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    package = module.partition(".")[0]
    is_ours = package in _MACHINERY or package.startswith("rabbitevents_")
    return is_ours and not module.startswith("rabbitevents.demo.")

"""Texts of strangers, made fit for a terminal: nothing in them moves the cursor, hides, or turns other text around."""

from __future__ import annotations

_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters that show nothing, though Unicode calls them printable: fillers, and the Braille pattern without dots."""


def harmless(text: str, *, lines: bool = False) -> str:
    """Return ``text`` with everything that is no visible sign written as an escape.

    That is every control and format character (Unicode's C categories: escape sequences, direction overrides,
    zero-width signs), line separators, halves of surrogate pairs, letters that show nothing, and signs that no version of Unicode knows.
    With ``lines``, line feeds and tabs stay.
    """
    if text.isprintable() and _BLANK.isdisjoint(text):
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        sign if (sign.isprintable() and sign not in _BLANK) or sign in kept else _escape(sign) for sign in text
    )


def _escape(sign: str) -> str:
    number = ord(sign)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that was no UTF-8 (surrogateescape)
        return f"\\x{number - 0xDC00:02x}"
    return sign.encode("unicode_escape").decode("ascii")


def excerpt(data: bytes, limit: int) -> str:
    """Return the beginning of ``data``: as escaped text where it is mostly text, else as a table of bytes."""
    shown = data[:limit]
    text = shown.decode("utf-8", "surrogateescape")
    if sum(sign.isprintable() or sign in "\r\n\t" for sign in text) >= 0.8 * len(text):
        return harmless(text, lines=True)
    return "\n".join(_row(shown[at : at + 16], at) for at in range(0, len(shown), 16))


def _row(data: bytes, at: int) -> str:
    """Return one line of a hex dump."""
    signs = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
    return f"{at:08x}  {data.hex(' '):<47}  {signs}"

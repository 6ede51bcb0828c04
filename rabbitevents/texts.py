"""Words of strangers, made fit for a line: a type, an id or a queue's name is whatever somebody sent."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return ``text`` with a backslash escape for each sign that is not shown as itself, ends of lines among them."""
    return text if text.isprintable() else "".join(s if s.isprintable() else _escaped(s) for s in text)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")

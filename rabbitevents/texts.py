"""Words of strangers, made fit for a line: a type, an id or a queue's name is whatever somebody sent."""

from __future__ import annotations

import sys

__all__ = ["error_name", "printable"]


def printable(text: str) -> str:
    """Return ``text`` with a backslash escape for each sign that is not shown as itself, ends of lines among them."""
    return text if text.isprintable() else "".join(s if s.isprintable() else _escaped(s) for s in text)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")


def error_name(error: BaseException) -> str:
    """Name an error by its class, with the module it is from; one of ours by the package that it is imported from."""
    cls = type(error)
    module, name = cls.__module__, cls.__qualname__
    package = module.partition(".")[0]
    if package.startswith("rabbitevents") and getattr(sys.modules.get(package), name, None) is cls:
        module = package
    return name if module == "builtins" else f"{module}.{name}"

"""Bodies that a person has changed: one for one event, or those of an export."""

from __future__ import annotations

from pathlib import Path

import msgspec

from rabbitevents import ConfigurationError
from rabbitevents_deadletter.workbench import Selection, read_lines
from rabbitevents_deadletter.workbench.lines import is_export


class Edits(msgspec.Struct, frozen=True):
    """What is meant, and with which bodies, as `DeadLetters.replay` takes it."""

    selection: Selection
    bodies: dict[str, bytes] = {}
    only: frozenset[bytes] | None = None


def edited(path: Path, selection: Selection) -> Edits:
    """Return the bodies in a file, and the selection narrowed to their letters.

    The file is an export whose bodies were changed, with a line for each letter, however many are of one event; or else
    it is one body, for the one event that is selected by its id. Raises `ConfigurationError`.
    """
    try:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if not is_export(first):
        if len(selection.ids) != 1:
            raise ConfigurationError(
                f"{path} is one body (no export): say with --id which event it is for, and only one"
            )
        return Edits(selection, {selection.ids[0].lower(): path.read_bytes()})
    bodies: dict[bytes, bytes] = {}
    ids: dict[str, None] = {}
    named = Selection(ids=selection.ids)
    for letter in filter(named.takes, read_lines(path)):
        ids[letter.id] = None
        if bodies.setdefault(letter.digest(body=False), letter.body) != letter.body:
            raise ConfigurationError(f"{path} has two bodies for one letter of {letter.describe()}: leave one out")
    if not bodies:
        raise ConfigurationError(f"{path} has none of the events that --id names")
    narrowed = msgspec.structs.replace(selection, ids=tuple(ids))
    return Edits(narrowed, {digest.hex(): body for digest, body in bodies.items()}, frozenset(bodies))

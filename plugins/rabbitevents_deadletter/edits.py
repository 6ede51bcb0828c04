"""Bodies that a person has changed: one for one event, or those of an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from rabbitevents import ConfigurationError
from rabbitevents_deadletter.lines import FORMAT, read_lines
from rabbitevents_deadletter.selection import Selection


def edited(path: Path, selection: Selection) -> tuple[Selection, Mapping[str, Mapping[str, bytes]]]:
    """Return the bodies in a file by queue and event id, and the selection narrowed to those.

    The file is an export whose bodies were changed; or else it is one body, for the one event that is selected by its
    id (its queue is "" then: whichever it is in). Raises `ConfigurationError`.
    """
    if not _is_export(path):
        if len(selection.ids) != 1:
            raise ConfigurationError(
                f"{path} is one body (no export): say with --id which event it is for, and only one"
            )
        return selection, {"": {selection.ids[0].lower(): path.read_bytes()}}
    found: dict[str, dict[str, bytes]] = {}
    for letter in read_lines(path):
        bodies, id = found.setdefault(letter.queue, {}), letter.id.lower()
        if id in bodies:
            raise ConfigurationError(f"{path} has the event {letter.id} twice: which of its bodies is it to have?")
        bodies[id] = letter.body
    ids = tuple(id for bodies in found.values() for id in bodies)
    wanted = tuple(id for id in selection.ids if id.lower() in ids) if selection.ids else ids
    if not wanted:
        raise ConfigurationError(f"{path} has none of the events that --id names")
    return msgspec.structs.replace(selection, ids=wanted), found


def _is_export(path: Path) -> bool:
    """Say whether the first line of a file is one of an export."""
    try:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return msgspec.json.decode(first.removeprefix(b"\xef\xbb\xbf"), type=_Head).rabbitevents == FORMAT
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


class _Head(msgspec.Struct):
    rabbitevents: str

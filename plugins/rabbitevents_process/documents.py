"""A process's state as a document: written and read by the codec of events, along the same chain of versions."""

from __future__ import annotations

from typing import Any

import attrs

from rabbitevents import Codec, ConfigurationError, DecodeError, EncodeError, event, upcast
from rabbitevents.arguments import kind_of
from rabbitevents_process.errors import StateError, named
from rabbitevents_process.life import Life

Document = dict[str, Any]
"""A state as JSON says it."""


class Documents:
    """Writes and reads the states of one process.

    :param process: The process's name.
    :param state: The state's class, or a union of classes.
    :param version: The version of its shape.
    :param steps: What leads a document of a version to the next one, by version.

    Raises `ConfigurationError`.
    """

    def __init__(self, process: str, state: Any, version: int, steps: dict[int, Any]) -> None:
        oldest = version
        while oldest - 1 in steps:
            oldest -= 1
        if oldest == version > 1 or any(step < oldest for step in steps):
            missing = version - 1 if oldest == version else oldest - 1
            raise ConfigurationError(
                f"process {process!r} is version {version}, and nothing leads from version {missing}: write "
                f"@{process}.upcast(from_version={missing})"
            )
        self.version = version
        self._process = process
        self._state = state
        made = attrs.make_class("State", {"state": attrs.field(type=state)}, frozen=True)
        self._envelope: Any = event(f"{process}.state", version=version, oldest=oldest)(made)
        for number, step in steps.items():
            upcast(self._envelope, from_version=number)(_inside(step))
        self._codec = Codec[Any](self._envelope)

    def write(self, key: str, state: Any) -> bytes:
        """Return a state as JSON. Raises `ConfigurationError` for what is none, and `EncodeError`."""
        if not isinstance(state, self._state):
            raise ConfigurationError(
                f"{named(self._process, key)}: its new state is {kind_of(state)}: it is to be {shown(self._state)}, or DONE"
            )
        try:
            return self._codec.encode_checked(self._envelope(state))
        except EncodeError as error:
            raise EncodeError(f"{named(self._process, key)}: its new state cannot be kept. {error}") from error

    def read(self, key: str, life: Life) -> Any:
        """Return the state that is kept. Raises `StateError`, which says the way out."""
        where = f"{named(self._process, key)}: its state is version {life.version}"
        if life.version > self.version:
            raise StateError(
                f"{where}, and this code knows {self.version}: a newer one has written it, and what is new in it would be lost; "
                "the newer one takes it, when the event is tried again"
            )
        try:
            return self._codec.decode(life.body, life.version).state
        except DecodeError as error:
            way_out = (
                f"write @{self._process}.upcast(from_version={life.version})"
                if life.version < self.version
                else f"give what is new a default, or say version={self.version + 1} and what leads there from "
                f"{self.version} with @{self._process}.upcast(from_version={self.version})"
            )
            raise StateError(f"{where}, and does not fit: {way_out}. {error}") from error


def shown(state: Any) -> str:
    """Name a class, or a union of classes."""
    return str(getattr(state, "__name__", state))


def _inside(step: Any) -> Any:
    """Return a step for the document that has the state's in it."""

    def whole(document: Document) -> Document:
        return {**document, "state": step(document["state"])}

    return whole

"""Snapshots: what an entity's events come to is kept now and then, so that the next fold begins there and not at the first.

They only save time. One that was made by other code, of another shape, of other events, or that cannot be read, is as good
as none: the fold begins at the first event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from enum import Enum
from hashlib import sha256
from inspect import get_annotations
from sys import stdlib_module_names
from types import CodeType, FunctionType
from typing import Any, Final, cast, get_args, get_type_hints
from uuid import UUID
from weakref import WeakKeyDictionary

import attrs
import msgspec
from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents import Codec, DecodeError, event
from rabbitevents.arguments import whole
from rabbitevents_eventstore.appending import Database
from rabbitevents_eventstore.tables import EventTables
from rabbitevents_sql import backend_of, now

EVERY: Final = 500
"""After how many events a state is kept."""


class Kept(msgspec.Struct, frozen=True):
    """A state, and behind which event it is: that event's version, and its id, by which it is known again."""

    version: int
    event_id: UUID
    state: Any


class Snapshots:
    """Keep the states of entities with a long past, for `EventStore.rebuild` and `EventStore.decide`.

    ::

        snapshots = Snapshots(Account)

        await store.decide("account", "7", withdraw, apply=apply, initial=Account(), snapshots=snapshots)

    A snapshot counts only for the code that made it: `apply`, with the functions and constants of its module that it names;
    the state's class, with its fields and methods; the state before the first event; the types and versions of the store's
    events. What `apply` calls in other modules is not seen: raise ``version`` when that changes.

    :param state: The state's class, or a union of classes; of what events may be of.
    :param every: After how many events more a state is kept: 500.
    :param version: Raised, it makes all snapshots be made anew.

    Raises `ConfigurationError` for a state that cannot be kept as a document.
    """

    def __init__(self, state: Any, *, every: int = EVERY, version: int = 1) -> None:
        self.every: int = whole("Snapshots: every", every)
        self.version: int = whole("Snapshots: version", version)
        made = attrs.make_class("State", {"state": attrs.field(type=state)}, frozen=True)
        self._envelope: Any = event("snapshot", version=1)(made)
        self._codec = Codec[Any](self._envelope)
        self._shape = "\n".join(_shape(state, set()))
        self._marks: WeakKeyDictionary[Callable[..., Any], str] = WeakKeyDictionary()

    def mark(self, apply: Callable[..., Any], initial: Any, events: str) -> str:
        """Return what the snapshots are known by that this code makes of such events."""
        known = self._marks.get(apply)
        if known is None:
            known = self._marks[apply] = "\n".join([str(self.version), self._shape, *_code(apply, set())])
        return sha256(b"\0".join([known.encode(), events.encode(), self.write(initial)])).hexdigest()[:32]

    def write(self, state: Any) -> bytes:
        """Return a state as JSON. Raises `EncodeError` for one that would be read as something else."""
        return self._codec.encode_checked(self._envelope(state))

    def read(self, body: bytes) -> Any:
        """Return the state that JSON is of. Raises `DecodeError`."""
        return self._codec.decode(body, 1).state


class Album:
    """The snapshots of a store.

    :param engine: The store's.
    :param tables: The store's.
    """

    def __init__(self, engine: AsyncEngine, tables: EventTables) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._table = tables.snapshots
        self._finding = self._finds()
        self._keeping = self._keeps()

    async def find(self, session: Database | None, key: tuple[str, str, str], snapshots: Snapshots) -> Kept | None:
        """Return the snapshot of an entity by a mark, if there is one that can be read."""
        told: dict[str, Any] = dict(zip(("its_type", "its_id", "its_mark"), key, strict=True))
        if session is None:
            async with self._engine.connect() as connection:
                row = (await connection.execute(self._finding, told)).first()
        else:
            row = (await session.execute(self._finding, told)).first()
        if row is None:
            return None
        try:
            return Kept(row.version, row.event_id, snapshots.read(bytes(row.state)))
        except DecodeError:
            return None

    async def keep(self, key: tuple[str, str, str], version: int, event_id: UUID, body: bytes) -> None:
        """Keep a state in the place of the one before it. Raises what the database does."""
        named = dict(zip(("entity_type", "entity_id", "mark"), key, strict=True))
        async with self._engine.connect() as connection:
            await connection.execute(self._keeping, {**named, "version": version, "event_id": event_id, "state": body})

    def _finds(self) -> Any:
        column = self._table.c
        return (
            select(column.version, column.event_id, column.state)
            .where(column.entity_type == bindparam("its_type"), column.entity_id == bindparam("its_id"))
            .where(column.mark == bindparam("its_mark"))
        )

    def _keeps(self) -> Any:
        insert: Any = insert_sqlite if backend_of(self._engine) == "sqlite" else insert_postgresql
        new = insert(self._table).values(taken_at=now())
        key = ["entity_type", "entity_id", "mark"]
        set_ = {name: new.excluded[name] for name in ("version", "event_id", "state", "taken_at")}
        return new.on_conflict_do_update(index_elements=key, set_=set_)


_PLAIN: Final = (bool, int, float, str, bytes, Decimal, Enum, tuple, frozenset, type(None))
"""Of what types a constant of a module says by its `repr` all that it is."""


def _code(function: Any, seen: set[Any]) -> Iterator[str]:
    """Yield what a function does, and what those do that it calls and that stand in its module.

    What else it depends on is said by its `repr`: one with an address in it is another one in each process, and so no
    snapshot is found.
    """
    plain = getattr(function, "__func__", function)
    if plain in seen:
        return
    seen.add(plain)
    if not isinstance(plain, FunctionType):
        yield repr(function)
        return
    yield f"{plain.__module__}.{plain.__qualname__} {getattr(function, '__self__', None)!r} {plain.__defaults__!r}"
    yield from _instructions(plain.__code__)
    cells = dict(zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True))
    for name, cell in cells.items():
        yield from _named(name, cell.cell_contents, plain, seen)
    for name in sorted(set(_names(plain.__code__)) - cells.keys()):
        value = plain.__globals__.get(name)
        if isinstance(value, (FunctionType, *_PLAIN)):
            yield from _named(name, value, plain, seen)


def _named(name: str, value: Any, by: FunctionType, seen: set[Any]) -> Iterator[str]:
    """Yield what a name stands for in a function."""
    if isinstance(value, FunctionType):
        if value.__module__ == by.__module__:
            yield from _code(value, seen)
    else:
        yield f"{name} {value!r}"


def _instructions(code: CodeType) -> Iterator[str]:
    yield f"{code.co_name} {code.co_code.hex()} {code.co_names} {code.co_varnames}"
    constants: tuple[Any, ...] = code.co_consts
    for each in constants:
        if isinstance(each, CodeType):
            yield from _instructions(each)
        else:
            yield _constant(each)


def _constant(value: Any) -> str:
    """Say what a constant is; a set in the same order everywhere."""
    if not isinstance(value, frozenset):
        return repr(value)
    return repr(sorted(map(repr, cast("Iterable[object]", value))))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)


def _shape(kind: Any, seen: set[Any]) -> Iterator[str]:
    """Yield what a type is: a class's fields and what its methods do, and the same of the types that are in there."""
    yield repr(kind)
    for part in get_args(kind):
        yield from _shape(part, seen)
    if not isinstance(kind, type) or kind in seen:
        return
    seen.add(kind)
    for name, each in _fields(kind).items():
        yield name
        yield from _shape(each, seen)
    if kind.__module__.partition(".")[0] in stdlib_module_names:
        return
    for name, each in sorted(vars(kind).items()):
        method: object = getattr(each, "fget", each)
        if isinstance(method, FunctionType) and not name.startswith("__"):
            yield from _code(method, set())


def _fields(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except NameError:  # a model's own ones, which are for type checkers
        return {name: each for name, each in get_annotations(kind).items() if not isinstance(each, str)}

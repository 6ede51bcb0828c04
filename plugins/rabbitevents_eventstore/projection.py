"""A projection: what events make of tables, said by a function of an event, or of several, and a session."""

from __future__ import annotations

import inspect
import types
from collections.abc import Awaitable, Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, Protocol, Union, cast, get_args, get_origin, get_type_hints

import msgspec
from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncSession

from rabbitevents import ConfigurationError, Event
from rabbitevents.arguments import kind_of, text, whole
from rabbitevents_eventstore.stored import Stored

Project = Callable[[Any, AsyncSession], Awaitable[None]]
"""What is called for an event, or for a batch of them."""

LONGEST_NAME: Final = 100

_NO_EVENTS: Final[tuple[Any, ...]] = (Any, Event, Stored, object, type(None))
"""Classes that say of no event that it is asked for. (Any is one, since Python 3.11.)"""

_SUCH_AS: Final = "async def order_summary(event: OrderPlaced | OrderPaid, session: AsyncSession) -> None"

_WAYS: Final[dict[Any, Callable[[Stored[Any]], Any]]] = {
    None: attrgetter("event.payload"),
    Event: attrgetter("event"),
    Stored: lambda stored: stored,
}
"""What is given for an event, by how it was asked for: as itself, in its envelope, or with its place in the store."""


class Projection(msgspec.Struct, frozen=True):
    """A function that makes tables of events, as `projection` returns it. Called, it is that function."""

    name: str
    version: int
    tables: tuple[Table, ...]
    """The tables that it writes, and nobody else does."""
    classes: tuple[type, ...]
    """The classes of the events that it asks for."""
    is_batch: bool
    given: Callable[[Stored[Any]], Any]
    """What it is given for an event."""
    function: Project

    async def __call__(self, events: Any, session: AsyncSession) -> None:
        """Call the function, as a test may do."""
        await self.function(events, session)


class Decorate(Protocol):
    """Makes a projection of a function."""

    def __call__(self, function: Callable[[Any, AsyncSession], Awaitable[None]], /) -> Projection:
        """Make a projection of ``function``."""
        ...


def projection(name: str, *, version: int = 1, tables: Iterable[Any]) -> Decorate:
    """Make a projection of a function.

    ::

        @projection("order_summary", tables=[OrderSummary])
        async def order_summary(event: OrderPlaced | OrderPaid, session: AsyncSession) -> None: ...

        @projection("revenue", tables=[Revenue])
        async def revenue(events: list[OrderPaid], session: AsyncSession) -> None: ...

    The annotation of its first parameter says which events it is given: one at a time, or a list of up to 500. Each as
    itself, in its envelope (``Event[OrderPaid]``), or with its place in the store (``Stored[OrderPaid]``). What it does
    by the session is committed together with how far it is, and so counts once. It must do nothing else.

    :param name: By which it is known, to the database too: small letters, digits and underscores.
    :param version: To be raised when the function changes what it makes of the same events, or its tables change.
    :param tables: The tables that it writes: mapped classes, or SQLAlchemy's ``Table``. Nothing else may write them.

    Raises `ConfigurationError` for a function that cannot be one.
    """
    said = text("projection: name", name, such_as="order_summary", most=LONGEST_NAME)
    if not said.isidentifier() or not said.isascii() or said != said.lower():
        raise ConfigurationError("projection: name: say small letters, digits and underscores, such as 'order_summary'")
    number = whole(f"projection {name!r}: version", version, most=2**31 - 1)
    mapped = _tables(name, tables)

    def decorate(function: Callable[[Any, AsyncSession], Awaitable[None]]) -> Projection:
        hint = _asked(function, f"projection {name!r}")
        is_batch = get_origin(hint) in (list, Sequence)
        classes, given = _wanted(get_args(hint)[0] if is_batch else hint, f"projection {name!r}")
        return Projection(said, number, mapped, classes, is_batch, given, function)

    return decorate


def _tables(name: str, given: object) -> tuple[Table, ...]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ConfigurationError(f"projection {name!r}: tables is {kind_of(given)}: say a list, such as [OrderSummary]")
    found = [getattr(each, "__table__", each) for each in cast("Iterable[object]", given)]
    if not found:
        raise ConfigurationError(f"projection {name!r}: tables is empty: say which tables it writes")
    for each in found:
        if not isinstance(each, Table):
            raise ConfigurationError(
                f"projection {name!r}: tables has {kind_of(each)} in it: say mapped classes, or SQLAlchemy's Table"
            )
    tables = cast("list[Table]", found)
    if len({table.name for table in tables}) < len(tables):
        raise ConfigurationError(f"projection {name!r}: tables has two of one name")
    return tuple(tables)


def _asked(function: object, where: str) -> Any:
    """Return the annotation of the parameter for events."""
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{where} is {kind_of(function)}: it is a coroutine function, {_SUCH_AS}")
    parameters = list(inspect.signature(function).parameters.values())
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise ConfigurationError(
            f"{where}: its annotations name {error.name!r}, which is not known where it stands: define or import it in the module"
        ) from error
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(parameters) != 2 or len(plain) != 2 or hints.get(plain[1].name) is not AsyncSession:
        asked = ", ".join(map(str, parameters))
        raise ConfigurationError(f"{where} asks for ({asked}), and is called with events and a session: {_SUCH_AS}")
    return hints.get(plain[0].name)


def _wanted(hint: Any, where: str) -> tuple[tuple[type, ...], Callable[[Stored[Any]], Any]]:
    """Return the classes that an annotation names, and what is given for an event."""
    ways = {origin if (origin := get_origin(each)) in (Event, Stored) else None for each in _members(hint)}
    inner = [_members(get_args(each)[0]) if get_args(each) else (each,) for each in _members(hint)]
    classes = tuple(dict.fromkeys(cls for some in inner for cls in some))
    if len(ways) != 1 or not all(isinstance(cls, type) and cls not in _NO_EVENTS for cls in classes):
        raise ConfigurationError(
            f"{where}: its first parameter says which events it is given, and how: such as OrderPlaced | OrderPaid, "
            "Event[OrderPaid] or Stored[OrderPaid], or a list of those"
        )
    return classes, _WAYS[ways.pop()]


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, and of an alias of one; of anything else, itself."""
    while hasattr(hint, "__value__"):
        hint = hint.__value__
    if get_origin(hint) not in (Union, types.UnionType):
        return (hint,)
    return tuple(each for member in get_args(hint) for each in _members(member))

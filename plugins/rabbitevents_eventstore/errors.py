"""What can go wrong with a store besides what goes wrong with events and databases."""

from __future__ import annotations

from rabbitevents import RabbitEventsError
from rabbitevents.texts import cut, printable


class ConcurrencyError(RabbitEventsError):
    """Somebody else has appended to the entity: it is not at the version that was expected, and nothing was appended.

    ``expected`` and ``actual`` are the two versions; 0 is that of an entity without events. ``expected`` is None where any
    version would have done, and others were always faster.
    """

    def __init__(self, entity_type: str, entity_id: str, *, expected: int | None, actual: int) -> None:
        wanted = "any version" if expected is None else f"version {expected}" if expected else "no event"
        super().__init__(
            f"{entity(entity_type, entity_id)} is at version {actual}, and {wanted} was expected: load it again, and decide anew"
        )
        self.entity_type = entity_type
        self.entity_id = entity_id
        self.expected = expected
        self.actual = actual


class StoreRestoredError(RabbitEventsError):
    """A reader is further than the store: its database was restored from a backup, or has lost commits.

    ``position`` is the reader's, ``last`` the last one that the store has given out.
    """

    def __init__(self, table: str, position: int, last: int) -> None:
        super().__init__(
            f"reading {table} after position {position}, and it ends at {last}: the database is an older one than that which "
            "was read. What was made of the events since then is to be made again from there"
        )
        self.position = position
        self.last = last


class ProjectionBehindError(RabbitEventsError):
    """A projection is not as far as it was waited for: too much is to be done yet, or it stands.

    ``projection`` is its name, ``wanted`` the position that was waited for, ``position`` where it is.
    """

    def __init__(self, projection: str, wanted: int, position: int, why: str) -> None:
        super().__init__(f"projection {projection} is at position {position}, and was to be at {wanted}: {why}")
        self.projection = projection
        self.wanted = wanted
        self.position = position


def entity(entity_type: str, entity_id: str) -> str:
    """Name an entity for errors, in one printable line."""
    return printable(cut(f"{entity_type}/{entity_id}", 120))

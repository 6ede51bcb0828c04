"""For tests: the events that were published in transactions, without a relay, a broker, or a commit."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Max

from rabbitevents import Message, decode_properties
from rabbitevents.testing import Witness
from rabbitevents_django.configuration import configured
from rabbitevents_django.databases import connection_to

if TYPE_CHECKING:
    from rabbitevents_django.models import OutboxRow

__all__ = ["CapturedEvents", "captured_events"]

P = TypeVar("P")


class CapturedEvents:
    """The events that one database has got since it was made; those of a transaction that was rolled back are not there."""

    def __init__(self, using: str) -> None:
        from rabbitevents_django.models import OutboxRow  # here: there are models once Django is set up

        self._rows = OutboxRow.objects.using(connection_to(using).alias)
        self._after: int = self._rows.aggregate(last=Max("id"))["last"] or 0
        self._kept: list[Message] | None = None

    @property
    def messages(self) -> list[Message]:
        """All of them as messages, in order; each with its delay as ``after``."""
        return self._read() if self._kept is None else list(self._kept)

    def published(self, cls: type[P]) -> list[P]:
        """Return the events of one class, in order; ``[]`` if there were none.

        :param cls: A class that `@event` marks.
        """
        witness = Witness()
        witness.messages.extend(self.messages)
        return witness.published(cls)

    def keep(self) -> None:
        """Hold on to what there is, as the end of `captured_events` does: what comes later does not count."""
        self._kept = self._read()

    def _read(self) -> list[Message]:
        return [_message(row) for row in self._rows.filter(id__gt=self._after).order_by("id")]


@contextmanager
def captured_events(using: str = DEFAULT_DB_ALIAS) -> Generator[CapturedEvents]:
    """Yield the events that are published inside, to be asked there and after it.

    ::

        with captured_events() as events:
            self.client.post("/orders/o-1")

        self.assertEqual(events.published(OrderPlaced), [OrderPlaced("o-1")])

    They are read from the table: in a TestCase too, which commits nothing; whoever wrote them; and without those that were
    rolled back. No relay may run meanwhile, which takes them away.

    :param using: The alias of the database, "default" by default.
    """
    events = CapturedEvents(using)
    yield events
    events.keep()


def _message(row: OutboxRow) -> Message:
    return Message(
        exchange=configured().exchange if row.exchange is None else row.exchange,
        routing_key=row.routing_key,
        body=bytes(row.body),
        properties=decode_properties(bytes(row.properties)),
        after=None if row.delay_ms is None else timedelta(milliseconds=row.delay_ms),
    )

"""The past as a source: what happened to a thing is kept, in order, and its state is made of that.

::

    store = EventStore(engine, events=[OrderPlaced, OrderPaid], outbox=outbox)

    await store.append("order", "42", [OrderPlaced("42")], expected=NEW)
    order = await store.rebuild("order", "42", apply, Order())

Events are appended under the version that the caller has seen, all of them or none. They are read again thing by thing, or
all in one order in which nothing that commits late is ever passed over; and the bus has them by the outbox.
"""

from rabbitevents_eventstore.appending import ANY, NEW, Expected
from rabbitevents_eventstore.asking import Transactional
from rabbitevents_eventstore.errors import ConcurrencyError, ProjectionBehindError, StoreRestoredError
from rabbitevents_eventstore.following import ProjectionStopped
from rabbitevents_eventstore.projection import Projection, projection
from rabbitevents_eventstore.projections import Projections
from rabbitevents_eventstore.rebuilding import Progress, RebuildError
from rabbitevents_eventstore.snapshots import Snapshots
from rabbitevents_eventstore.store import EventStore
from rabbitevents_eventstore.stored import Stored
from rabbitevents_eventstore.tables import EventTables
from rabbitevents_eventstore.watermark import StoreHeldBack

__all__ = [
    "ANY",
    "NEW",
    "ConcurrencyError",
    "EventStore",
    "EventTables",
    "Expected",
    "Progress",
    "Projection",
    "ProjectionBehindError",
    "ProjectionStopped",
    "Projections",
    "RebuildError",
    "Snapshots",
    "StoreHeldBack",
    "StoreRestoredError",
    "Stored",
    "Transactional",
    "projection",
]

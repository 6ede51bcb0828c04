"""Events and state in one transaction: what is published in it is sent if it commits, and what came is handled once.

::

    outbox = Outbox(engine)
    bus = Bus(url, orders, plugins=[DeadLetter(), Retry(), Inbox(sessions), outbox])

`Outbox` writes events into a table of your database, in your transaction, and relays them. `Inbox` gives each handler an
``AsyncSession`` whose transaction holds the mark that the event is handled, the handler's writes, and what it publishes.
"""

from rabbitevents_outbox.inbox import Inbox
from rabbitevents_outbox.outbox import Outbox
from rabbitevents_outbox.tables import Tables
from rabbitevents_outbox.transaction import TransactionError
from rabbitevents_sql import prepare_sqlite

__all__ = ["Inbox", "Outbox", "Tables", "TransactionError", "prepare_sqlite"]

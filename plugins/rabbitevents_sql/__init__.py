"""What the plugins on SQLAlchemy share: the databases that there are, their clock, tables whose version is known, and commits.

It is no plugin, and knows none.
"""

from rabbitevents_sql.clock import age, at, now
from rabbitevents_sql.commits import after_commit
from rabbitevents_sql.databases import AWAY, Backend, backend_of, prepare_sqlite, reason, short_turn_of, turn_of, where
from rabbitevents_sql.notify import Channel, Listener, Notifier
from rabbitevents_sql.tables import VersionedTables

__all__ = [
    "AWAY",
    "Backend",
    "Channel",
    "Listener",
    "Notifier",
    "VersionedTables",
    "after_commit",
    "age",
    "at",
    "backend_of",
    "now",
    "prepare_sqlite",
    "reason",
    "short_turn_of",
    "turn_of",
    "where",
]

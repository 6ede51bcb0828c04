"""The tables of `rabbitevents_outbox.Tables`, version 1, as SQL: Django's own operations cannot say all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import ProjectState

POSTGRESQL: Final = (
    """
CREATE TABLE rabbitevents_version (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
)
    """,
    """
CREATE TABLE rabbitevents_outbox (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    shard SMALLINT DEFAULT '0' NOT NULL,
    entity TEXT,
    event_id UUID NOT NULL,
    type TEXT NOT NULL,
    exchange TEXT,
    routing_key TEXT NOT NULL,
    properties BYTEA NOT NULL,
    body BYTEA NOT NULL,
    delay_ms BIGINT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    attempts SMALLINT DEFAULT '0' NOT NULL,
    next_try_at TIMESTAMP WITH TIME ZONE,
    last_error TEXT,
    dead_at TIMESTAMP WITH TIME ZONE,
    sent_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id)
)
 WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0)
    """,
    "CREATE INDEX rabbitevents_outbox_held ON rabbitevents_outbox (entity, id) WHERE attempts > 0 AND sent_at IS NULL",
    "CREATE INDEX rabbitevents_outbox_todo ON rabbitevents_outbox (shard, id) WHERE sent_at IS NULL AND dead_at IS NULL",
    """
CREATE TABLE rabbitevents_outbox_lease (
    shard SMALLINT NOT NULL,
    owner UUID,
    epoch BIGINT DEFAULT '0' NOT NULL,
    until TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (shard)
)
    """,
    """
CREATE TABLE rabbitevents_inbox (
    event_id UUID NOT NULL,
    subscription TEXT NOT NULL,
    handled_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (event_id, subscription)
)
    """,
    "CREATE INDEX rabbitevents_inbox_handled ON rabbitevents_inbox USING brin (handled_at)",
    "INSERT INTO rabbitevents_version (version) VALUES (1)",
)

SQLITE: Final = (
    """
CREATE TABLE rabbitevents_version (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
)
    """,
    """
CREATE TABLE rabbitevents_outbox (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    shard SMALLINT DEFAULT '0' NOT NULL,
    entity TEXT,
    event_id CHAR(32) NOT NULL,
    type TEXT NOT NULL,
    exchange TEXT,
    routing_key TEXT NOT NULL,
    properties BLOB NOT NULL,
    body BLOB NOT NULL,
    delay_ms BIGINT,
    created_at DATETIME DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now') || '000') NOT NULL,
    attempts SMALLINT DEFAULT '0' NOT NULL,
    next_try_at DATETIME,
    last_error TEXT,
    dead_at DATETIME,
    sent_at DATETIME
)
    """,
    "CREATE INDEX rabbitevents_outbox_held ON rabbitevents_outbox (entity, id) WHERE attempts > 0 AND sent_at IS NULL",
    "CREATE INDEX rabbitevents_outbox_todo ON rabbitevents_outbox (shard, id) WHERE sent_at IS NULL AND dead_at IS NULL",
    """
CREATE TABLE rabbitevents_outbox_lease (
    shard SMALLINT NOT NULL,
    owner CHAR(32),
    epoch BIGINT DEFAULT '0' NOT NULL,
    until DATETIME DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now') || '000') NOT NULL,
    PRIMARY KEY (shard)
)
    """,
    """
CREATE TABLE rabbitevents_inbox (
    event_id CHAR(32) NOT NULL,
    subscription TEXT NOT NULL,
    handled_at DATETIME DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now') || '000') NOT NULL,
    PRIMARY KEY (event_id, subscription)
)
    """,
    "CREATE INDEX rabbitevents_inbox_handled ON rabbitevents_inbox (handled_at)",
    "INSERT INTO rabbitevents_version (version) VALUES (1)",
)

DROP: Final = tuple(f"DROP TABLE rabbitevents_{name}" for name in ("inbox", "outbox_lease", "outbox", "version"))


class SQL(migrations.RunSQL):
    """SQL for one kind of database. One of a kind that has no outbox is left as it is; checks, and publishing, say so."""

    def __init__(self, vendor: str, sql: Sequence[str], reverse_sql: Sequence[str]) -> None:
        super().__init__(list(sql), list(reverse_sql))
        self.vendor = vendor

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        """Make the tables."""
        if schema_editor.connection.vendor == self.vendor:
            super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        """Drop them."""
        if schema_editor.connection.vendor == self.vendor:
            super().database_backwards(app_label, schema_editor, from_state, to_state)


class Migration(migrations.Migration):
    """Version 1 of the tables."""

    initial = True
    dependencies: ClassVar = []
    operations: ClassVar = [
        SQL("postgresql", POSTGRESQL, DROP),
        SQL("sqlite", SQLITE, DROP),
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.CreateModel(
                    "OutboxRow",
                    [
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("shard", models.SmallIntegerField(default=0)),
                        ("entity", models.TextField(null=True)),
                        ("event_id", models.UUIDField()),
                        ("type", models.TextField()),
                        ("exchange", models.TextField(null=True)),
                        ("routing_key", models.TextField()),
                        ("properties", models.BinaryField()),
                        ("body", models.BinaryField()),
                        ("delay_ms", models.BigIntegerField(null=True)),
                        ("created_at", models.DateTimeField()),
                        ("attempts", models.SmallIntegerField(default=0)),
                        ("next_try_at", models.DateTimeField(null=True)),
                        ("last_error", models.TextField(null=True)),
                        ("dead_at", models.DateTimeField(null=True)),
                        ("sent_at", models.DateTimeField(null=True)),
                    ],
                    {
                        "db_table": "rabbitevents_outbox",
                        "default_permissions": ("view",),
                        "ordering": ["id"],
                        "verbose_name": "event",
                        "verbose_name_plural": "events to be sent",
                    },
                )
            ]
        ),
    ]

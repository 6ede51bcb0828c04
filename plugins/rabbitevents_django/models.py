"""The outbox's rows, for the admin and for looking things up. Only `publish` writes them, and only the relay changes them."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar
from uuid import UUID

from django.db import models


class OutboxRow(models.Model):
    """An event that is to be sent, or was: `id` is the order of writing."""

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    shard: models.SmallIntegerField[int, int] = models.SmallIntegerField(default=0)
    entity: models.TextField[str | None, str | None] = models.TextField(null=True)
    event_id: models.UUIDField[UUID, UUID] = models.UUIDField()
    type: models.TextField[str, str] = models.TextField()
    exchange: models.TextField[str | None, str | None] = models.TextField(null=True)
    routing_key: models.TextField[str, str] = models.TextField()
    properties: models.BinaryField[bytes, bytes] = models.BinaryField()
    body: models.BinaryField[bytes, bytes] = models.BinaryField()
    delay_ms: models.BigIntegerField[int | None, int | None] = models.BigIntegerField(null=True)
    created_at: models.DateTimeField[datetime, datetime] = models.DateTimeField()
    attempts: models.SmallIntegerField[int, int] = models.SmallIntegerField(default=0)
    next_try_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    last_error: models.TextField[str | None, str | None] = models.TextField(null=True)
    dead_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)
    sent_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(null=True)

    class Meta:
        """As the migration has it."""

        db_table = "rabbitevents_outbox"
        default_permissions = ("view",)
        ordering: ClassVar = ["id"]
        verbose_name = "event"
        verbose_name_plural = "events to be sent"

    def __str__(self) -> str:
        return f"{self.type} {self.event_id}"

    @property
    def state(self) -> str:
        """What became of it: "waiting", "failed" (and tried again), "dead", or "sent"."""
        if self.sent_at is not None:
            return "sent"
        if self.dead_at is not None:
            return "dead"
        return "failed" if self.attempts else "waiting"

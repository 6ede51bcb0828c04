"""What waits to be sent, and what is dead, in the admin: to be looked at, never changed there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.contrib.admin.options import ModelAdmin
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from rabbitevents_django.models import OutboxRow

if TYPE_CHECKING:
    RowAdmin = ModelAdmin[OutboxRow]
else:
    RowAdmin = ModelAdmin  # which takes no parameter at run time

UNSENT = Q(sent_at=None)


class StateFilter(admin.SimpleListFilter):
    """Those in one state."""

    title = "state"
    parameter_name = "state"
    WAYS = {  # noqa: RUF012 - a constant, and read only
        "waiting": UNSENT & Q(dead_at=None, attempts=0),
        "failed": UNSENT & Q(dead_at=None, attempts__gt=0),
        "dead": UNSENT & Q(dead_at__isnull=False),
        "sent": Q(sent_at__isnull=False),
    }

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[OutboxRow]) -> list[tuple[str, str]]:
        """Return the states."""
        return [(state, state) for state in self.WAYS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[OutboxRow]) -> QuerySet[OutboxRow]:
        """Return the rows in the state that was chosen."""
        way = self.WAYS.get(self.value() or "")
        return queryset if way is None else queryset.filter(way)


@admin.register(OutboxRow)
class OutboxAdmin(RowAdmin):
    """The list of rows, without what they say."""

    list_display = ("id", "type", "state", "entity", "created_at", "attempts", "last_error")
    list_filter = (StateFilter,)
    search_fields = ("type", "entity")
    show_full_result_count = False
    fields = (
        *("id", "event_id", "type", "state", "entity", "exchange", "routing_key", "delay_ms", "created_at"),
        *("attempts", "next_try_at", "last_error", "dead_at", "sent_at"),
    )
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Only `publish` adds rows."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: OutboxRow | None = None) -> bool:
        """Only the relay changes them."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: OutboxRow | None = None) -> bool:
        """Only the relay deletes them."""
        return False

"""What a bus is told besides its broker, routers and plugins; `Bus` says what each means."""

from __future__ import annotations

import ssl
from datetime import timedelta
from typing import Literal, TypedDict

import msgspec

from rabbitevents.arguments import Seconds
from rabbitevents.publishing.publishing import Unroutable
from rabbitevents.wire import Form, Limits

Declare = Literal["active", "passive", "none"]
"""Whether a bus declares what it needs, only looks whether it is there, or neither (for tools that look into queues)."""


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a bus."""

    name: str
    exchange: str
    declare: Declare
    unroutable: Unroutable
    form: Form
    start_timeout: float
    publish_timeout: float
    grace: float
    consumer_timeout: timedelta
    delivery_limit: int
    in_flight: int
    limits: Limits
    ssl_context: ssl.SSLContext | None
    heartbeat: int

    @property
    def patience(self) -> float:
        """Seconds that a delivery stays in this process at most without being settled: half of the broker's timeout."""
        return self.consumer_timeout.total_seconds() / 2


class Told(TypedDict, total=False):
    """Those of the settings that are to be others, as keywords."""

    name: str
    exchange: str
    declare: Declare
    unroutable: Unroutable
    form: Form
    start_timeout: Seconds
    publish_timeout: Seconds
    grace: Seconds
    consumer_timeout: Seconds
    delivery_limit: int
    in_flight: int
    limits: Limits | None
    ssl_context: ssl.SSLContext | None
    heartbeat: Seconds

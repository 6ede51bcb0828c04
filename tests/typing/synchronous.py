"""Publishing from code that is not asynchronous."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any, assert_type

from rabbitevents import Event, Health
from rabbitevents.sync import SyncBus
from tests.typing.service import OrderPlaced


def view() -> None:
    with SyncBus("amqp://localhost", name="shop", plugins=[], publish_timeout=5) as bus:
        assert_type(bus, SyncBus)
        placed = bus.publish(OrderPlaced("o-1", Decimal(1)))
        assert_type(placed, Event[OrderPlaced])
        assert_type(bus.publish(placed, delay=timedelta(hours=1), timeout=5), Event[OrderPlaced])
        later = bus.publish(OrderPlaced("o-1", Decimal(1)), metadata={"tenant": "t"}, correlation_id="c")
        assert_type(later.payload.total, Decimal)
        assert_type(bus.publish_many([placed, OrderPlaced("o-2", Decimal(1))]), list[Event[Any]])
        assert_type(bus.health(), Health)
        bus.publish(OrderPlaced("o-1", Decimal(1)), delay="5")  # type: ignore[call-overload]


several = SyncBus(["amqps://a", "amqps://b"], unroutable="raise", form="cloudevents", declare="passive")
several.start()
several.close()
SyncBus("memory://", unroutable="never")  # type: ignore[arg-type]

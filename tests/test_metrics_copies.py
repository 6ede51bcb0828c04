"""A copy of an event is measured under the name by which the event was published first."""

from __future__ import annotations

from datetime import timedelta

from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import ACK, Bus, Delivery, Properties, Settlement, encode_properties
from rabbitevents.testing import running
from rabbitevents_deadletter import DeadLetter
from rabbitevents_metrics import Metrics
from rabbitevents_retry import Retry
from tests.test_metrics import Measured, measured
from tests.test_tracing import OrderPlaced, inventory, replay

__all__ = ["measured"]

DESTINATION = "events:order.placed:inventory.reserve"


async def test_retries_delays_and_replays_are_measured_under_the_first_name(measured: Measured) -> None:
    retry = Retry(stop=stop_after_attempt(2), wait=wait_fixed(30))
    plugins = [DeadLetter(), retry, Metrics(meter_provider=measured.provider)]
    async with running(Bus("memory://", inventory(fail=2), plugins=plugins)) as probe:
        await probe.bus.publish(OrderPlaced("o-1"), delay=timedelta(seconds=5))
        await probe.advance(timedelta(minutes=5))
        await replay(probe.bus, "inventory.reserve")
        await probe.advance(timedelta(minutes=5))

    named = {"messaging__destination__name": DESTINATION}
    assert measured.value("messaging.process.duration", **named) == 3
    assert measured.value("messaging.process.duration") == 3
    assert measured.value("messaging.client.consumed.messages", **named) == 3


async def test_a_copy_is_known_as_one_from_the_bytes_of_its_properties(measured: Measured) -> None:
    plugin = Metrics(meter_provider=measured.provider)
    origin = {"origin-exchange": "events", "origin-routing-key": "order.placed"}

    async def handled(_: Delivery) -> Settlement:
        return ACK

    async with running(Bus("memory://", inventory(), plugins=[plugin])):
        for exchange, key, headers in (("events", "order.placed", {}), ("", "inventory.reserve", origin)):
            raw = encode_properties(Properties(type="order.placed", headers=headers))
            await plugin.consume(handled, Delivery("inventory.reserve", 1, 1, False, exchange, key, b"{}", raw))

    assert measured.value("messaging.process.duration", messaging__destination__name=DESTINATION) == 2

"""The service that `tests.in_order` kills: it notes each step of each order, and fails at some of them at first."""

from __future__ import annotations

import asyncio
import os
import random

from attrs import frozen
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Delivery, Router, event
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry


@event("order.stepped", entity="order", key="order_id")
@frozen
class Stepped:
    order_id: str
    step: int


FAILING = 0.05
"""Which share of the events fails once, and is tried again after 0.2 s, away from a worker."""


def bus() -> Bus:
    ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    longest = float(os.environ.get("LONGEST", "0.005"))
    orders = Router("orders")

    partitions = int(os.environ.get("PARTITIONS", "1"))

    @orders.on(
        Stepped,
        ordered=True,
        single_active_consumer=True,
        partitions=partitions if partitions > 1 else None,
        concurrency=50 // partitions,
        prefetch=500 // partitions,
    )
    async def follow(stepped: Stepped, delivery: Delivery) -> None:
        if delivery.attempt == 1 and random.random() < FAILING:
            raise TimeoutError
        if longest:
            await asyncio.sleep(random.uniform(0, longest))
        os.write(ledger, f"{stepped.order_id} {stepped.step} {os.getpid()}\n".encode())

    retry = Retry(stop=stop_after_attempt(20), wait=wait_fixed(0.2), inline_below=0.05)
    return Bus(os.environ["AMQP_URL"], orders, plugins=[DeadLetter(), retry], grace=2)

"""What others learn of it: the core, where no plugin takes what is given up on, observers, and the log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from tenacity import (
    stop_after_attempt,
    stop_after_delay,
    wait_chain,
    wait_fixed,
)

from rabbitevents import (
    Bus,
    Delivery,
    Router,
    facts,
)
from rabbitevents.consuming import holding
from rabbitevents.testing import running
from rabbitevents.testing.bench import eventually
from rabbitevents_retry import Retry
from tests.test_retry import PaymentDue, Service, Witness, always, through

# --- without dead letters ---------------------------------------------------------------------------------------------


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(holding, "LONGEST_PAUSE", 0.01)


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("stop", [stop_after_attempt(3), stop_after_delay(0.02)], ids=["attempts", "time"])
async def test_without_dead_letters_what_is_given_up_on_is_tried_once_after_each_pause(stop: Any) -> None:
    attempts, retried = list[int](), Witness()
    router, healed = Router("till"), asyncio.Event()

    @router.on(PaymentDue)
    async def pay(payment: PaymentDue, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if not healed.is_set():
            raise ConnectionError

    bus = Bus("memory://", router, plugins=[Retry(stop=stop, wait=wait_fixed(0.01)), retried])
    async with running(bus) as probe:
        await probe.bus.publish(PaymentDue(1))
        await eventually(lambda: bool(probe.bus.health().problems), "it to be held")
        by_policy = len(retried.retries)
        await eventually(lambda: len(attempts) >= by_policy + 5, "more attempts")

        assert attempts == list(range(1, len(attempts) + 1))
        assert len(retried.retries) == by_policy  # the policy was not begun again

        healed.set()
        await eventually(lambda: probe.bus.health().ok, "the end")


async def test_what_was_given_up_on_is_not_remembered_for_ever() -> None:
    retry = Retry(stop=stop_after_attempt(1))
    service = Service(retry, always)

    async with service.running() as probe:
        await probe.bus.publish_many([PaymentDue(n) for n in range(1500)])
        await probe.settled()

    remembered: list[dict[Any, Any]] = [each for each in vars(retry).values() if isinstance(each, dict)]
    assert service.dead == 1500
    assert sum(map(len, remembered)) == 1000


# --- facts and logs ---------------------------------------------------------------------------------------------------


async def test_each_retry_is_reported() -> None:
    service = Service(Retry(stop=stop_after_attempt(3), wait=wait_chain(wait_fixed(0.001), wait_fixed(60))), always)

    probe = await through(service)

    id = probe.messages[0].id
    assert service.witness.retries == [
        facts.Retried("till.pay", "payment.due", id, 1, 0.001, "ConnectionError", True),
        facts.Retried("till.pay", "payment.due", id, 2, 60, "ConnectionError", False),
    ]


async def test_a_line_for_each_retry_names_the_event_and_not_what_failed_in_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service(Retry(stop=stop_after_attempt(3), wait=wait_chain(wait_fixed(0.001), wait_fixed(60))), always)

    with caplog.at_level(logging.INFO, "rabbitevents.retry"):
        probe = await through(service)

    name = f"payment.due {probe.messages[0].id} from queue 'till.pay' failed with ConnectionError"
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "rabbitevents.retry"]
    assert lines == [
        ("INFO", f"{name} at attempt 1 and is tried again after 0.001 s in this process"),
        ("INFO", f"{name} at attempt 2 and is tried again after 60 s at the broker"),
        ("INFO", f"{name} at attempt 3 and is given up"),
    ]
    assert "closed" not in caplog.text

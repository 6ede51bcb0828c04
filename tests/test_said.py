"""What is said of a broker that is away and comes back, and of a queue that stands otherwise: once, at once, and true."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from tenacity import wait_fixed

from rabbitevents import Bus, Router
from rabbitevents.brokers import Settings
from rabbitevents.brokers.rabbitmq import link
from rabbitevents.brokers.rabbitmq.broker import RabbitMQ
from rabbitevents.cli.process import story_of
from rabbitevents.topology import Queue, Topology
from tests.bed.fake_broker import FakeBroker
from tests.bed.proxy import Proxy
from tests.bed.rabbitmq import RabbitNode
from tests.shop import Effects, OrderPlaced, eventually, recording

Through = Callable[[str], Awaitable[Proxy]]


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """What the library said as loud as ``level``."""
    return [each.getMessage() for each in caplog.records if each.levelno >= level and each.name.startswith("rabbit")]


async def test_a_broker_that_is_away_is_said_after_the_first_try_and_so_is_its_coming(
    fake_broker: FakeBroker, proxy: Through, caplog: pytest.LogCaptureFixture
) -> None:
    through = await proxy(fake_broker.url)
    await through.refuse()
    url = through.url_for(fake_broker.url).replace("guest:guest@", "guest:hunter2@")
    bus = Bus(url, recording(Effects()), grace=1, start_timeout=20)
    starting = asyncio.create_task(bus.start())

    await eventually(lambda: bool(said(caplog)), "the warning", 3)
    await asyncio.wait({starting}, timeout=1.5)  # several tries; they are not said one by one
    while_away = said(caplog)
    await through.accept()
    await starting
    await bus.stop()

    [away] = while_away
    assert away.startswith("no publish connection: ")
    assert "nobody listens there" in away
    assert away.endswith("; tried again for up to 20 s")
    back = [text for text in said(caplog) if "publish connection" in text and "stands" in text]
    assert len(back) == 1
    assert re.search(r"stands, after \d+\.\d s$", back[0])
    assert "hunter2" not in caplog.text


async def test_a_broker_that_stays_away_is_said_at_growing_pauses(
    fake_broker: FakeBroker, proxy: Through, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SAY_AGAIN", 0.2)
    monkeypatch.setattr(link, "BACKOFF", wait_fixed(0.02))
    through = await proxy(fake_broker.url)
    async with Bus(through.url_for(fake_broker.url), name="web", grace=1):
        await through.refuse()
        through.cut()
        await eventually(lambda: len([t for t in said(caplog) if t.startswith("no publish")]) == 4, "the fourth time")
        times = [each.created for each in caplog.records if each.getMessage().startswith("no publish")]

    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[1] > pauses[0]
    assert pauses[2] > pauses[1]
    assert all(text.endswith("tried again until it is there") for text in said(caplog) if text.startswith("no publish"))


async def test_connections_and_subscriptions_are_back_as_loud_as_they_were_lost(
    fake_broker: FakeBroker, proxy: Through, caplog: pytest.LogCaptureFixture
) -> None:
    through = await proxy(fake_broker.url)

    async with Bus(through.url_for(fake_broker.url), recording(Effects()), grace=1) as bus:
        assert said(caplog) == []
        through.cut()
        await eventually(lambda: not bus.health().ok, "the loss")
        await eventually(lambda: bus.health().ok, "the recovery")
        during = said(caplog)

    for thing in ("publish connection", "consume connection"):
        assert len([text for text in during if thing in text and " lost: " in text]) == 1
        assert (
            len([text for text in during if thing in text and re.search(r"stands again, after \d+\.\d s$", text)]) == 1
        )
    assert len([text for text in during if text.startswith("the consumer of 'shop.record' is gone: ")]) == 1
    assert (
        len([text for text in during if re.match(r"the consumer of 'shop.record' is back, after \d+\.\d s$", text)])
        == 1
    )
    assert said(caplog) == during  # to stop is no loss


async def test_a_queue_that_stands_otherwise_is_said_once_and_the_summary_does_not_claim_it(
    rabbit_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = RabbitMQ(rabbit_url)
    await other.start(Settings(), None)
    await other.declare(Topology((Queue("shop.record", {"x-queue-type": "quorum", "x-delivery-limit": 7}),)))
    router = Router("other")

    @router.on(OrderPlaced)
    async def note(order: OrderPlaced) -> None: ...

    async with Bus(rabbit_url, recording(Effects()), router, grace=1) as bus:
        first, *rest = story_of(bus, in_short=False)
        await asyncio.sleep(1)  # it is tried again meanwhile
        problems = [check.name for check in bus.health().problems]
    await other.stop(asyncio.get_running_loop().time() + 2)

    assert len([text for text in said(caplog, logging.ERROR) if "exists with other arguments" in text]) == 1
    assert problems == ["consumer shop.record"]
    assert first.endswith("; 2 queues, of which 1 is not consumed")
    assert [line.partition(" (")[0] for line in rest] == [
        "queue shop.record does not feed record",
        "queue other.note feeds note",
    ]


async def test_a_queue_that_stood_otherwise_is_said_to_be_consumed_once_it_is(
    rabbit_url: str, rabbit_node: RabbitNode, caplog: pytest.LogCaptureFixture
) -> None:
    other = RabbitMQ(rabbit_url)
    await other.start(Settings(), None)
    await other.declare(Topology((Queue("shop.record", {"x-queue-type": "classic"}),)))
    await other.stop(asyncio.get_running_loop().time() + 2)

    async with Bus(rabbit_url, recording(Effects()), grace=1) as bus:
        assert not bus.health().ok
        await rabbit_node.adelete_queue("shop.record", rabbit_url)
        await eventually(lambda: bus.health().ok, "the queue that was deleted", 40)

    assert len([text for text in said(caplog, logging.ERROR) if "exists with other arguments" in text]) == 1
    assert any(text.startswith("the consumer of 'shop.record' is back, after ") for text in said(caplog))

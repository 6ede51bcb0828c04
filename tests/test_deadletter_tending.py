"""Dead letters while a service runs: what the broker brought is said, delay.lost is in sight, and old ones end in a file."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rabbitevents import (
    Browsing,
    Bus,
    ConfigurationError,
    Event,
    Fact,
    HeaderValue,
    Limits,
    Message,
    Plugin,
    Properties,
    Router,
    UnroutableError,
    facts,
)
from rabbitevents.brokers.embedded.broker import Failure
from rabbitevents.testing import EmbeddedBroker
from rabbitevents_deadletter import DeadLetter, DeadLetters, EventProcessingFailed, read_lines, tending
from tests.deadletters import DEAD, QUEUE, Place, failing, ids, letters, of, put, raw, until
from tests.shop import Effects, OrderPlaced, eventually, recording


@pytest.fixture(params=["embedded", "rabbitmq"])
def place(request: pytest.FixtureRequest) -> Place:
    """Both brokers."""
    if request.param == "embedded":
        return EmbeddedBroker()
    url: str = request.getfixturevalue("rabbit_url")
    return url


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look after dead letter queues without long pauses."""
    monkeypatch.setattr(tending, "FIRST", 0.01)
    monkeypatch.setattr(tending, "PAUSE", 0.05)


class Noted(Plugin):
    """Notes which events were given up on."""

    def __init__(self) -> None:
        self.dead: list[facts.DeadLettered] = []

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, facts.DeadLettered):
            self.dead.append(fact)


def expiring(id: str, body: bytes = b'{"order_id": "o"}') -> Message:
    """An event that lives for a millisecond."""
    properties = Properties(type="order.placed", message_id=id, expiration="1")
    return Message(exchange="events", routing_key="order.placed", body=body, properties=properties)


async def expired(place: Place, *given: Message) -> None:
    """Have events die of their age in a queue whose service is not there."""
    async with Bus(of(place), recording(Effects())) as bus:
        await bus.pause(QUEUE)
        for message in given:
            await bus.send(message)
        await until(bus, len(given))


def health_of(bus: Bus, queue: str) -> Sequence[str]:
    """What health says of a queue's dead letters."""
    return [check.detail for check in bus.health().checks if check.name == f"dead letters {queue}"]


# --- what the broker brought ---------------------------------------------------------------------------------------


async def test_what_the_broker_gave_up_on_is_reported_announced_and_labelled_once(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await expired(place, expiring("id-0"), expiring("id-1"))
    noted, told = Noted(), list[EventProcessingFailed]()
    router = recording(Effects())

    @router.on(EventProcessingFailed)
    async def tell(failed: Event[EventProcessingFailed]) -> None:
        told.append(failed.payload)

    async with Bus(of(place), router, plugins=[DeadLetter(announce=True), noted]) as bus:
        await eventually(lambda: len(told) == 2, "both announcements")
        await eventually(lambda: bool(health_of(bus, DEAD)), "a line of health")
        said = health_of(bus, DEAD)

    found = await letters(place)
    assert said == ["2 were given up on (rabbitevents dlq)"]
    assert [(fact.subscription, fact.type, fact.reason) for fact in noted.dead] == [
        (QUEUE, "order.placed", "expired")
    ] * 2
    assert [(each.queue, each.error, each.attempts) for each in told] == [(QUEUE, "expired", 1)] * 2
    assert [(each.id, each.reason, each.error, each.type) for each in found] == [
        ("id-0", "expired", "", "order.placed"),
        ("id-1", "expired", "", "order.placed"),
    ]
    assert all(each.headers["dead-letter-reason"] == "expired" for each in found)
    assert [each.exchange for each in found] == ["events"] * 2
    assert "order.placed id-0 in 'shop.record.dead' was given up on by the broker (expired)" in caplog.text


async def test_a_labelled_letter_is_replayed_as_the_event_that_it_was(place: Place) -> None:
    await expired(place, expiring("id-0"))
    noted, done = Noted(), Effects()
    async with Bus(of(place), recording(done), plugins=[DeadLetter(), noted]) as bus:
        await eventually(lambda: len(noted.dead) == 1, "its label")
        result = await DeadLetters(bus, QUEUE).replay()
        await done.until(1)

    assert result.done == 1
    assert done.done == {"o": 1}
    assert await letters(place) == []


async def test_of_several_processes_one_reports_what_the_broker_brought(place: Place) -> None:
    await expired(place, *(expiring(f"id-{i}") for i in range(20)))
    noted = [Noted(), Noted(), Noted()]

    async def replica(each: Noted) -> None:
        async with Bus(of(place), recording(Effects()), plugins=[DeadLetter(), each]) as bus:
            await eventually(lambda: bool(health_of(bus, DEAD)), "its look")
            await eventually(lambda: sum(len(each.dead) for each in noted) >= 20, "all of them")
            await asyncio.sleep(0.3)  # as long as five further looks take

    await asyncio.gather(*map(replica, noted))

    found = sorted(fact.id for each in noted for fact in each.dead)
    assert len(found) == len(set(found)) == 20


async def test_what_can_have_no_label_stays_as_it_came(rabbit_url: str) -> None:
    await expired(rabbit_url, expiring("large", b"x" * 2_000), expiring("small"))
    noted = Noted()
    limits = Limits(body=1_000)

    async with Bus(rabbit_url, recording(Effects()), plugins=[DeadLetter(), noted], limits=limits) as bus:
        await eventually(lambda: len(noted.dead) == 1, "the other one's label")
        await until(bus, 2)

    assert {each.id: (each.reason, each.size) for each in await letters(rabbit_url)} == {
        "large": ("expired", 2_000),
        "small": ("expired", 17),
    }


async def test_a_service_does_not_look_into_its_own_dead_letters() -> None:
    looks: list[str] = []

    class Watched(Bus):
        def browse(self, queue: str, /, *, hold: int = 1000) -> Browsing:
            looks.append(queue)
            return super().browse(queue, hold=hold)

    async with Watched("memory://", failing(), plugins=[DeadLetter()]) as bus:
        for number in range(5):
            await bus.publish(OrderPlaced(f"o-{number}"))
        await eventually(lambda: health_of(bus, DEAD) == ["5 were given up on (rabbitevents dlq)"], "its count")
        await asyncio.sleep(0.2)

    assert looks == []


@pytest.mark.parametrize("failure", ["refuse", "return", "lose"])
async def test_a_label_that_fails_is_tried_again(failure: Failure, caplog: pytest.LogCaptureFixture) -> None:
    server = EmbeddedBroker()
    await expired(server, expiring("id-0"), expiring("id-1"))
    server.fail(failure, when=lambda message: message.routing_key == DEAD)
    noted = Noted()

    async with Bus(server.client(), recording(Effects()), plugins=[DeadLetter(), noted]) as bus:
        await eventually(lambda: len(noted.dead) >= 2, "both labels")
        await eventually(lambda: bool(health_of(bus, DEAD)), "a line of health")

    assert {each.id for each in await letters(server)} == {"id-0", "id-1"}
    assert all("dead-letter-reason" in each.headers for each in await letters(server))
    assert "the dead letters of shop.record could not be looked after" in caplog.text


async def test_a_stand_in_looks_after_its_own_queue_and_the_bus_s_one_after_the_others(tmp_path: Path) -> None:
    server = EmbeddedBroker()
    router = Router("shop")
    own = DeadLetter(keep=timedelta(days=1), archive=tmp_path)

    @router.on(OrderPlaced, plugins=[own])
    async def record(order: OrderPlaced) -> None:
        raise ValueError

    @router.on(OrderPlaced)
    async def note(order: OrderPlaced) -> None:
        raise ValueError

    async with Bus(server.client(), router, plugins=[DeadLetter()]) as bus:
        await bus.publish(OrderPlaced("o"))
        await until(bus, 1)
        await until(bus, 1, "shop.note.dead")
        names = [check.name for check in bus.health().checks if check.name.startswith("dead letters")]

    assert sorted(names) == ["dead letters shop.note.dead", "dead letters shop.record.dead"]


# --- delay.lost ----------------------------------------------------------------------------------------------------


async def test_what_is_lost_is_reported_and_in_health_and_replayed_to_the_queue_that_is_there_now(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    noted, done = Noted(), Effects()
    headers: dict[str, HeaderValue] = {"origin-exchange": "events", "origin-routing-key": "order.placed", "attempt": 2}
    async with Bus(of(place), recording(done), plugins=[DeadLetter(), noted]) as bus:
        for number in range(2):  # retries that wait for a queue that was renamed meanwhile
            properties = Properties(type="order.placed", message_id=f"id-{number}", headers=headers)
            copy = raw(b'{"order_id": "o-%d"}' % number, queue="shop.old", properties=properties)
            await bus.send(msgspec.structs.replace(copy, after=timedelta(milliseconds=1)))
        await eventually(lambda: len(noted.dead) == 2, "both of them")
        await eventually(lambda: bool(health_of(bus, "delay.lost")), "a line of health")
        said = health_of(bus, "delay.lost")
        dead = DeadLetters(bus, "delay.lost")
        first, second = await dead.find()
        with pytest.raises(UnroutableError, match=r"shop\.old"):
            await dead.replay()
        result = await dead.replay(to=QUEUE)
        await done.until(2)

    assert said == ["2 came back when their queue was gone (rabbitevents dlq)"]
    assert {fact.subscription for fact in noted.dead} == {"shop.old"}
    assert {first.id, second.id} == {"id-0", "id-1"}
    assert (first.queue, first.reason, first.exchange, first.type) == ("shop.old", "lost", "events", "order.placed")
    assert result.done == 2
    assert "id-0 in 'delay.lost' was given up on by the broker (lost)" in caplog.text


async def test_a_delayed_event_that_nobody_was_there_for_is_published_again(place: Place) -> None:
    noted, done = Noted(), Effects()
    other = Router("other")

    @other.on("nothing")
    async def record() -> None:
        """Handle nothing."""

    async with Bus(of(place), other, plugins=[DeadLetter(), noted]) as bus:
        event = Message(
            exchange="events",
            routing_key="order.placed",
            body=b'{"order_id": "o"}',
            properties=Properties(type="order.placed", message_id="id-0"),
            after=timedelta(milliseconds=1),
        )
        await bus.send(event)
        await eventually(lambda: len(noted.dead) == 1, "the loss")

    async with Bus(of(place), recording(done)) as bus:
        result = await DeadLetters(bus, "delay.lost").replay()
        await done.until(1)

    assert result.done == 1


# --- retention -----------------------------------------------------------------------------------------------------


async def test_what_is_older_than_it_is_kept_is_in_a_file_and_then_gone(place: Place, tmp_path: Path) -> None:
    for number, days in enumerate((31, 29)):
        failed_at = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        headers: dict[str, HeaderValue] = {"dead-letter-error": "E", "dead-letter-failed-at": failed_at}
        async with Bus(of(place), recording(Effects())):
            pass
        await put(place, raw(b"{}", queue=DEAD, properties=Properties(message_id=f"id-{number}", headers=headers)))
    await put(place, raw(b"{}", queue=DEAD, properties=Properties(message_id="ageless")))

    async with Bus(
        of(place), recording(Effects()), plugins=[DeadLetter(keep=timedelta(days=30), archive=tmp_path)]
    ) as bus:
        await until(bus, 2)
        await eventually(lambda: health_of(bus, DEAD) == ["2 were given up on (rabbitevents dlq)"], "the count")

    [file] = tmp_path.iterdir()  # noqa: ASYNC240
    assert file.name.startswith("shop.record.dead-")
    assert [each.id for each in read_lines(file)] == ["id-0"]
    assert ids(await letters(place)) == ["id-1", "ageless"]


async def test_nothing_is_taken_out_that_could_not_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server, folder = EmbeddedBroker(), tmp_path / "archive"
    folder.mkdir()
    plugin = DeadLetter(keep=timedelta(milliseconds=1), archive=folder)
    folder.rmdir()

    async with Bus(server.client(), failing(), plugins=[plugin]) as bus:
        await bus.publish(OrderPlaced("o"))
        await eventually(lambda: "could not be looked after" in caplog.text, "its complaint")
        await until(bus, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"keep": timedelta(days=1)}, "go together"),
        ({"archive": "."}, "go together"),
        ({"keep": timedelta(0), "archive": "."}, "keep=0:00:00: say seconds, more than 0"),
        ({"keep": timedelta(days=1), "archive": "/no/such/folder"}, "there is no such folder"),
    ],
)
def test_a_retention_that_means_nothing_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        DeadLetter(**arguments)

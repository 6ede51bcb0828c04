"""Looking into dead letter queues, replaying, discarding and exporting: on the embedded broker and on RabbitMQ."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rabbitevents import (
    REJECT,
    REQUEUE,
    BrokerError,
    Bus,
    ConfigurationError,
    Consume,
    Delivery,
    HeaderValue,
    Limits,
    Message,
    Plugin,
    Properties,
    RefusedError,
    Router,
    Settlement,
    UnroutableError,
)
from rabbitevents.testing import EmbeddedBroker
from rabbitevents_deadletter import DeadLetterMessage, DeadLetters, Lines, Result, Selection, read_lines
from rabbitevents_deadletter.labels import LABELS
from rabbitevents_deadletter.workbench import deadletters
from tests.deadletters import (
    DEAD,
    QUEUE,
    PaymentError,
    Place,
    failing,
    fill,
    ids,
    letters,
    of,
    put,
    raw,
    ready,
    service,
    shop,
    tools,
    until,
)
from tests.shop import Effects, OrderPlaced, eventually, recording


@pytest.fixture(params=["embedded", "rabbitmq"])
def place(request: pytest.FixtureRequest) -> Place:
    """Both brokers."""
    if request.param == "embedded":
        return EmbeddedBroker()
    url: str = request.getfixturevalue("rabbit_url")
    return url


# --- looking -------------------------------------------------------------------------------------------------------


async def test_a_summary_counts_by_error_and_type_and_leaves_everything(place: Place) -> None:
    async def record(order: OrderPlaced) -> None:
        raise KeyError if order.order_id == "o-0" else PaymentError

    async with service(place, shop(record)) as bus:
        await bus.publish_many([OrderPlaced(f"o-{i}") for i in range(3)])
        await until(bus, 3)
    async with tools(place) as dead:
        summary = await dead.summary()
        narrowed = await dead.summary(Selection(errors=("KeyError",)))

    assert (summary.queue, summary.there, summary.looked_at) == (DEAD, 3, 3)
    counts = [(group.error, group.type, group.count) for group in summary.groups]
    assert counts == [("tests.deadletters.PaymentError", "order.placed", 2), ("KeyError", "order.placed", 1)]
    [first, *_] = summary.groups
    assert first.oldest is not None
    assert first.newest is not None
    assert first.oldest <= first.newest
    assert [group.error for group in narrowed.groups] == ["KeyError"]
    assert await ready(place) == 3


async def test_letters_are_found_in_order_and_one_by_its_id(place: Place) -> None:
    await fill(place, 5)
    async with tools(place) as dead:
        first = ids(await dead.find(limit=2))
        one = await dead.get("ID-3")
        none = await dead.get("id-9")

    assert first == ["id-0", "id-1"]
    assert one is not None
    assert one.body == b'{"order_id": "o-3"}'
    assert none is None
    assert await ready(place) == 5


async def test_a_look_sees_the_whole_queue_however_little_it_holds(place: Place) -> None:
    await fill(place, 10)
    async with tools(place, hold=4) as dead:
        summary = await dead.summary()
        one = await dead.get("id-9")
        replayed = await dead.replay(Selection(ids=("id-9", "id-3")))
        discarded = await dead.discard(Selection(ids=("id-8", "id-0")))

    assert (summary.there, summary.looked_at, summary.partial) == (10, 10, False)
    assert one is not None
    assert (replayed.looked_at, replayed.unseen, replayed.ended, replayed.done) == (10, 0, "", 2)
    assert (discarded.looked_at, discarded.done) == (8, 2)
    assert ids(await letters(place)) == ["id-1", "id-2", "id-4", "id-5", "id-6", "id-7"]


async def test_without_its_queue_there_is_one_line(place: Place) -> None:
    async with tools(place) as dead:
        with pytest.raises(ConfigurationError, match=r"there is no queue 'shop\.record\.dead'"):
            await dead.summary()


class Verdict(Plugin):
    """Settles every delivery in one way."""

    def __init__(self, settlement: Settlement) -> None:
        self.settlement = settlement

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        return self.settlement


class Hangs(Plugin):
    """Keeps every delivery until its connection is lost: what every version counts (from 4.3 on, not a give-back)."""

    def __init__(self) -> None:
        self.kept = 0
        self._lost = asyncio.Event()

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        self.kept += 1
        await self._lost.wait()
        return REQUEUE

    async def lose_its_connection(self, place: Place, request: pytest.FixtureRequest) -> None:
        """Lose the connection with a delivery on it, twice."""
        for number in (1, 2):
            await eventually(lambda number=number: self.kept == number, "a delivery")  # type: ignore[misc]
            if isinstance(place, EmbeddedBroker):
                place.drop_connections()
            else:
                await request.getfixturevalue("rabbit_node").aclose_all_connections()
        self._lost.set()


@pytest.mark.parametrize("reason", ["rejected", "delivery_limit", "expired"])
async def test_what_the_broker_gave_up_on_is_shown_with_its_reason_and_replayed_as_what_it_was(
    reason: str, place: Place, request: pytest.FixtureRequest
) -> None:
    done = Effects()
    properties = Properties(message_id="id-0", expiration="1" if reason == "expired" else None)
    event = Message(exchange="events", routing_key="order.placed", body=b'{"order_id": "o"}', properties=properties)
    plugin = Hangs() if reason == "delivery_limit" else Verdict(REJECT)
    async with Bus(of(place), recording(done), plugins=[plugin], delivery_limit=1, grace=0.1) as bus:
        if reason == "expired":
            await bus.pause(QUEUE)
        await bus.send(event)
        if isinstance(plugin, Hangs):
            await plugin.lose_its_connection(place, request)
            await eventually(lambda: bus.health().ok, "the connections")
        await until(bus, 1)

    [letter] = await letters(place)
    async with Bus(of(place), recording(done), delivery_limit=1), tools(place) as dead:
        result = await dead.replay()
        await done.until(1)

    assert (letter.reason, letter.error, letter.cause) == (reason, "", reason)
    assert (letter.id, letter.type, letter.exchange) == ("id-0", "order.placed", "events")
    assert letter.failed_at is not None
    assert result.done == 1
    assert done.done == {"o": 1}


async def test_a_forged_death_is_not_believed(place: Place) -> None:
    await fill(place, 0)
    death: dict[str, HeaderValue] = {
        "queue": QUEUE,
        "reason": "delivery_limit",
        "count": 999,
        "exchange": "admin",
        "routing-keys": ["x"],
    }
    await put(place, raw(b"{}", queue=DEAD, properties=Properties(headers={"x-death": [death]})))

    [letter] = await letters(place)

    assert (letter.reason, letter.exchange, letter.error) == ("unknown", "", "")


# --- replaying -----------------------------------------------------------------------------------------------------


async def test_a_replay_reaches_the_handler_that_failed_and_no_other_as_a_first_attempt(place: Place) -> None:
    repaired = False
    seen: list[Delivery] = []
    other: list[str] = []
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced, delivery: Delivery) -> None:
        if not repaired:
            raise PaymentError
        seen.append(delivery)

    @router.on(OrderPlaced)
    async def note(order: OrderPlaced) -> None:
        other.append(order.order_id)

    async with service(place, router) as bus:
        sent = await bus.publish(OrderPlaced("o-1"), metadata={"tenant": "blue"})
        await until(bus, 1)
        repaired = True
        async with tools(place) as dead:
            result = await dead.replay()
        await until(bus, 0)
        await eventually(lambda: bool(seen), "the replayed event")

    [delivery] = seen
    assert (result.there, result.meant, result.done, result.ended) == (1, 1, 1, "")
    assert other == ["o-1"]
    assert delivery.attempt == 1
    assert delivery.id == sent.id
    assert (delivery.exchange, delivery.routing_key) == ("events", "order.placed")
    assert delivery.headers["replay-count"] == 1
    assert delivery.headers["meta-tenant"] == "blue"
    assert not set(LABELS) & set(delivery.headers)


async def test_what_fails_again_at_once_is_replayed_once(place: Place) -> None:
    await fill(place, 20)
    async with service(place, failing()) as bus, tools(place) as dead:
        result = await dead.replay()
        await until(bus, 20)

    found = await letters(place)

    assert (result.there, result.done) == (20, 20)
    assert [letter.replayed for letter in found] == [1] * 20
    assert [letter.attempts for letter in found] == [1] * 20
    assert sorted(ids(found)) == sorted(f"id-{i}" for i in range(20))


async def test_only_what_is_meant_is_replayed_up_to_the_limit(place: Place) -> None:
    await fill(place, 6)
    async with tools(place) as dead:
        result = await dead.replay(Selection(ids=("id-1", "id-3", "id-5")), limit=2)

    assert (result.meant, result.done, result.ended) == (2, 2, "limit")
    assert ids(await letters(place)) == ["id-0", "id-2", "id-4", "id-5"]
    assert await ready(place, QUEUE) == 2


async def test_a_dry_run_says_what_it_would_and_does_nothing(place: Place) -> None:
    await fill(place, 3)
    told: list[str] = []

    def watch(result: Result, letter: DeadLetterMessage | None) -> None:
        if letter is not None:
            told.append(letter.id)

    async with tools(place) as dead:
        replayed = await dead.replay(Selection(ids=("id-1",)), dry_run=True, watch=watch)
        discarded = await dead.discard(dry_run=True)

    assert told == ["id-1"]
    assert (replayed.meant, replayed.done) == (1, 0)
    assert (discarded.meant, discarded.done) == (3, 0)
    assert ids(await letters(place)) == ["id-0", "id-1", "id-2"]
    assert await ready(place, QUEUE) == 0


async def test_an_edited_body_goes_in_the_place_of_the_event_s_own(place: Place) -> None:
    await fill(place, 2)
    async with tools(place) as dead:
        await dead.replay(bodies={"ID-0": b'{"order_id": "edited"}', "id-1": b'{"order_id": "o-1"}'})
    handled: dict[str, object] = {}
    router = Router("shop")

    @router.on(OrderPlaced)
    async def record(order: OrderPlaced, delivery: Delivery) -> None:
        handled[order.order_id] = delivery.headers.get("replay-edited")

    async with service(place, router) as bus:
        await eventually(lambda: len(handled) == 2, "both events")
        assert bus.health().ok

    assert handled == {"edited": True, "o-1": None}


async def test_no_more_than_the_rate_are_replayed_in_a_second(place: Place) -> None:
    await fill(place, 4)
    times: list[float] = []

    def watch(result: Result, letter: DeadLetterMessage | None) -> None:
        times.append(asyncio.get_running_loop().time())

    async with tools(place) as dead:
        await dead.replay(rate=5, watch=watch)

    assert times[-1] - times[0] > 0.5  # three pauses of 0.2 s, but for how long the first one's confirm took


async def test_a_replay_that_is_refused_takes_away_neither_that_letter_nor_a_later_one() -> None:
    server = EmbeddedBroker()
    await fill(server, 3)
    server.fail("refuse", when=lambda message: message.id == "id-1")
    async with tools(server) as dead:
        with pytest.raises(RefusedError):
            await dead.replay()

    assert ids(await letters(server)) == ["id-1", "id-2"]
    assert await ready(server, QUEUE) == 1


async def test_when_the_queue_that_failed_is_gone_the_letters_stay() -> None:
    server = EmbeddedBroker()
    await fill(server, 3)
    server.delete_queue(QUEUE)
    async with tools(server) as dead:
        with pytest.raises(UnroutableError, match=r"queue 'shop\.record'"):
            await dead.replay()

    assert ids(await letters(server)) == ["id-0", "id-1", "id-2"]


async def test_what_cannot_be_replayed_stays_and_keeps_nothing_else_back(place: Place) -> None:
    await fill(place, 1)
    async with Bus(of(place), declare="none", limits=Limits(headers=100_000)) as bus:
        await bus.send(raw(b"{}", queue=DEAD, properties=Properties(message_id="long", headers={"h": "x" * 70_000})))
    await put(place, raw(b"{}", queue=DEAD, properties=Properties(message_id="last")))
    async with tools(place) as dead:
        result = await dead.replay()

    [(id, why)] = result.refused
    assert id == "long"
    assert "headers are 70," in why
    assert result.done == 2
    assert ids(await letters(place)) == ["long"]


async def test_a_replay_that_is_cancelled_ends_after_the_current_one(place: Place) -> None:
    await fill(place, 10)
    reached = asyncio.Event()
    last: list[Result] = []

    def watch(result: Result, letter: DeadLetterMessage | None) -> None:
        last.append(result)
        if result.done == 3:
            reached.set()

    async with tools(place) as dead:
        replaying = asyncio.ensure_future(dead.replay(watch=watch))
        await reached.wait()
        replaying.cancel()
        await asyncio.wait({replaying})

    assert replaying.cancelled()
    done = last[-1].done
    assert 3 <= done <= 4
    left = ids(await letters(place))
    assert left == [f"id-{i}" for i in range(done, 10)]
    assert await ready(place, QUEUE) == done


async def test_cancelled_between_a_publish_and_its_confirm_it_waits_for_the_confirm() -> None:
    server = EmbeddedBroker()
    await fill(server, 3)
    async with tools(server) as dead:
        replaying = asyncio.ensure_future(dead.replay())

        def cancel(message: Message) -> None:
            replaying.cancel()

        server.witnesses.append(cancel)
        await asyncio.wait({replaying})

    assert replaying.cancelled()
    assert ids(await letters(server)) == ["id-1", "id-2"]
    assert await ready(server, QUEUE) == 1


async def test_interrupted_while_the_broker_takes_nothing_a_replay_gives_its_event_up_and_keeps_its_letter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadletters, "ENDING", 0.1)
    server, sending = EmbeddedBroker(), asyncio.Event()
    await fill(server, 2)

    class Sending(Bus):
        async def send(self, message: Message, /) -> None:
            sending.set()
            await super().send(message)

    async with Sending(server.client(), declare="none") as bus:
        server.block()
        replaying = asyncio.ensure_future(DeadLetters(bus, QUEUE).replay())
        await sending.wait()
        replaying.cancel()
        await asyncio.wait({replaying})
        server.unblock()
        await bus.send(raw(b"{}"))  # whatever was still under way has gone before it

    assert replaying.cancelled()
    assert ids(await letters(server)) == ["id-0", "id-1"]
    assert await ready(server, QUEUE) == 1


async def test_looks_at_the_first_letters_leave_the_order_of_all(place: Place) -> None:
    await fill(place, 20)
    async with tools(place) as dead:
        await dead.summary()
        first = [ids(await dead.find(limit=limit)) for limit in (1, 5, 3)]
        await dead.replay(limit=2, dry_run=True)
        await dead.replay(limit=2)

    assert first == [[f"id-{i}" for i in range(limit)] for limit in (1, 5, 3)]
    assert ids(await letters(place)) == [f"id-{i}" for i in range(2, 20)]


async def test_a_replay_is_a_first_attempt_again(place: Place) -> None:
    await fill(place, 0)
    await put(place, raw(b"{}", queue=DEAD, properties=Properties(headers={"attempt": 7, "replay-count": 2})))
    async with tools(place) as dead:
        await dead.replay()

    async with Bus(of(place), declare="none") as bus, bus.browse(QUEUE) as look:
        [delivery] = [each async for each in look]

    assert delivery.attempt == 1
    assert delivery.headers["replay-count"] == 3
    assert "replay-at" in delivery.headers


async def test_when_the_connection_breaks_nothing_is_lost() -> None:
    server = EmbeddedBroker()
    await fill(server, 10)

    def watch(result: Result, letter: DeadLetterMessage | None) -> None:
        if result.done == 4:
            server.drop_connections()

    async with tools(server) as dead:
        with pytest.raises(BrokerError, match="broken off"):
            await dead.replay(watch=watch)

    left = ids(await letters(server))
    assert left == [f"id-{i}" for i in range(4, 10)]
    assert await ready(server, QUEUE) == 4


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
async def test_a_rate_that_means_nothing_is_refused(rate: float) -> None:
    async with tools(EmbeddedBroker()) as dead:
        with pytest.raises(ConfigurationError, match="say how many a second"):
            await dead.replay(rate=rate)


async def test_a_limit_that_means_nothing_is_refused() -> None:
    server = EmbeddedBroker()
    await fill(server, 1)
    async with tools(server) as dead:
        with pytest.raises(ConfigurationError, match="say how many letters"):
            await dead.find(limit=0)


# --- discarding and exporting --------------------------------------------------------------------------------------


async def test_what_is_discarded_is_gone_and_the_rest_is_not(place: Place) -> None:
    await fill(place, 5)
    async with tools(place) as dead:
        result = await dead.discard(Selection(ids=("id-1", "id-3")))

    assert (result.done, result.looked_at) == (2, 5)
    assert ids(await letters(place)) == ["id-0", "id-2", "id-4"]


async def test_more_than_can_be_held_are_discarded_with_a_copy_each(place: Place, tmp_path: Path) -> None:
    await fill(place, 30)
    with Lines(tmp_path / "gone.jsonl") as lines:
        async with tools(place, hold=7) as dead:
            result = await dead.discard(lines=lines)

    assert (result.done, result.ended) == (30, "")
    assert [each.id for each in read_lines(tmp_path / "gone.jsonl")] == [f"id-{i}" for i in range(30)]
    assert await ready(place) == 0


async def test_what_could_not_be_written_is_not_discarded(rabbit_url: str, tmp_path: Path) -> None:
    await fill(rabbit_url, 2)
    with Lines(tmp_path / "gone.jsonl") as lines:
        async with Bus(rabbit_url, declare="none", limits=Limits(body=10)) as bus:
            result = await DeadLetters(bus, QUEUE).discard(lines=lines)

    assert result.done == 0
    assert [why.partition(": ")[2] for _, why in result.refused] == [
        "its body of 19 bytes was over the limit, and not kept"
    ] * 2
    assert ids(await letters(rabbit_url)) == ["id-0", "id-1"]


async def test_an_exported_event_is_replayed_as_the_one_in_the_queue_is_byte_for_byte(
    place: Place, tmp_path: Path
) -> None:
    bodies = [b'{"order_id": "o"}', b"\x00\xff", b"", b'{"pretty":\n  1.0}', b"[" * 5_000 + b"]" * 5_000]
    await fill(place, 0)
    headers: dict[str, HeaderValue] = {
        "big": 2**62,
        "bytes": b"\xff",
        "text": "a\udcff",
        "nested": {"$": [1, 1.5, None, True]},
    }
    async with service(place, failing()) as bus:
        for i, body in enumerate(bodies):
            given = Properties(type="order.placed", message_id=f"id-{i}", headers=headers, priority=3, timestamp=2**40)
            await bus.send(raw(body, properties=given))
        await until(bus, len(bodies))
    path = tmp_path / "dead.jsonl"

    async with tools(place) as dead:
        with Lines(path) as lines:
            exported = await dead.export(lines)
        await dead.replay()
    live = await _taken(place)
    async with tools(place) as dead:
        again = await dead.replay_exported(read_lines(path))
    from_file = await _taken(place)

    assert exported.done == again.done == len(bodies)
    assert from_file == live
    assert [body for body, _ in live] == bodies


async def _taken(place: Place) -> list[tuple[bytes, Properties]]:
    """Take everything out of ``shop.record``: bodies and properties, but for the time of the replay."""
    found: list[tuple[bytes, Properties]] = []
    async with Bus(of(place), declare="none") as bus, bus.browse(QUEUE) as look:
        async for delivery in look:
            message = Message.copy_of(delivery, headers={"replay-at": None})
            found.append((message.body, message.properties))
            look.acknowledge(delivery)
    return found


async def test_what_cannot_be_exported_is_refused_and_keeps_nothing_else_back(rabbit_url: str, tmp_path: Path) -> None:
    await fill(rabbit_url, 2)
    await put(rabbit_url, raw(b"x" * 100, queue=DEAD, properties=Properties(type="order.placed", message_id="big")))
    path = tmp_path / "dead.jsonl"

    with Lines(path) as lines:
        async with Bus(rabbit_url, declare="none", limits=Limits(body=50)) as bus:
            result = await DeadLetters(bus, QUEUE).export(lines)

    [(id, why)] = result.refused
    assert (result.meant, result.done, id) == (3, 2, "big")
    assert "its body of 100 bytes was over the limit, and not kept" in why
    assert [each.id for each in read_lines(path)] == ["id-0", "id-1"]
    assert await ready(rabbit_url) == 3


async def test_a_dry_run_of_a_file_says_what_it_would_and_sends_nothing(tmp_path: Path) -> None:
    server = EmbeddedBroker()
    await fill(server, 3)
    path = tmp_path / "dead.jsonl"
    seen: list[str] = []

    def watch(result: Result, letter: DeadLetterMessage | None) -> None:
        if letter is not None:
            seen.append(letter.id)

    async with tools(server) as dead:
        with Lines(path) as lines:
            await dead.export(lines)
        result = await dead.replay_exported(read_lines(path), limit=2, dry_run=True, watch=watch)

    assert (result.meant, result.done) == (2, 0)
    assert seen == ["id-0", "id-1"]
    assert await ready(server, QUEUE) == 0
    assert await ready(server) == 3


async def test_an_exported_event_of_another_queue_is_not_sent(tmp_path: Path) -> None:
    server = EmbeddedBroker()
    await fill(server, 1)
    path = tmp_path / "dead.jsonl"
    async with tools(server) as dead:
        with Lines(path) as lines:
            await dead.export(lines)
    path.write_bytes(path.read_bytes().replace(b'"queue":"shop.record"', b'"queue":"admin"'))

    async with tools(server) as dead:
        with pytest.raises(ConfigurationError, match="of another queue"):
            await dead.replay_exported(read_lines(path))

    assert await ready(server, QUEUE) == 0

"""The other names that a type has elsewhere, and what is read back before it is published."""

from collections import Counter
from typing import Any

import attrs
import msgspec
import pytest

from rabbitevents import Bus, ConfigurationError, EncodeError, Event, Message, Properties, Router, event, upcast
from rabbitevents.testing import running


@event("points.earned", aliases=("PointsEarned", "urn:message:Loyalty:PointsEarned"))
@attrs.frozen
class PointsEarned:
    total: int


@event("points.spent")
@attrs.frozen
class PointsSpent:
    total: int


def foreign(name: str, body: bytes = b'{"total": 5}') -> Message:
    """Return an event as another team sends it, under its own name."""
    return Message(
        exchange="events",
        routing_key=name,
        body=body,
        properties=Properties(content_type="application/json", type=name),
    )


@pytest.mark.parametrize("name", ["points.earned", "PointsEarned", "urn:message:Loyalty:PointsEarned"])
async def test_an_event_is_handled_under_each_of_its_names(name: str) -> None:
    router = Router("loyalty")
    got: list[tuple[str, PointsEarned]] = []

    @router.on(PointsEarned)
    async def count(points: Event[PointsEarned]) -> None:
        got.append((points.type, points.payload))

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.send(foreign(name))
        await probe.settled()

    assert got == [(name, PointsEarned(5))]


async def test_it_is_published_under_its_own_name() -> None:
    async with running(Bus("memory://", name="loyalty", unroutable="ignore")) as probe:
        await probe.bus.publish(PointsEarned(5))

    assert [message.routing_key for message in probe.messages] == ["points.earned"]


def test_a_shared_queue_has_one_handler_for_each_of_the_names() -> None:
    router = Router("loyalty")

    @router.on(PointsEarned, queue="all")
    async def count(points: PointsEarned) -> None: ...

    with pytest.raises(ConfigurationError, match="has two handlers for 'PointsEarned'"):

        @router.on("PointsEarned", queue="all")
        async def count_too(points: Event) -> None: ...


@pytest.mark.parametrize(
    ("aliases", "why"),
    [
        ("PointsEarned", r"aliases='PointsEarned': give the other names as a tuple"),
        (("points..earned",), "must be words with single dots between them"),
        (("",), "the event type is empty"),
        ((5,), "aliases has an int in it: each other name is a text"),
    ],
)
def test_aliases_that_are_no_names_are_refused(aliases: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        event("points.earned", aliases=aliases)


async def test_the_envelope_of_an_alias_that_is_published_again_is_found_among_the_events_of_its_class() -> None:
    bus = Bus("memory://", name="loyalty", unroutable="ignore")

    async with running(bus) as probe:
        earned = await probe.bus.publish(PointsEarned(5))
        await probe.bus.publish(msgspec.structs.replace(earned, type="PointsEarned"))

    assert [message.routing_key for message in probe.messages] == ["points.earned", "PointsEarned"]
    assert probe.published(PointsEarned) == [PointsEarned(5), PointsEarned(5)]


async def test_an_event_of_an_older_version_that_is_published_again_says_the_version_in_which_it_is_written() -> None:
    @event("points.bought", version=2)
    @attrs.frozen
    class PointsBought:
        cents: int

    @upcast(PointsBought, from_version=1)
    def in_cents(document: dict[str, Any]) -> dict[str, Any]:
        return {"cents": document.get("cents", document.get("euros", 0)) * 100}

    router = Router("loyalty")
    seen: list[PointsBought] = []

    @router.on(PointsBought)
    async def see(bought: Event[PointsBought]) -> Event[PointsBought] | None:
        seen.append(bought.payload)
        return bought if len(seen) == 1 else None

    old = Properties(content_type="application/json", type="points.bought", headers={"event-version": 1})

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.send(
            Message(exchange="events", routing_key="points.bought", body=b'{"euros": 5}', properties=old)
        )
        await probe.settled()

    assert seen == [PointsBought(500), PointsBought(500)]
    assert [message.properties.headers["event-version"] for message in probe.messages] == [1, 2]


# --- read back before it is published --------------------------------------------------------------------------------


async def test_what_no_consumer_could_read_is_an_error_at_the_publisher() -> None:
    async with running(Bus("memory://", name="loyalty")) as probe:
        with pytest.raises(EncodeError, match=r"Expected `int`, got `str` - at `\$\.total`"):
            await probe.bus.publish(PointsEarned("five"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with pytest.raises(EncodeError):
            await probe.bus.publish_many([PointsEarned(1), PointsEarned(None)])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert probe.messages == []


async def test_what_a_handler_returns_is_read_back_too() -> None:
    router = Router("loyalty")
    calls: Counter[str] = Counter()

    @router.on(PointsEarned)
    async def spend(points: PointsEarned) -> PointsSpent:
        calls["spend"] += 1
        return PointsSpent(f"{points.total}")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    async with running(Bus("memory://", router)) as probe:
        await probe.bus.publish(PointsEarned(5))
        await probe.settled()

        assert "PointsSpent is not published, as nobody could read it" in str(probe.bus.health().problems)
    assert calls == {"spend": 1}
    assert probe.published(PointsSpent) == []


async def test_a_bus_may_leave_it_out() -> None:
    async with running(Bus("memory://", name="loyalty", unroutable="ignore", check="never")) as probe:
        await probe.bus.publish(PointsEarned("five"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert [message.body for message in probe.messages] == [b'{"total":"five"}']


async def test_two_classes_of_one_handler_share_no_name() -> None:
    @event("points.given", aliases=["PointsEarned"])
    @attrs.frozen
    class PointsGiven:
        total: int

    router = Router("loyalty")

    @router.on(PointsEarned, PointsGiven)
    async def count(points: PointsEarned | PointsGiven) -> None: ...

    with pytest.raises(
        ConfigurationError, match="both PointsEarned and PointsGiven, which are the same event type 'Point"
    ):
        async with Bus("memory://", router):
            pass

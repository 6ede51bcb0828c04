"""What is written wrong is said where it is written: the argument, what was given, and the way out; never a password."""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID, uuid4

import msgspec
import pytest
from attrs import frozen
from opentelemetry.trace import get_tracer_provider
from redis.asyncio import Redis

from rabbitevents import (
    Bus,
    ConfigurationError,
    EncodeError,
    Event,
    Limits,
    Message,
    Metadata,
    Plugin,
    Properties,
    Publish,
    RabbitEventsError,
    Router,
    SyncBus,
    event,
    upcast,
)
from rabbitevents.arguments import Seconds, flag, one_of, seconds, several, span, text, whole
from rabbitevents.brokers.rabbitmq.address import Address, addresses
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents_deadletter import DeadLetter, DeadLetters
from rabbitevents_idempotency import Idempotency, MemoryStore, RedisStore
from rabbitevents_metrics import Metrics
from rabbitevents_retry import Retry, RetryLater
from rabbitevents_tracing import Tracing

MEMORY = "memory://"
SECRET = "hunter2"


@event("parcel.sent")
@frozen
class ParcelSent:
    number: str


@event("parcel.lost", version=3)
@frozen
class ParcelLost:
    number: str


router = Router("post")


@router.on(ParcelSent)
async def note(parcel: ParcelSent) -> None: ...


def stamp() -> None: ...


def given(value: Any) -> Any:
    """Return a value as somebody gives it whom no type checker helps."""
    return value


def bus(*args: Any, **settings: Any) -> Callable[[], object]:
    return lambda: Bus(*args, **settings)


def on(*args: Any, **options: Any) -> Callable[[], object]:
    return lambda: Router("other").on(*args, **options)


def made(kind: Callable[..., Any], *args: Any, **settings: Any) -> Callable[[], object]:
    return lambda: kind(*args, **settings)


def refusal(make: Callable[[], object]) -> str:
    """Return what is said; the caller's own traceback shows nothing else."""
    with pytest.raises(ConfigurationError) as refused:
        make()
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    return str(refused.value)


# --- the bus -------------------------------------------------------------------------------------------------------

WRONG_BUS: list[tuple[str, Callable[[], object], str]] = [
    ('grace="30"', bus(MEMORY, grace="30"), "Bus: grace='30' is text: say 30 (seconds) or a timedelta"),
    ('grace="soon"', bus(MEMORY, grace="soon"), "Bus: grace is text: say 30 (seconds) or a timedelta"),
    ("grace=-1", bus(MEMORY, grace=-1), "Bus: grace=-1: say seconds, 0 or more"),
    ("grace=nan", bus(MEMORY, grace=math.nan), "Bus: grace=nan: say seconds"),
    ("grace=inf", bus(MEMORY, grace=math.inf), "Bus: grace=inf: say seconds"),
    ("grace=True", bus(MEMORY, grace=True), "Bus: grace=True: say seconds"),
    ("grace=None", bus(MEMORY, grace=None), "Bus: grace=None: say seconds"),
    ("grace=10**400", bus(MEMORY, grace=10**400), "Bus: grace is an int: say seconds"),
    ("grace=timedelta(-1)", bus(MEMORY, grace=timedelta(-1)), "Bus: grace=-1 day, 0:00:00: say seconds"),
    ("start_timeout=0", bus(MEMORY, start_timeout=0), "Bus: start_timeout=0: say seconds, more than 0"),
    ("publish_timeout=0", bus(MEMORY, publish_timeout=0), "Bus: publish_timeout=0: say seconds, more than 0"),
    ("consumer_timeout=0", bus(MEMORY, consumer_timeout=0), "Bus: consumer_timeout=0: say seconds, more than 0"),
    ('consumer_timeout="1800"', bus(MEMORY, consumer_timeout="1800"), "say 1800 (seconds) or a timedelta"),
    ('unroutable="rais"', bus(MEMORY, unroutable="rais"), "Bus: unroutable='rais': say 'warn', 'raise' or 'ignore'"),
    ('declare="pasive"', bus(MEMORY, declare="pasive"), "Bus: declare='pasive': say 'active', 'passive' or 'none'"),
    ("declare=None", bus(MEMORY, declare=None), "Bus: declare=None: say 'active'"),
    ("form='cloudevent'", bus(MEMORY, form="cloudevent"), "'amqp', 'cloudevents' or 'cloudevents-binary'"),
    ("in_flight=0", bus(MEMORY, in_flight=0), "Bus: in_flight=0: say a whole number, 1 or more"),
    ('in_flight="100"', bus(MEMORY, in_flight="100"), "Bus: in_flight='100' is text: say 100, a whole number"),
    ("in_flight=1e3", bus(MEMORY, in_flight=1e3), "Bus: in_flight=1000.0: say a whole number"),
    ("delivery_limit=-1", bus(MEMORY, delivery_limit=-1), "-1 drops events on RabbitMQ 3.10"),
    ("heartbeat=0.5", bus(MEMORY, heartbeat=0.5), "Bus: heartbeat=0.5: say whole seconds, 0 to 65535"),
    ("heartbeat=100_000", bus(MEMORY, heartbeat=100_000), "Bus: heartbeat=100000: say whole seconds"),
    ("limits={...}", bus(MEMORY, limits={"body": 1}), "Bus: limits is a dict: say Limits(body=4_000_000)"),
    ('Limits(body="1")', lambda: Limits(body=given("1")), "Limits: body='1' is text"),
    ("Limits(headers=0)", lambda: Limits(headers=0), "Limits: headers=0: say a whole number, 1 or more"),
    ('browse(hold="5")', lambda: Bus(MEMORY).browse("dead", hold=given("5")), "browse: hold='5' is text: say 5"),
    ("browse(None)", lambda: Bus(MEMORY).browse(given(None)), "browse: queue=None: say a text, such as 'shop.record'"),
    ("ssl_context=True", bus(MEMORY, ssl_context=True), "Bus: ssl_context=True: say ssl.create_default_context(...)"),
    (
        "ssl_context= for amqp://",
        bus("amqp://h", ssl_context=ssl.create_default_context()),
        "Bus: ssl_context is for amqps://, and no URL here says so: nothing would be encrypted",
    ),
    ('name=""', bus(MEMORY, name=""), "Bus: name is blank"),
    ("name=5", bus(MEMORY, name=5), "Bus: name=5: say a text, such as 'shop'"),
    ("exchange=None", bus(MEMORY, exchange=None), "Bus: exchange=None: say a text, such as 'events'"),
    ("plugins=Retry()", bus(MEMORY, plugins=Retry()), "Bus: plugins is a Retry: it takes a list"),
    ("plugins=[Retry]", bus(MEMORY, plugins=[Retry]), "Bus: plugins has the class Retry in it: it takes instances"),
    ("plugins=None", bus(MEMORY, plugins=None), "Bus: plugins=None: it takes a list"),
    ('plugins="retry"', bus(MEMORY, plugins="retry"), "Bus: plugins is text: it takes a list"),
    ("Bus(router)", bus(router), "Bus: broker is a Router: where to connect comes first: Bus(url, router)"),
    ("Bus(url, [router])", bus(MEMORY, [router]), "Bus(url, one, another) or Bus(url, *routers)"),
    ("Bus(url, stamp)", bus(MEMORY, stamp), "Bus: stamp is a function and no router: put @router.on(...) above it"),
    ("Bus(url, Retry())", bus(MEMORY, Retry()), "Bus(url, plugins=[Retry(...)])"),
    ("Bus(url, Router)", bus(MEMORY, Router), "Bus: what follows the broker is the class Router"),
    ("Bus(url, None)", bus(MEMORY, None), "Bus: what follows the broker=None: say routers"),
    ("Bus(url, url)", bus(MEMORY, "amqp://other"), "several URLs of one cluster stand in a list"),
    ("Bus(5)", bus(5), "Bus: broker=5: say a URL, a list of URLs of one cluster, or a Broker"),
    ("Bus([])", bus([]), "a bus needs the URL of at least one broker"),
    ("Bus(EmbeddedBroker())", bus(EmbeddedBroker()), "Bus: broker is an EmbeddedBroker: say a URL"),
    ("Bus(EmbeddedBroker)", bus(EmbeddedBroker), "Bus: broker is the class EmbeddedBroker: say a URL"),
    ("SyncBus(router)", made(SyncBus, router), "where to connect comes first"),
    ('SyncBus(url, grace="3")', made(SyncBus, MEMORY, grace="3"), "grace='3' is text: say 3 (seconds) or a timedelta"),
]


@pytest.mark.parametrize(("make", "said"), [pytest.param(make, said, id=name) for name, make, said in WRONG_BUS])
def test_what_a_bus_cannot_be_told_is_refused_as_it_is_made(make: Callable[[], object], said: str) -> None:
    assert said in refusal(make)


def test_a_setting_that_there_is_not_is_python_s_own_error() -> None:
    with pytest.raises(TypeError, match="gracee"):
        bus(MEMORY, gracee=30)()


@pytest.mark.parametrize("time", [20, 20.0, timedelta(seconds=20)])
def test_times_are_seconds_or_timedeltas_and_kept_in_one_way(time: Seconds) -> None:
    told = Bus(MEMORY, grace=time, start_timeout=time, publish_timeout=time, consumer_timeout=time, heartbeat=time)

    kept = told.configuration
    assert (kept.grace, kept.start_timeout, kept.publish_timeout, kept.heartbeat) == (20.0, 20.0, 20.0, 20)
    assert kept.consumer_timeout == told.consumer_timeout == timedelta(seconds=20)


def test_a_sibling_s_settings_are_looked_at_too() -> None:
    said = refusal(lambda: Bus(MEMORY).sibling(grace=given("1")))

    assert "grace='1' is text" in said


@pytest.mark.parametrize(
    ("said", "options"),
    [("serve: grace='5' is text", {"grace": "5"}), ("serve: started=5: say a function", {"started": 5})],
)
async def test_what_serve_is_told_wrongly_is_refused_before_it_starts(said: str, options: dict[str, Any]) -> None:
    service = Bus(MEMORY)

    with pytest.raises(ConfigurationError, match=re.escape(said)):
        await service.serve(**options)

    assert "new" in repr(service)


# --- where the broker is -------------------------------------------------------------------------------------------

WRONG_URLS = [
    (f"amqp://u:{SECRET}@2@h/", "two @ in it; one in a password is written %40"),
    (f"amqp://u:{SECRET}/2@h/", "an @ after its host; in a password @ is written %40, / %2F and ? %3F"),
    (f"amqp://u:{SECRET}?2@h/", "in a password @ is written %40, / %2F and ? %3F"),
    (f"amqp://u:{SECRET}#2@h/", "a # in it; in a password it is written %23"),
    (f"amqp://u:{SECRET}%2@h/", "a % in a password is written %25"),
    (f"amqp://u:{SECRET}[@h/", "cannot be read"),
    (f"amqp://u:{SECRET}/2", "has a host or a port that cannot be one"),
    (f"amqp://u:{SECRET} 2@h/", "a blank or an invisible sign"),
    (f"amqp://u:{SECRET}\n2@h/", "a blank or an invisible sign"),
    (f"amqp://u:{SECRET}@h:99999/", "has the port 99999, and ports go from 1 to 65535"),
    (f"amqp://u:{SECRET}@h:0/", "has the port 0"),
    (f"amqp://u:{SECRET}@h:port/", "has a host or a port that cannot be one"),
    (f"amqp://u:{SECRET}@/", "has no host"),
    (f"amqp://u:{SECRET}@:5672/", "has no host"),
    ("amqp:///", "has no host"),
    (f"amqp://u:{SECRET}@::1:5672/", "an IPv6 address without brackets"),
    (f"amqp://u:{SECRET}@h/a/b", "in a virtual host / is written %2F"),
    (f"amqp://u:{SECRET}@h?heartbeat=1m", "?heartbeat= takes whole seconds, 0 to 65535"),
    (f"amqp://u:{SECRET}@h?heartbeat=1&heartbeat=2", "?heartbeat= twice"),
    (f"amqp://u:{SECRET}@h?heartbaet=5", "the parameter ?heartbaet=, which is not known; known are auth, "),
    (f"amqp://u:{SECRET}@h?connection_timeout=5", "say Bus(start_timeout=) instead"),
    (f"amqp://u:{SECRET}@h?socket_timeout={SECRET}", "the parameter ?socket_timeout=, which is not known"),
    (f"amqp://u:{SECRET}@h?auth={SECRET}", "?auth= takes plain, amqplain or external"),
    (f"amqps://u:{SECRET}@h?no_verify_ssl=1", "pass ssl_context= to say so in code"),
    (f"redis://u:{SECRET}@h", "begins with redis://, and not with amqp:// or amqps://"),
    (f"http://u:{SECRET}@h", "begins with http://"),
    (f"u:{SECRET}@h", "does not begin with amqp:// or amqps://"),
    (SECRET, "does not begin with amqp:// or amqps://"),
    ("memory://shop", "says memory:// with more after it, or among others"),
    ("", "is empty"),
    ("  ", "is empty"),
    (None, "is None (an environment variable that is not set?)"),
    (f"amqp://u:{SECRET}@h".encode(), "is bytes"),
]


@pytest.mark.parametrize(("url", "said"), WRONG_URLS)
def test_a_url_that_cannot_be_meant_is_refused_and_never_shown(url: object, said: str) -> None:
    text = refusal(bus(url))

    assert said in text
    assert "amqp://user:password@host" in text or "?" in text or "no_verify_ssl" in text
    assert SECRET not in text


def test_of_several_urls_the_wrong_one_is_numbered() -> None:
    assert "URL number 2 is None" in refusal(bus(["amqp://h", None]))
    assert "URL number 1 says memory://" in refusal(bus([MEMORY, "amqp://h"]))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"amqp://u:{SECRET}@h", "amqp://u@h:5672/"),
        (f"AMQP://u:{SECRET}@h:1/v", "amqp://u@h:1/v"),
        (f"  amqps://u:{SECRET}@h/\n", "amqps://u@h:5671/"),
        (f"amqp://u:{SECRET}@[::1]:5672/", "amqp://u@[::1]:5672/"),
        (f"amqp://u:{SECRET}@[fe80::1]/", "amqp://u@[fe80::1]:5672/"),
        ("amqp://u:%40%2F%23%3F%25@h/%2Fteam", "amqp://u@h:5672/%2Fteam"),
        ("amqp://guest@localhost//", "amqp://guest@localhost:5672//"),
        ("amqp://a%0Ab:c@h", "amqp://a%0Ab@h:5672/"),
        ("amqp://under_score.shop:5672?heartbeat=5", "amqp://under_score.shop:5672/"),
    ],
)
def test_a_url_that_can_be_meant_is_taken_and_shown_without_its_password(url: str, shown: str) -> None:
    (address,) = addresses([url])

    assert str(address) == Bus(url).address == shown
    assert SECRET not in repr(address) + repr(Bus(url))


def test_an_escaped_password_is_the_one_that_is_meant() -> None:
    (address,) = addresses(["amqp://u:%40%2F%23%3F%25@h/"])

    assert address.parsed.password == "@/#?%"


def test_a_url_s_heartbeat_stands_in_for_the_bus_s() -> None:
    assert Address("amqp://h?heartbeat=60").heartbeat(10) == 60
    assert Address("amqp://h").heartbeat(10) == 10


async def test_a_url_s_heartbeat_is_what_the_broker_is_asked_for(rabbit_url: str) -> None:
    from rabbitevents.brokers.rabbitmq.broker import RabbitMQ

    async with Bus(f"{rabbit_url}?heartbeat=7", heartbeat=30) as told:
        broker = told._broker  # pyright: ignore[reportPrivateUsage]
        assert isinstance(broker, RabbitMQ)
        link = broker._publishing  # pyright: ignore[reportPrivateUsage]
        connection = link.connection if link is not None else None

        assert connection is not None
        assert connection._heartbeat == 7  # pyright: ignore[reportPrivateUsage]


# --- handlers and events -------------------------------------------------------------------------------------------

WRONG_HANDLERS: list[tuple[str, Callable[[], object], str]] = [
    ("@router.on", on(stamp), "on(stamp): that is no event class; if it is the handler, say what it is for: "),
    ("@router.on()", on(), "on() needs the event classes or topic patterns"),
    ("on([ParcelSent])", on([ParcelSent]), "on(...) takes classes one after the other"),
    ("on(ParcelSent(...))", on(ParcelSent("1")), "an instance of ParcelSent: it takes the class, on(ParcelSent)"),
    ("on(A | B)", on(ParcelSent | ParcelLost), "say the classes one after the other, with commas"),
    ("on(int)", on(int), "on(int): not an event class; put @event(...) above it"),
    ("on(5)", on(5), "on(...): an event=5: say an event class, or a topic pattern"),
    ("on(None)", on(None), "on(...): an event=None"),
    ('timeout="5"', on(ParcelSent, timeout="5"), "on(...): timeout='5' is text: say 5 (seconds) or a timedelta"),
    ("timeout=0", on(ParcelSent, timeout=0), "on(...): timeout=0: say seconds, more than 0"),
    ("timeout=True", on(ParcelSent, timeout=True), "on(...): timeout=True"),
    ("timeout=nan", on(ParcelSent, timeout=math.nan), "on(...): timeout=nan"),
    ("concurrency=0", on(ParcelSent, concurrency=0), "on(...): concurrency=0: say a whole number, 1 or more"),
    ('concurrency="4"', on(ParcelSent, concurrency="4"), "on(...): concurrency='4' is text: say 4, a whole number"),
    ("concurrency=True", on(ParcelSent, concurrency=True), "on(...): concurrency=True"),
    ("prefetch=0", on(ParcelSent, prefetch=0), "on(...): prefetch=0: say a whole number, 1 to 2000"),
    ("prefetch=5000", on(ParcelSent, prefetch=5000), "quorum queues let 2000 out at a time"),
    ("plugins=Retry()", on(ParcelSent, plugins=Retry()), "on(...): plugins is a Retry: it takes a list"),
    ("plugins=[Retry]", on(ParcelSent, plugins=[Retry]), "on(...): plugins has the class Retry in it"),
    ("plugins=Retry", on(ParcelSent, plugins=Retry), "on(...): plugins is the class Retry: it takes a list"),
    ("name=5", lambda: given(Router("other").on(ParcelSent, name=given(5)))(stamp), "the handler's name=5: say words"),
    ("queue=5", lambda: given(Router("other").on(ParcelSent, queue=given(5)))(stamp), "the queue's name=5: say words"),
    (
        "on(...)(5)",
        lambda: given(Router("other").on(ParcelSent))(5),
        "what stands below it=5: nobody can call that: decorate a function",
    ),
    ("Router(None)", made(Router, None), "the router's name=None: say words, such as Router("),
    ('Router("a b")', made(Router, "a b"), "must be words of letters"),
    ("@event", made(event, ParcelSent), "an event needs a name"),
    ('version="2"', made(event, "x", version="2"), "@event('x'): version='2' is text: say 2, a whole number"),
    ("version=True", made(event, "x", version=True), "@event('x'): version=True: say a whole number"),
    ("oldest=0", made(event, "x", oldest=0), "versions count from 1"),
    ("entity=5", made(event, "x", entity=5), "@event('x'): entity=5: say a text"),
    ("key=5", made(event, "x", key=5), "@event('x'): key=5: say a text"),
    ('upcast("x")', made(upcast, "x", from_version=1), 'text is no event: put @event("its.name")'),
    ('from_version="1"', made(upcast, ParcelLost, from_version="1"), "from_version='1' is text: say 1"),
]


@pytest.mark.parametrize(("make", "said"), [pytest.param(make, said, id=name) for name, make, said in WRONG_HANDLERS])
def test_what_is_written_wrong_above_a_handler_or_an_event_is_refused_there(
    make: Callable[[], object], said: str
) -> None:
    assert said in refusal(make)


@pytest.mark.parametrize("time", [3, 3.0, timedelta(seconds=3)])
def test_a_handling_s_time_is_seconds_or_a_timedelta(time: Seconds) -> None:
    other = Router("other")
    other.on(ParcelSent, timeout=time)(stamp)

    assert other.subscriptions()[0].options.timeout == timedelta(seconds=3)


# --- plugins -------------------------------------------------------------------------------------------------------

STORE = MemoryStore()

WRONG_PLUGINS: list[tuple[str, Callable[[], object], str]] = [
    ('inline_below="1"', made(Retry, inline_below="1"), "Retry: inline_below='1' is text: say 1 (seconds)"),
    ("inline_below=-1", made(Retry, inline_below=-1), "Retry: inline_below=-1"),
    ("inline_below=True", made(Retry, inline_below=True), "Retry: inline_below=True"),
    ("stop=5", made(Retry, stop=5), "Retry: stop is an int: it takes a strategy of tenacity's"),
    ('traceback="no"', made(DeadLetter, traceback="no"), "DeadLetter: traceback is text: say True or False"),
    ("message=0", made(DeadLetter, message=0), "DeadLetter: message=0: say True or False"),
    ("announce=None", made(DeadLetter, announce=None), "DeadLetter: announce=None: say True or False"),
    ("DeadLetters(url)", made(DeadLetters, MEMORY, "q"), "DeadLetters: bus is text: say DeadLetters(bus, queue)"),
    ("queue=None", lambda: DeadLetters(Bus(MEMORY), given(None)), "DeadLetters: queue=None"),
    ("hold=0", lambda: DeadLetters(Bus(MEMORY), "q", hold=0), "DeadLetters: hold=0: say a whole number, 1 to 2000"),
    ("Idempotency(None)", made(Idempotency, None), "Idempotency: store=None: give a store"),
    ("Idempotency(MemoryStore)", made(Idempotency, MemoryStore), "Idempotency: store is the class MemoryStore"),
    ('lease="30"', made(Idempotency, STORE, lease="30"), "Idempotency: lease='30' is text: say 30 (seconds)"),
    ("lease=0", made(Idempotency, STORE, lease=0), "Idempotency: lease=0: say seconds, 0.1 or more"),
    ("keep=1", made(Idempotency, STORE, keep=1), "Idempotency: keep=1: a mark must outlive a lease (30 s)"),
    ("when_unavailable='wat'", made(Idempotency, STORE, when_unavailable="wat"), "say 'wait' or 'proceed'"),
    ("abandoned=0", made(Idempotency, STORE, abandoned=0), "Idempotency: abandoned=0"),
    ("limit=0", made(MemoryStore, limit=0), "MemoryStore: limit=0"),
    ("clock=5", made(MemoryStore, clock=5), "MemoryStore: clock=5: say a function"),
    ("RedisStore(url)", made(RedisStore, f"redis://:{SECRET}@h"), "RedisStore: client is text: give a redis.asyncio"),
    ("timeout=0", made(RedisStore, Redis(), timeout=0), "RedisStore: timeout=0: say seconds, more than 0"),
    ("prefix=None", made(RedisStore, Redis(), prefix=None), "RedisStore: prefix=None"),
    ("interval=0.5", made(Metrics, interval=0.5), "Metrics: interval=0.5: say seconds, 1 or more"),
    ('interval="15"', made(Metrics, interval="15"), "Metrics: interval='15' is text: say 15 (seconds)"),
    ("meter_provider=5", made(Metrics, meter_provider=5), "Metrics: meter_provider=5: say a MeterProvider"),
    ("link=1", made(Tracing, link=1), "Tracing: link=1: say True (always), False (never)"),
    (
        "tracer_provider=tracer",
        made(Tracing, tracer_provider=get_tracer_provider().get_tracer("x")),
        "say a TracerProvider of OpenTelemetry",
    ),
]


@pytest.mark.parametrize(("make", "said"), [pytest.param(make, said, id=name) for name, make, said in WRONG_PLUGINS])
def test_what_a_plugin_cannot_be_told_is_refused_as_it_is_made(make: Callable[[], object], said: str) -> None:
    text = refusal(make)

    assert said in text
    assert SECRET not in text


@pytest.mark.parametrize("time", [60, 60.0, timedelta(minutes=1)])
def test_plugins_take_seconds_or_timedeltas(time: Seconds) -> None:
    Retry(inline_below=time)
    Idempotency(STORE, lease=time, keep=time)
    RedisStore(Redis(), timeout=time)
    Metrics(interval=time)

    assert RetryLater(time).after == 60.0


@pytest.mark.parametrize("after", ["120", None, True, math.nan])
def test_a_handler_that_says_no_time_for_the_next_attempt_is_told_so(after: Any) -> None:
    with pytest.raises(ValueError, match="seconds"):
        RetryLater(after)


# --- publishing ----------------------------------------------------------------------------------------------------

Use = Callable[[Bus], Awaitable[object]]
SENT = ParcelSent("1")
EVENT: Event[Any] = Event(
    UUID(int=1), "parcel.sent", 1, None, None, datetime(2026, 1, 1, tzinfo=UTC), SENT, Metadata("c")
)


def publish(payload: Any, **options: Any) -> Use:
    return lambda bus: bus.publish(payload, **options)


def enveloped(**fields: Any) -> Use:
    return lambda bus: bus.publish(msgspec.structs.replace(EVENT, **fields))


def sent(**fields: Any) -> Use:
    message: dict[str, Any] = {"exchange": "events", "routing_key": "x", "body": b"{}", "properties": Properties()}
    return lambda bus: bus.send(Message(**{**message, **fields}))


def sent_with(**properties: Any) -> Use:
    return sent(properties=Properties(**properties))


WRONG_PUBLISHES: list[tuple[str, Use, type[Exception], str]] = [
    ("id= of an Event", publish(EVENT, id="x"), ConfigurationError, "publish: id= was given for an Event"),
    ("metadata= of an Event", publish(EVENT, metadata={}), ConfigurationError, "publish: metadata= was given for"),
    ("correlation_id= too", publish(EVENT, correlation_id="x"), ConfigurationError, "correlation_id= was given"),
    ("a naive time", enveloped(timestamp=datetime(2026, 1, 1)), EncodeError, "no time zone: say datetime.now(UTC)"),
    ("a text for a time", enveloped(timestamp="now"), EncodeError, "an Event of ParcelSent: its timestamp is text"),
    ("a text for an id", enveloped(id="x"), EncodeError, "its id is text: say UUID"),
    ("a text for a version", enveloped(version="1"), EncodeError, "its version is text: say int"),
    ("no type", enveloped(type=None), EncodeError, "its type is None: say str"),
    ("a number for an entity", enveloped(entity_id=5), EncodeError, "its entity_id is an int: say str or None"),
    ("a dict for metadata", enveloped(metadata={}), EncodeError, "its metadata is a dict: say Metadata"),
    (
        "a UUID in it",
        enveloped(metadata=Metadata(given(uuid4()))),
        EncodeError,
        "its metadata.correlation_id is a UUID",
    ),
    (
        "numbers in it",
        enveloped(metadata=Metadata(extra=given({"a": 1}))),
        ConfigurationError,
        "metadata['a'] is an int",
    ),
    ("an Event of no event", enveloped(payload="x"), ConfigurationError, "text is no event"),
    ("the class", publish(ParcelSent), ConfigurationError, "that is the class and no event; publish an instance"),
    ("a text", publish("x"), ConfigurationError, 'text is no event; publish an instance of a class with @event("'),
    ("None", publish(None), ConfigurationError, "None is no event"),
    ("a dict", publish({"number": "1"}), ConfigurationError, "a dict is no event"),
    ("a list", publish([SENT]), ConfigurationError, "a list is no event; publish_many(...) publishes several"),
    ("another class's", publish(STORE), ConfigurationError, "MemoryStore is no event: put @event"),
    ('delay="5"', publish(SENT, delay="5"), ConfigurationError, "publish: delay='5' is text: say 5 (seconds)"),
    ("delay=nan", publish(SENT, delay=math.nan), ConfigurationError, "publish: delay=nan"),
    ("delay=inf", publish(SENT, delay=math.inf), ConfigurationError, "publish: delay=inf"),
    ("delay=True", publish(SENT, delay=True), ConfigurationError, "publish: delay=True"),
    ("a delay of 31 days", publish(SENT, delay=timedelta(days=31)), ConfigurationError, "at most 30 days"),
    ("timeout=-1", publish(SENT, timeout=-1), ConfigurationError, "publish: timeout=-1: say seconds, 0 or more"),
    ('timeout="3"', publish(SENT, timeout="3"), ConfigurationError, "publish: timeout='3' is text"),
    ('metadata={1: "a"}', publish(SENT, metadata={1: "a"}), ConfigurationError, "an int for a name: say a text"),
    ('metadata={"a": 1}', publish(SENT, metadata={"a": 1}), ConfigurationError, "publish: metadata['a'] is an int"),
    ('metadata={"a": None}', publish(SENT, metadata={"a": None}), ConfigurationError, "metadata['a'] is None"),
    ('metadata="x"', publish(SENT, metadata="x"), ConfigurationError, "metadata is text: say a dict of texts"),
    ("correlation_id=5", publish(SENT, correlation_id=5), ConfigurationError, "say a text or a UUID"),
    ("id=5", publish(SENT, id=5), ConfigurationError, "publish: id=5: say a UUID, or a text"),
    (
        "many: one",
        lambda bus: bus.publish_many(given(SENT)),
        ConfigurationError,
        "payloads is a ParcelSent: say a list",
    ),
    (
        "many: an Event",
        lambda bus: bus.publish_many(given(EVENT)),
        ConfigurationError,
        "payloads is an Event: say a list",
    ),
    ("many: a text", lambda bus: bus.publish_many("xy"), ConfigurationError, "payloads is text: say a list"),
    ("many: classes", lambda bus: bus.publish_many([ParcelSent]), ConfigurationError, "that is the class"),
    (
        'many: timeout="3"',
        lambda bus: bus.publish_many([SENT], timeout=given("3")),
        ConfigurationError,
        "timeout='3' is text",
    ),
    ("send: an event", lambda bus: bus.send(given(SENT)), ConfigurationError, "message is a ParcelSent: say a Message"),
    ("send: a str body", sent(body="text"), EncodeError, "its body is text: say bytes, such as text.encode()"),
    ("send: a dict body", sent(body={}), EncodeError, "its body is a dict: say bytes"),
    ("send: a bytearray", sent(body=bytearray()), EncodeError, "its body is a bytearray: say bytes"),
    ("send: no body", sent(body=None), EncodeError, "its body is None: say bytes"),
    ("send: exchange=None", sent(exchange=None), EncodeError, "its exchange is None: say str"),
    ("send: routing_key=5", sent(routing_key=5), EncodeError, "its routing_key is an int: say str"),
    ("send: a dict of properties", sent(properties={}), EncodeError, "its properties is a dict: say Properties"),
    ("send: after=5", sent(after=5), EncodeError, "its after is an int: say timedelta or None"),
    ('send: timeout="5"', sent(timeout="5"), EncodeError, "its timeout is text"),
    ("send: timeout=nan", sent(timeout=math.nan), ConfigurationError, "send: message.timeout=nan"),
    ("send: message_id=UUID", sent_with(message_id=uuid4()), EncodeError, "its properties.message_id is a UUID"),
    ('send: priority="1"', sent_with(priority="1"), EncodeError, "its properties.priority is text: say int or None"),
    ("send: priority=True", sent_with(priority=True), EncodeError, "its properties.priority is a bool"),
    ("send: timestamp=now", sent_with(timestamp=datetime.now(UTC)), EncodeError, "properties.timestamp is a datetime"),
    ("send: headers=None", sent_with(headers=None), EncodeError, "its properties.headers is None: say Mapping"),
    ("send: headers={1: 2}", sent_with(headers={1: 2}), EncodeError, "its header's name is an int"),
    ("send: an object in them", sent_with(headers={"a": object()}), EncodeError, "a header cannot hold a object"),
    ("send: a set in them", sent_with(headers={"a": {1}}), EncodeError, "a header cannot hold a set"),
]


@pytest.mark.parametrize(
    ("use", "kind", "said"), [pytest.param(use, kind, said, id=name) for name, use, kind, said in WRONG_PUBLISHES]
)
async def test_what_cannot_be_published_is_said_to_whoever_publishes(
    use: Use, kind: type[Exception], said: str
) -> None:
    async with Bus(MEMORY) as told:
        with pytest.raises(kind) as refused:
            await use(told)

    assert said in str(refused.value)


async def test_on_rabbitmq_none_of_it_costs_the_connection(rabbit_url: str) -> None:
    async with Bus(rabbit_url, unroutable="ignore") as told:
        for name, use, kind, _ in WRONG_PUBLISHES:
            with pytest.raises(RabbitEventsError) as refused:
                await use(told)
            assert isinstance(refused.value, kind), name
            assert told.health().ok, name
        await told.publish(SENT, timeout=5)


async def test_a_plugin_that_makes_a_body_a_text_fails_the_publish_and_no_connection(rabbit_url: str) -> None:
    class Careless(Plugin):
        async def publish(self, proceed: Publish, message: Message) -> None:
            await proceed(msgspec.structs.replace(message, body=message.body.decode()))

    async with Bus(rabbit_url, plugins=[Careless()]) as told:
        with pytest.raises(EncodeError, match="its body is text"):
            await told.publish(SENT)

        assert told.health().ok


async def test_a_coroutine_that_nobody_awaited_is_no_event() -> None:
    async def make() -> ParcelSent:
        return SENT

    made = make()
    async with Bus(MEMORY) as told:
        with pytest.raises(ConfigurationError, match="a coroutine is no event; await it"):
            await told.publish(made)
    made.close()


@pytest.mark.parametrize("time", [5, 5.0, timedelta(seconds=5)])
async def test_a_delay_and_a_timeout_are_seconds_or_timedeltas(time: Seconds) -> None:
    seen: list[str] = []
    other = Router("other")

    @other.on(ParcelSent)
    async def see(parcel: ParcelSent) -> None:
        seen.append(parcel.number)

    async with running(Bus(MEMORY, other)) as probe:
        await probe.bus.publish(SENT, delay=time, timeout=time)
        await probe.settled(time)
        early = list(seen)
        await probe.advance(time)

    assert (early, seen) == ([], ["1"])


@pytest.mark.parametrize("past", [-5, 0, timedelta(seconds=-5)])
async def test_a_delay_that_is_past_means_at_once(past: Seconds) -> None:
    async with running(Bus(MEMORY)) as probe:
        await probe.bus.publish(SENT, delay=past)

        assert probe.published(ParcelSent) == [SENT]


async def test_a_uuid_as_correlation_id_is_taken_as_its_text() -> None:
    id = uuid4()
    async with running(Bus(MEMORY)) as probe:
        published = await probe.bus.publish(SENT, correlation_id=id)

    assert published.metadata.correlation_id == str(id)


async def test_a_synchronous_publish_refuses_the_same() -> None:
    def use() -> list[str]:
        said: list[str] = []
        with SyncBus(MEMORY) as told:
            wrong: list[Callable[[], object]] = [
                lambda: told.publish(SENT, timeout=given("3")),
                lambda: told.publish(ParcelSent),
                lambda: told.publish_many(given(SENT)),
            ]
            for each in wrong:
                with pytest.raises(ConfigurationError) as refused:
                    each()
                said.append(str(refused.value))
            told.publish(SENT, timeout=timedelta(seconds=3), delay=1)
        return said

    said = await asyncio.to_thread(use)

    assert ["timeout='3' is text" in said[0], "the class" in said[1], "say a list" in said[2]] == [True, True, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"broker": "amqp://h"}, "a test runs on memory://"), ({"plugins": Retry()}, "plugins is a Retry")],
)
async def test_a_test_s_own_arguments_are_looked_at(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        async with running(Bus(MEMORY), **options):
            pass


# --- what they say of themselves -----------------------------------------------------------------------------------


def test_a_bus_and_a_router_say_what_they_hold() -> None:
    made = Bus(f"amqp://u:{SECRET}@h/v", router, plugins=[DeadLetter(), Retry()])

    assert repr(made) == "<Bus 'post' on amqp://u@h:5672/v, new; routers: post; plugins: DeadLetter, Retry>"
    assert repr(Bus(MEMORY)).endswith("routers: none; plugins: none>")
    assert repr(router) == "<Router 'post'; handlers: note>"
    assert SECRET not in repr(SyncBus(f"amqp://u:{SECRET}@h/v"))


# --- the checks themselves -----------------------------------------------------------------------------------------


class Odd(int):
    """A number of somebody's own."""


@pytest.mark.parametrize(
    "value", [None, "", "x", "\ud800", b"x", True, -1, 10**30, math.nan, [], {}, object(), int, Odd(-3), timedelta.min]
)
def test_no_value_makes_a_check_fail_in_another_way(value: object) -> None:
    for check in (
        lambda: seconds("x", value),
        lambda: span("x", value),
        lambda: whole("x", value, most=5),
        lambda: flag("x", [value]),
        lambda: one_of("x", value, Literal["one", "other"]),
        lambda: text("x", [value], such_as="y"),
        lambda: several("x", [value], Router, "[y]"),
    ):
        assert refusal(check).startswith("x")

"""What a bus is told, and what of it cannot be meant; `Bus` says what each argument means."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, TypedDict, cast

import msgspec

from rabbitevents.arguments import Seconds, instance, kind_of, seconds, wrong
from rabbitevents.brokers import Broker
from rabbitevents.errors import ConfigurationError
from rabbitevents.plugin import Plugin
from rabbitevents.publishing.publishing import Unroutable
from rabbitevents.publishing.writer import Checked
from rabbitevents.routing import Router
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
    check: Checked
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
    check: Checked
    start_timeout: Seconds
    publish_timeout: Seconds
    grace: Seconds
    consumer_timeout: Seconds
    delivery_limit: int
    in_flight: int
    limits: Limits | None
    ssl_context: ssl.SSLContext | None
    heartbeat: Seconds


# --- looking at what was given ---


def routers_of(given: Sequence[object]) -> tuple[Router, ...]:
    """Return the routers. Raises `ConfigurationError` for what else stands behind the broker."""
    for each in given:
        if isinstance(each, Router):
            continue
        if isinstance(each, (list, tuple)):
            raise ConfigurationError(
                "Bus: its routers stand one after the other: Bus(url, one, another) or Bus(url, *routers)"
            )
        if isinstance(each, str):
            raise ConfigurationError("Bus: several URLs of one cluster stand in a list: Bus([url, other], router)")
        if isinstance(each, Plugin):
            raise ConfigurationError(
                f"Bus: a plugin is given in a list: Bus(url, plugins=[{type(each).__name__}(...)])"
            )
        if callable(each) and not isinstance(each, type):
            raise ConfigurationError(
                f"Bus: {getattr(each, '__name__', kind_of(each))} is a function and no router: "
                "put @router.on(...) above it, and say Bus(url, router)"
            )
        raise wrong("Bus: what follows the broker", each, "say routers, such as Bus(url, router)")
    return cast("tuple[Router, ...]", tuple(given))


def limits_of(limits: object) -> Limits:
    """Return the limits; the usual ones for None."""
    return Limits() if limits is None else instance("Bus: limits", limits, Limits, "say Limits(body=4_000_000)")


def ssl_context_of(context: object) -> ssl.SSLContext | None:
    """Return what ``amqps://`` trusts."""
    if context is None:
        return None
    return instance("Bus: ssl_context", context, ssl.SSLContext, "say ssl.create_default_context(...), or None")


def heartbeat_of(heartbeat: object) -> int:
    """Return the heartbeat in whole seconds, as AMQP carries it."""
    found = seconds("Bus: heartbeat", heartbeat)
    if found != int(found) or found > 65_535:
        raise wrong("Bus: heartbeat", heartbeat, "say whole seconds, 0 to 65535 (AMQP carries no others)")
    return int(found)


def broker_of(broker: object, told: Configuration) -> Broker:
    """Return the broker that is meant. aio-pika is imported when an amqp URL is first used."""
    if isinstance(broker, (Router, Plugin)):
        raise wrong(
            "Bus: broker", broker, "where to connect comes first: Bus(url, router), or Bus('memory://', router)"
        )
    several_urls = isinstance(broker, (list, tuple))
    if broker is not None and not several_urls and not isinstance(broker, (str, bytes)):
        if isinstance(broker, type) or not all(
            hasattr(broker, name) for name in ("publish_many", "consume", "declare")
        ):
            client = ", such as broker.client()" if hasattr(broker, "client") else ""
            raise wrong("Bus: broker", broker, f"say a URL, a list of URLs of one cluster, or a Broker{client}")
        return cast("Broker", broker)
    urls = cast("Sequence[str]", broker) if several_urls else (cast("str", broker),)
    if len(urls) == 1 and isinstance(cast("object", urls[0]), str) and urls[0].strip().lower() == "memory://":
        from rabbitevents.brokers.embedded.broker import EmbeddedBroker

        return EmbeddedBroker().client()
    from rabbitevents.brokers.rabbitmq.broker import RabbitMQ

    if told.ssl_context is not None and not any(str(url).strip().lower().startswith("amqps:") for url in urls):
        raise ConfigurationError(
            "Bus: ssl_context is for amqps://, and no URL here says so: nothing would be encrypted"
        )
    return RabbitMQ(*urls, ssl_context=told.ssl_context, heartbeat=told.heartbeat)

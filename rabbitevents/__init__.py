"""Typed events for RabbitMQ: declare them, handle them, lose none."""

from rabbitevents.bus import Bus
from rabbitevents.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    DecodeError,
    EncodeError,
    NotSentError,
    OutcomeUnknownError,
    PublishError,
    RabbitEventsError,
    RefusedError,
    TopologyError,
    UnroutableError,
)
from rabbitevents.events import Event, Metadata, event, upcast
from rabbitevents.facts import Check, Fact, Health
from rabbitevents.message import ACK, REJECT, REQUEUE, Delivery, Message, Outcome, Settlement, forward
from rabbitevents.plugin import Consume, Host, Plugin, Publish
from rabbitevents.routing import Router, Subscription
from rabbitevents.topology import Binding, Exchange, Queue, Topology
from rabbitevents.wire import Limits

__all__ = [
    "ACK",
    "REJECT",
    "REQUEUE",
    "Binding",
    "BrokerError",
    "BrokerUnavailableError",
    "Bus",
    "Check",
    "ConfigurationError",
    "Consume",
    "DecodeError",
    "Delivery",
    "EncodeError",
    "Event",
    "Exchange",
    "Fact",
    "Health",
    "Host",
    "Limits",
    "Message",
    "Metadata",
    "NotSentError",
    "Outcome",
    "OutcomeUnknownError",
    "Plugin",
    "Publish",
    "PublishError",
    "Queue",
    "RabbitEventsError",
    "RefusedError",
    "Router",
    "Settlement",
    "Subscription",
    "Topology",
    "TopologyError",
    "UnroutableError",
    "event",
    "forward",
    "upcast",
]

"""Typed events for RabbitMQ: declare them, handle them, lose none."""

from rabbitevents import facts
from rabbitevents.browsing import Browsing
from rabbitevents.bus import Bus
from rabbitevents.consuming.current import detached
from rabbitevents.consuming.work import undone
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
from rabbitevents.facts import Fact
from rabbitevents.failures import BatchError
from rabbitevents.fields import event_fields
from rabbitevents.lines import LineFilter
from rabbitevents.message import ACK, REJECT, REQUEUE, Delivery, Message, Outcome, Settlement, forward
from rabbitevents.options import Batch
from rabbitevents.payload.codec import Codec
from rabbitevents.payload.own import wire_type
from rabbitevents.plugin import Consume, ConsumeBatch, Host, Look, Plugin, Publish
from rabbitevents.properties import (
    Headers,
    HeaderValue,
    Properties,
    Timestamp,
    decode_properties,
    encode_properties,
)
from rabbitevents.publishing.writer import Writer
from rabbitevents.routing import Router, Subscription
from rabbitevents.states import Check, Depth, Finding, Health, Load
from rabbitevents.sync import SyncBus
from rabbitevents.topology import Binding, Exchange, Queue, Topology
from rabbitevents.wire import Limits, entity_of

__all__ = [
    "ACK",
    "REJECT",
    "REQUEUE",
    "Batch",
    "BatchError",
    "Binding",
    "BrokerError",
    "BrokerUnavailableError",
    "Browsing",
    "Bus",
    "Check",
    "Codec",
    "ConfigurationError",
    "Consume",
    "ConsumeBatch",
    "DecodeError",
    "Delivery",
    "Depth",
    "EncodeError",
    "Event",
    "Exchange",
    "Fact",
    "Finding",
    "HeaderValue",
    "Headers",
    "Health",
    "Host",
    "Limits",
    "LineFilter",
    "Load",
    "Look",
    "Message",
    "Metadata",
    "NotSentError",
    "Outcome",
    "OutcomeUnknownError",
    "Plugin",
    "Properties",
    "Publish",
    "PublishError",
    "Queue",
    "RabbitEventsError",
    "RefusedError",
    "Router",
    "Settlement",
    "Subscription",
    "SyncBus",
    "Timestamp",
    "Topology",
    "TopologyError",
    "UnroutableError",
    "Writer",
    "decode_properties",
    "detached",
    "encode_properties",
    "entity_of",
    "event",
    "event_fields",
    "facts",
    "forward",
    "undone",
    "upcast",
    "wire_type",
]

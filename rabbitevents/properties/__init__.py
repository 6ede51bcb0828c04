"""AMQP 0-9-1 basic properties: one value, and the bytes it travels as.

Reading is tolerant where the specification leaves room and the client libraries break: a timestamp of any size
stays a number, text that is not UTF-8 survives by ``surrogateescape``. What cannot be read at all (an unknown field
type, tables nested deeper than `MAX_DEPTH`) is a `DecodeError` of that one message, never of its neighbours.

Source: AMQP 0-9-1 specification, sections 4.2.5 (data types) and 4.2.6 (content header), with RabbitMQ's errata for
field types (https://www.rabbitmq.com/amqp-0-9-1-errata).
"""

from __future__ import annotations

from rabbitevents.properties.encoding import decode_properties, encode_properties, glance
from rabbitevents.properties.reading import Table
from rabbitevents.properties.values import MAX_DEPTH, NO_HEADERS, Headers, HeaderValue, Properties, Timestamp, short
from rabbitevents.properties.writing import encode_table

__all__ = [
    "MAX_DEPTH",
    "NO_HEADERS",
    "HeaderValue",
    "Headers",
    "Properties",
    "Table",
    "Timestamp",
    "decode_properties",
    "encode_properties",
    "encode_table",
    "glance",
    "short",
]

"""How an event looks on the wire, written and read here and nowhere else (`docs/wire-contract.md` is the table).

Four forms are understood, each with a room of its own: AMQP's own words (`amqp`), the structured JSON document
(`document`), CloudEvents (`cloudevents`), and MassTransit's envelope (`masstransit`). `write` chooses by the form that
is asked for, `read` by what came.
"""

from __future__ import annotations

from rabbitevents.wire.amqp import JSON, text_of, with_correlation
from rabbitevents.wire.cloudevents import CLOUDEVENT, cloud_headers
from rabbitevents.wire.document import DOCUMENT
from rabbitevents.wire.limits import Limits
from rabbitevents.wire.reading import entity_id_in, entity_of, glean, identify, read
from rabbitevents.wire.received import Received
from rabbitevents.wire.times import read_time
from rabbitevents.wire.words import fits, read_version, shown
from rabbitevents.wire.writing import Form, write

__all__ = [
    "CLOUDEVENT",
    "DOCUMENT",
    "JSON",
    "Form",
    "Limits",
    "Received",
    "cloud_headers",
    "entity_id_in",
    "entity_of",
    "fits",
    "glean",
    "identify",
    "read",
    "read_time",
    "read_version",
    "shown",
    "text_of",
    "with_correlation",
    "write",
]

"""How large an event may be."""

from __future__ import annotations

import msgspec

from rabbitevents.arguments import whole
from rabbitevents.errors import EncodeError
from rabbitevents.message import Message
from rabbitevents.properties import encode_properties, short


class Limits(msgspec.Struct, frozen=True):
    """The largest event, in bytes, both ways. The broker's own limit for a body is 16 MiB (4.0), 128 MiB before."""

    body: int = 1_048_576
    headers: int = 65_536
    """Properties and headers together, encoded. They must fit one AMQP frame (128 KiB)."""

    def __post_init__(self) -> None:
        whole("Limits: body", self.body, least=0)  # 0: a look that wants no body
        whole("Limits: headers", self.headers)

    def check(self, message_body: bytes, properties: bytes, name: str) -> None:
        """Raise `EncodeError` for a body, or encoded properties, over the limit."""
        if len(message_body) > self.body:
            raise EncodeError(
                f"{name}: the body is {len(message_body):,} bytes, over the limit of {self.body:,}: "
                "send a reference to it instead, or raise Bus(limits=Limits(body=...))"
            )
        if len(properties) > self.headers:
            raise EncodeError(f"{name}: its headers are {len(properties):,} bytes, over the limit of {self.headers:,}")

    def check_message(self, message: Message) -> None:
        """Raise `EncodeError` for a message that a bus with these limits cannot publish."""
        short(message.routing_key, f"the routing key of {message.type[:40]}")
        self.check(message.body, encode_properties(message.properties), message.type)

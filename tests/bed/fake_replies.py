"""What a broker that grants everything answers to each method."""

from typing import Any, cast

from pamqp import commands as spec
from pamqp.base import Frame

_CAPABILITIES = {
    "publisher_confirms": True,
    "exchange_exchange_bindings": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "consumer_priorities": True,
    "authentication_failure_close": True,
    "per_consumer_qos": True,
    "direct_reply_to": True,
}


def start(version: str) -> spec.Connection.Start:
    """Return the greeting of a RabbitMQ of this version."""
    properties = {"capabilities": _CAPABILITIES, "product": "RabbitMQ", "version": version}
    return spec.Connection.Start(server_properties=cast("Any", properties), mechanisms="PLAIN AMQPLAIN")


def usual_reply(frame: Frame) -> Frame | None:
    """Return the reply that grants what `frame` asks for; None where the protocol has none."""
    match frame:
        case spec.Queue.Declare():
            return spec.Queue.DeclareOk(frame.queue, 0, 0)
        case spec.Queue.Delete():
            return spec.Queue.DeleteOk(0)
        case spec.Queue.Purge():
            return spec.Queue.PurgeOk(0)
        case spec.Basic.Consume():
            return spec.Basic.ConsumeOk(frame.consumer_tag)
        case spec.Basic.Cancel():
            return spec.Basic.CancelOk(frame.consumer_tag)
        case spec.Basic.Get():
            return spec.Basic.GetEmpty()
        case spec.Channel.Flow():
            return spec.Channel.FlowOk(frame.active)
        case _ if frame.synchronous:
            return _method(frame.valid_responses[0])()
        case _:
            return None


def _method(name: str) -> type[Frame]:
    kind, method = name.split(".")
    return cast("type[Frame]", getattr(getattr(spec, kind), method))

"""What to do when no broker can be used: the errors say what happened, and this says the way out."""

from __future__ import annotations

from typing import Final

from rabbitevents import BrokerUnavailableError, RabbitEventsError

_BY_CODE: Final = {
    403: "check the user and the password in the URL (signs such as / or @ are written %2F, %40)",
    530: "check the virtual host in the URL, and what the user may do there (rabbitmqctl list_permissions)",
}
"""By the broker's reply code (AMQP 0-9-1, 1.1); its texts differ from version to version."""

_OTHERWISE: Final = "is RabbitMQ running there? docker run -p 5672:5672 rabbitmq:4 starts one"


def advice(error: RabbitEventsError) -> str:
    """Return what to do about an error, as the end of a line; empty where its text says it already."""
    if not isinstance(error, BrokerUnavailableError):
        return ""
    return f"; {_BY_CODE.get(error.code, _OTHERWISE)}"

"""What the embedded broker says to a declaration, with RabbitMQ's reply codes (3.10.8 was asked)."""

from __future__ import annotations

from rabbitevents.errors import TopologyError
from rabbitevents.topology import Arguments, Exchange, Queue, missing

STANDARD = (Exchange("amq.direct", "direct"), Exchange("amq.fanout", "fanout"), Exchange("amq.topic", "topic"))
"""Exchanges that every broker has."""

_NUMBERS = ("x-message-ttl", "x-max-length", "x-max-length-bytes", "x-expires")
_TEXTS = ("x-dead-letter-exchange", "x-dead-letter-routing-key")
_WORDS = {
    "x-overflow": ("drop-head", "reject-publish"),
    "x-dead-letter-strategy": ("at-most-once", "at-least-once"),
    "x-queue-type": ("quorum", "classic"),
}


def refusal(there: Exchange | Queue | None, wanted: Exchange | Queue, *, passive: bool) -> TopologyError | None:
    """Return what keeps ``wanted`` from being declared, where ``there`` is what has its name; None: it may be."""
    what = f"{'queue' if isinstance(wanted, Queue) else 'exchange'} {wanted.name!r}"
    if isinstance(wanted, Exchange) and wanted.kind is None:
        return TopologyError(missing(wanted.name), name=wanted.name, code=404) if there is None else None
    if passive:
        text = f"{what} does not exist: have it declared, or let this bus declare"
        return TopologyError(text, name=wanted.name, code=404) if there is None else None
    if there == wanted:
        return None
    if there is not None:
        text = f"{what} exists with other arguments: it is {there}, and this bus wants {wanted}"
        return TopologyError(text, name=wanted.name, code=406)
    if not wanted.name or wanted.name.startswith("amq."):
        return TopologyError(f"{what}: the name is the broker's own", name=wanted.name, code=403)
    wrong = _wrong(wanted.arguments) if isinstance(wanted, Queue) else None
    return TopologyError(f"{what}: {wrong}", name=wanted.name, code=406) if wrong is not None else None


def _wrong(arguments: Arguments) -> str | None:
    """Return what is wrong with a queue's arguments."""
    for name, value in arguments.items():
        if name in _NUMBERS and (not isinstance(value, int) or value < (name == "x-expires")):
            return f"{name} is {value!r}, and must be a number that is not negative"
        if name in _TEXTS and not isinstance(value, str):
            return f"{name} is {value!r}, and must be text"
        if name in _WORDS and value not in _WORDS[name]:
            return f"{name} is {value!r}, and must be one of {', '.join(_WORDS[name])}"
    if "x-dead-letter-routing-key" in arguments and "x-dead-letter-exchange" not in arguments:
        return "x-dead-letter-routing-key needs x-dead-letter-exchange"
    return None

"""RabbitMQ's ``CC`` and ``BCC``: headers by which a publisher names further routing keys.

Source: https://www.rabbitmq.com/docs/sender-selected; what is no array is refused with 406 (3.10.8 was asked).
"""

from __future__ import annotations

from rabbitevents.properties import Headers


def further_keys(headers: Headers, *names: str) -> list[str]:
    """Return the routing keys that the headers of these ``names`` hold; what is no text in them leads nowhere."""
    found: list[str] = []
    for name in names:
        keys = headers.get(name)
        if isinstance(keys, (list, tuple)):
            found += [key for key in keys if isinstance(key, str)]
    return found


def unacceptable(headers: Headers) -> str | None:
    """Return the name of the header that is no array of routing keys."""
    return next((name for name in ("CC", "BCC") if not isinstance(headers.get(name, []), (list, tuple))), None)


def without(headers: Headers, name: str) -> Headers:
    """Return ``headers`` without one of them."""
    return {key: value for key, value in headers.items() if key != name} if name in headers else headers

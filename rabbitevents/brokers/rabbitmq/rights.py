"""The rights that a topology takes at RabbitMQ, and how to say which of them is missing.

RabbitMQ gives a user three patterns in a virtual host: names of exchanges and queues to configure (make and delete),
to write (publish to, bind a queue, be handed dead letters) and to read (consume, bind from). What each step takes was
measured on 3.10.8.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Final, Literal
from urllib.parse import unquote

import msgspec

from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.topology import DELAY_DUE, DUE, Binding, Exchange, Queue, Topology

Right = Literal["configure", "write", "read"]

_TARGETS: Final = ("alternate-exchange", "x-dead-letter-exchange")
_DEFAULT_EXCHANGE: Final = "amq.default"
"""What the exchange without a name is called where rights are concerned."""

_MOVING: Final = r"(\.moving)?"

_KEEP: Final = "that command replaces the rights that the user has: keep what else it needs"


class Lack(msgspec.Struct, frozen=True, order=True):
    """A right that a user does not have, on the exchange or queue of that name, or on a topic of that exchange."""

    right: Right
    name: str
    topic: str = ""


def target(item: Exchange | Queue) -> str | None:
    """Return the exchange that ``item`` hands messages on to: to make it takes write on that, and read on itself."""
    return next((str(item.arguments[name]) for name in _TARGETS if name in item.arguments), None)


def login(address: Address) -> tuple[str, str]:
    """Return the user and the virtual host that a URL leads to."""
    url = address.parsed
    return url.user or "guest", unquote(url.raw_path.removeprefix("/")) or "/"


def said(lacks: Iterable[Lack]) -> str:
    """Return missing rights in words: "configure on 'a', 'b'; read on 'c'"."""
    names: dict[Right, list[str]] = {}
    for lack in sorted(set(lacks)):
        what = f"topic {lack.topic!r} of exchange {lack.name!r}" if lack.topic else repr(lack.name)
        names.setdefault(lack.right, []).append(what)
    return "; ".join(f"{right} on {', '.join(each)}" for right, each in names.items())


def grant(topology: Topology, address: Address) -> str:
    """Return the command that grants what ``topology`` takes: to declare it, to publish to it and to consume from it.

    The queues that events wait in are made when they are first needed, so their names are among the patterns.
    """
    user, vhost = login(address)
    command = ["rabbitmqctl", "set_permissions", "-p", vhost, user]
    return shlex.join([*command, *(_pattern(topology, right) for right in ("configure", "write", "read"))])


def remedy(lacks: Iterable[Lack], topology: Topology, address: Address) -> str:
    """Return what grants ``lacks``: rights on topics stand beside the three patterns."""
    kinds = {bool(lack.topic) for lack in lacks}
    commands = [f"{grant(topology, address)} ({_KEEP})"] if False in kinds else []
    if True in kinds:
        user, vhost = login(address)
        commands.append(f"rabbitmqctl set_topic_permissions {shlex.join(['-p', vhost, user])} EXCHANGE WRITE READ")
    return ", and ".join(commands)


def addition(lack: Lack, address: Address) -> str:
    """Return what to add to a user's rights for one more thing."""
    user, vhost = login(address)
    which = {"configure": "first", "write": "second", "read": "third"}[lack.right]
    return (
        f"user {user!r} in virtual host {vhost!r} lacks {said([lack])}: let the {which} pattern of "
        f"`{shlex.join(['rabbitmqctl', 'set_permissions', '-p', vhost, user])} CONFIGURE WRITE READ` fit "
        f"^{_escaped(lack.name)}$ too"
    )


def _pattern(topology: Topology, right: Right) -> str:
    things = [item for item in topology.items if not isinstance(item, Binding)]
    own = [item for item in things if isinstance(item, Queue) or item.kind is not None]
    queues = [item.name for item in things if isinstance(item, Queue)]
    leads_on = [item for item in things if target(item) is not None]
    bindings = [item for item in topology.items if isinstance(item, Binding)]
    # Published to, or, those that events come out of when they have waited, what a waiting queue hands on to.
    written = [item.name for item in own if isinstance(item, Exchange) and not item.name.endswith(".dead")]
    names = {
        "configure": [item.name for item in own],
        "write": [
            *(binding.queue for binding in bindings),
            *(target(item) or "" for item in leads_on),
            *written,
            *([_DEFAULT_EXCHANGE] if queues else []),
        ],
        "read": [*(binding.exchange for binding in bindings), *queues, *(item.name for item in leads_on)],
    }[right]
    waiting = _waiting_queues(things) if queues else []
    # What stands in for a handler's queue while that is made anew is read, too.
    moved = {binding.queue for binding in bindings if binding.exchange == DELAY_DUE} if right == "read" else set[str]()
    patterns = [f"{_escaped(name)}{_MOVING if name in moved else ''}" for name in dict.fromkeys(names)]
    return f"^({'|'.join([*patterns, *waiting])})$" if names else "^$"


def _waiting_queues(things: Iterable[Exchange | Queue]) -> list[str]:
    """Return patterns of the families of queues that events wait in."""
    ways_out = [item.name for item in things if isinstance(item, Exchange) and item.name.endswith(DUE)]
    return [
        rf"{_escaped('delay' if name == DELAY_DUE else name.removesuffix(DUE) + '.delay')}\.[0-9]+" for name in ways_out
    ]


def _escaped(name: str) -> str:
    return re.escape(name).replace(r"\-", "-")

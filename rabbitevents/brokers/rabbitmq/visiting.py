"""A visit at a broker: what it says of itself, and what a user may do there. Nothing is made, published or consumed."""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.control import ControlChannel
from rabbitevents.brokers.rabbitmq.declaring import declare, depth
from rabbitevents.brokers.rabbitmq.rights import Lack, addition, login, remedy, said
from rabbitevents.brokers.rabbitmq.trials import lacks_for
from rabbitevents.errors import BrokerError
from rabbitevents.states import Depth
from rabbitevents.topology import Binding, Exchange, Queue, Topology

PATIENCE: Final = 2.5
"""Seconds that connecting may take."""

_FORBIDDEN: Final = 403
_REFUSED: Final = (403, 404, 405, 406)

_DAY: Final = 86_400.0

_DEFAULT: Final = "amq.default"
"""What the exchange without a name is called where rights are concerned."""


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """What one URL led to: a broker that says what it is, or a problem with the code that it was refused with."""

    address: str
    user: str
    vhost: str
    problem: str = ""
    code: int = 0
    server: Mapping[str, str] = {}
    days_left: float | None = None
    """For how long the broker's certificate still holds; None without TLS, or where it is not checked."""


class Lacking(msgspec.Struct, frozen=True):
    """Rights that are missing to "use" what stands, to "make" what does not, or to "bind"; and what grants them."""

    kind: str
    what: str
    way_out: str


class Looked(msgspec.Struct, frozen=True):
    """What there is: how deep queues are (None: not there), what is missing and why, and what may not be looked at."""

    depths: dict[str, Depth | None]
    missing: dict[str, str]
    lacks: list[Lacking]


class Visitor:
    """One URL's visitor: `arrive`, ask, `leave`."""

    def __init__(self, address: Address, context: ssl.SSLContext | None, *, name: str = "rabbitevents doctor") -> None:
        self._name = name
        self._address = address
        self._context = context
        self._connection: Connection | None = None

    async def arrive(self) -> Visit:
        """Connect. Does not raise."""
        user, vhost = login(self._address)
        here = Visit(address=str(self._address), user=user, vhost=vhost)
        try:
            self._connection = await Connection.open(
                self._address, name=self._name, heartbeat=10, context=self._context, timeout=PATIENCE
            )
        except BrokerError as error:
            return msgspec.structs.replace(here, problem=str(error), code=error.code)
        server = {key: value for key, value in self._connection.server.items() if isinstance(value, str)}
        return msgspec.structs.replace(here, server=server, days_left=_days_left(self._connection.certificate))

    @property
    def connection(self) -> Connection:
        """The connection. Raises `BrokerError` where there is none."""
        if self._connection is None:
            raise BrokerError(f"there is no connection to {self._address}")
        return self._connection

    async def depth(self, queue: str) -> Depth | None:
        """Look into a queue; None is one that is not there. Raises `BrokerError`."""
        return await depth(self.connection, queue)

    async def look(self, service: Topology, queues: Iterable[str]) -> Looked:
        """Look into ``queues`` and those of ``service``, and for the service's exchanges. Raises `BrokerError`."""
        found = await declare(self.connection, service.exchanges, passive=True, service=service, said=set())
        missing = {name: str(error) for name, error in found.refused.items() if error.code != _FORBIDDEN}
        hidden = found.refused.keys() - missing.keys()
        depths: dict[str, Depth | None] = {}
        for queue in dict.fromkeys((*service.queues, *queues)):
            try:
                depths[queue] = await self.depth(queue)
            except BrokerError as error:
                if error.code != _FORBIDDEN:
                    raise
                hidden |= {queue}
            if queue in depths and depths[queue] is None and queue in service.queues:
                missing[queue] = f"there is no queue {queue!r}"
        return Looked(depths, missing, [self._hidden(hidden, service)] if hidden else [])

    def _hidden(self, names: Iterable[str], service: Topology) -> Lacking:
        user, vhost = login(self._address)
        what = f"user {user!r} in virtual host {vhost!r} may not look at {', '.join(map(repr, sorted(names)))}"
        return Lacking("use", what, remedy([Lack("read", name) for name in names], service, self._address))

    async def lacks(
        self, service: Topology, absent: set[str], consumed: Iterable[str], published: str
    ) -> list[Lacking]:
        """Return which rights are missing to use what there is, to make what is ``absent``, and to bind. Raises `BrokerError`.

        ``service`` is what the user may have to declare. Of two rights that one thing takes, the first is known.
        """
        # To write on the one and read on the other: a binding that nobody has, which is as free to ask for.
        use = [Binding(queue, written, "") for queue in consumed for written in (published, _DEFAULT)]
        make = [item for item in service.items if absent & _made_of(item)]
        bind = [item for item in service.items if isinstance(item, Binding) and item not in make]
        everything = {name for item in [*use, *bind] for name in (item.queue, item.exchange)}
        found = {
            "use": await lacks_for(use, everything, self._ask),
            "make": await lacks_for(make, absent, self._ask),
            "bind": await lacks_for(bind, everything, self._ask),
        }
        return [self._lacking(kind, lacks, service) for kind, lacks in found.items() if lacks]

    def _lacking(self, kind: str, lacks: Iterable[Lack], service: Topology) -> Lacking:
        user, vhost = login(self._address)
        what = f"user {user!r} in virtual host {vhost!r} lacks {said(lacks)}"
        additions = "; ".join(addition(lack, self._address) for lack in sorted(lacks))
        return Lacking(kind, what, remedy(lacks, service, self._address) if service.items else additions)

    async def _ask(self, question: Callable[[ControlChannel], Awaitable[Any]], what: str) -> BrokerError | None:
        try:
            await self.connection.ask(question, what)
        except BrokerError as error:
            if error.code not in _REFUSED:
                raise
            return error
        return None

    async def leave(self) -> None:
        """Close. Does not raise."""
        if self._connection is not None:
            await self._connection.close(1.0)


def _made_of(item: Exchange | Queue | Binding) -> set[str]:
    return {item.queue, item.exchange} if isinstance(item, Binding) else {item.name}


def _days_left(certificate: Mapping[str, object]) -> float | None:
    ends = certificate.get("notAfter")
    return (ssl.cert_time_to_seconds(ends) - time.time()) / _DAY if isinstance(ends, str) else None

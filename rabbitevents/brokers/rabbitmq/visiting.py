"""A visit at a broker: what it says of itself, and what a user may do there. Nothing is made, published or consumed."""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from aiormq.abc import AbstractChannel

from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.declaring import declare, depth
from rabbitevents.brokers.rabbitmq.rights import Lack, addition, login
from rabbitevents.brokers.rabbitmq.trials import lacks_for
from rabbitevents.errors import BrokerError
from rabbitevents.states import Depth
from rabbitevents.topology import Binding, Exchange, Topology

PATIENCE: Final = 3.0
"""Seconds that connecting may take."""

_REFUSED: Final = (403, 404, 405, 406)

_DAY: Final = 86_400.0


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


class Visitor:
    """One URL's visitor: `arrive`, ask, `leave`."""

    def __init__(self, address: Address, context: ssl.SSLContext | None) -> None:
        self._address = address
        self._context = context
        self._connection: Connection | None = None

    async def arrive(self) -> Visit:
        """Connect. Does not raise."""
        user, vhost = login(self._address)
        here = Visit(address=str(self._address), user=user, vhost=vhost)
        try:
            self._connection = await Connection.open(
                self._address, name="rabbitevents doctor", heartbeat=10, context=self._context, timeout=PATIENCE
            )
        except BrokerError as error:
            return msgspec.structs.replace(here, problem=str(error), code=error.code)
        said = {key: value for key, value in self._connection.server.items() if isinstance(value, str)}
        return msgspec.structs.replace(here, server=said, days_left=_days_left(self._connection.certificate))

    @property
    def connection(self) -> Connection:
        """The connection. Raises `BrokerError` where there is none."""
        if self._connection is None:
            raise BrokerError(f"there is no connection to {self._address}")
        return self._connection

    async def depths(self, queues: Iterable[str]) -> dict[str, Depth | None]:
        """Look into queues; None is one that is not there. Raises `BrokerError`."""
        return {queue: await depth(self.connection, queue) for queue in queues}

    async def missing(self, topology: Topology) -> dict[str, str]:
        """Return which exchanges and queues are not there, or may not be looked at, and why. Raises `BrokerError`."""
        found = await declare(self.connection, topology, passive=True, service=topology, said=set())
        return {name: str(error) for name, error in found.refused.items()}

    async def lacks(self, topology: Topology, absent: set[str], consumed: Iterable[str], published: str) -> list[str]:
        """Return which rights are missing, and the way out: to make what is ``absent``, to bind, consume and publish.

        Raises `BrokerError`. Of two rights that are missing for the same thing, the first is said.
        """
        bound = [item for item in topology.items if isinstance(item, Binding)]
        # To write on the one and read on the other: a binding that nobody has, which is as free to ask for.
        used = [Binding(queue, written, "") for queue in consumed for written in (published, "amq.default")]
        made = [item for item in topology.items if not isinstance(item, Binding)]
        everything = {item.name for item in made} | {item.queue for item in used}
        asked = [item for item in made if item.name in absent and not (isinstance(item, Exchange) and not item.kind)]
        lacks: set[Lack] = set()
        lacks |= await lacks_for([*asked, *bound, *used], everything, self._ask)
        return [addition(lack, self._address) for lack in sorted(lacks)]

    async def _ask(self, question: Callable[[AbstractChannel], Awaitable[Any]], what: str) -> BrokerError | None:
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


def _days_left(certificate: Mapping[str, object]) -> float | None:
    ends = certificate.get("notAfter")
    return (ssl.cert_time_to_seconds(ends) - time.time()) / _DAY if isinstance(ends, str) else None

"""A connection that stands up again: connecting, restoring, running, and when it is lost, connecting anew."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from rabbitevents.brokers.rabbitmq.connection import RPC_DEADLINE, Address, Wire
from rabbitevents.errors import BrokerError, BrokerUnavailableError
from rabbitevents.facts import Connected, ConnectionLost, Report

log: logging.Logger = logging.getLogger("rabbitevents.broker")

BACKOFF = wait_random_exponential(multiplier=0.2, max=3.0)
"""The pause before the next try: random, so that clients do not come back all at once, and 3 s at most."""

SPREAD = 0.2
"""Clients that lost their connections together come back over this many seconds."""

_FINAL = (403, 530)
"""Reply codes on the way in that no waiting will change: login refused, virtual host not allowed or not there."""

Restore = Callable[[Wire], Awaitable[None]]
"""Prepares what belongs on a new connection. Raises `BrokerError` if it cannot."""


class Link:
    """A connection under supervision: it is made again whenever it is lost, until it is closed.

    ``restore`` is called with each new `Wire` and prepares what belongs on it; the link runs once it has returned.
    """

    def __init__(
        self,
        role: str,
        where: Sequence[Address],
        *,
        name: str,
        heartbeat: int,
        context: ssl.SSLContext | None,
        restore: Restore,
        report: Report | None,
    ) -> None:
        self.role = role
        self.state: str = "connecting"
        self.detail: str = ""
        self.wire: Wire | None = None
        self.running: asyncio.Event = asyncio.Event()
        self.refused: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        self._where = where
        self._next = 0
        self._name = f"{name}/{role}"
        self._heartbeat = heartbeat
        self._context = context
        self._restore = restore
        self._report = report
        self._answers: dict[str, str] = {}
        self._refusing: set[Address] = set()
        self._down_since = asyncio.get_running_loop().time()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to connect."""
        self._task = asyncio.get_running_loop().create_task(
            self._supervise(), name=f"rabbitevents {self.role} connection"
        )

    async def _supervise(self) -> None:
        """Connect, restore, wait until it is lost, and again. Ends by being cancelled, and by nothing else."""
        while True:
            wire: Wire = await AsyncRetrying(wait=BACKOFF, retry=retry_if_exception_type(Exception))(self._connect)
            await self._run(wire)

    async def _connect(self) -> Wire:
        address = self._where[self._next % len(self._where)]
        self._next += 1
        wire: Wire | None = None
        try:
            wire = await Wire.open(
                address, name=self._name, heartbeat=self._heartbeat, context=self._context, timeout=RPC_DEADLINE
            )
            self.state = "restoring"
            await self._restore(wire)
        except Exception as error:
            # Whatever went wrong, this supervisor tries again: it is the one that must not end.
            self.state, self.detail = "connecting", str(error)
            self._answers[str(address)] = str(error)
            if not isinstance(error, BrokerError):
                log.exception("the %s connection to %s could not be prepared", self.role, address)
            elif self.refuses(error):
                self._refusing.add(address)
                if len(self._refusing) == len(set(self._where)) and not self.refused.done():
                    self.refused.set_result(error)
            if wire is not None:
                await wire.close()
            raise
        except asyncio.CancelledError:
            if wire is not None:
                wire.tap.abort("closed")
            raise
        return wire

    @staticmethod
    def refuses(error: BrokerError) -> bool:
        """Say whether waiting cannot help: the login, the virtual host or the certificate was refused."""
        return error.code in _FINAL or "TLS: the broker's certificate" in str(error)

    async def _run(self, wire: Wire) -> None:
        now = asyncio.get_running_loop().time
        self.wire, self.state, self.detail = wire, "running", ""
        self._next -= 1  # a broker that served well is the first to be asked again
        log.info("%s connection to %s stands", self.role, wire.address)
        if self._report is not None:
            self._report(Connected(self.role, str(wire.address), now() - self._down_since))
        self.running.set()
        try:
            reason = await asyncio.shield(wire.lost)
        finally:
            self._down_since = now()
            self.running.clear()
            self.wire = None
        self.state, self.detail = "connecting", reason
        self._next += 1
        log.warning("%s connection to %s lost: %s", self.role, wire.address, reason)
        if self._report is not None:
            self._report(ConnectionLost(self.role, str(wire.address), reason))
        await wire.close(0.5)
        await asyncio.sleep(random.uniform(0, SPREAD))

    def unavailable(self, waited: float) -> BrokerUnavailableError:
        """Return the error that says where this link looked, and what each place answered."""
        looked = "; ".join(self._answers.values()) or f"no answer yet from {', '.join(map(str, self._where))}"
        return BrokerUnavailableError(f"no broker could be used within {waited:g} s: {looked}")

    async def close(self, timeout: float) -> None:
        """End the supervision and the connection, within ``timeout`` seconds. Does not raise."""
        wire = self.wire
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=timeout)
        self.state, self.detail = "closed", ""
        if wire is not None:
            await wire.close(timeout)

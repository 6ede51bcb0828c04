"""A connection that stands up again: connecting, restoring, running, and when it is lost, connecting anew."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.calls import RPC_DEADLINE
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.errors import BrokerError, BrokerUnavailableError
from rabbitevents.facts import Connected, ConnectionLost, Report
from rabbitevents.states import Check

log: logging.Logger = logging.getLogger("rabbitevents.broker")

BACKOFF = wait_random_exponential(multiplier=0.2, max=3.0)
"""The pause before the next try: random, so that clients do not come back all at once, and 3 s at most."""

SPREAD = 0.2
"""Clients that lost their connections together come back over this many seconds."""

SAY_AGAIN = 5.0
SAY_AGAIN_MAX = 300.0
"""Seconds between two lines that say that a broker is away: doubled, from the first to the second."""

_FINAL = (403, 530)
"""Reply codes on the way in that no waiting will change: login refused, virtual host not allowed or not there."""

Restore = Callable[[Connection], Awaitable[None]]
"""Prepares what belongs on a new connection. Raises `BrokerError` if it cannot."""


class Link:
    """A connection under supervision: it is made again whenever it is lost, until it is closed.

    ``restore`` is called with each new `Connection` and prepares what belongs on it; the link runs once it has returned.
    ``patience`` is for how long (seconds) a first connection is waited for; one that was lost is looked for without end.
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
        patience: float,
    ) -> None:
        self.role = role
        self.state: str = "connecting"
        self.detail: str = ""
        self.connection: Connection | None = None
        self.running: asyncio.Event = asyncio.Event()
        self.listeners: set[Callable[[], object]] = set()
        """Called whenever the link runs again, and must not wait."""
        self.refused: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        self._where = where
        self._next = 0
        self._attempts = 0
        self._name = f"{name}/{role}"
        self._heartbeat = heartbeat
        self._context = context
        self._restore = restore
        self._report = report
        self._answers: dict[str, str] = {}
        self._refusing: set[Address] = set()
        self._down_since = asyncio.get_running_loop().time()
        self._lost_once = False
        self._patience = patience
        self._say_away_at = 0.0
        """When it is said next that no broker can be used (event loop's clock); 0 while that was not said yet."""
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to connect."""
        self._task = asyncio.get_running_loop().create_task(
            self._supervise(), name=f"rabbitevents {self.role} connection"
        )

    async def _supervise(self) -> None:
        """Connect, restore, wait until it is lost, and again. Ends by being cancelled, and by nothing else."""
        while True:
            connection: Connection = await AsyncRetrying(wait=BACKOFF, retry=retry_if_exception_type(Exception))(
                self._connect
            )
            await self._run(connection)

    async def _connect(self) -> Connection:
        address = self._where[self._next % len(self._where)]
        self._next += 1
        self._attempts += 1
        connection: Connection | None = None
        try:
            connection = await Connection.open(
                address,
                name=self._name,
                heartbeat=address.heartbeat(self._heartbeat),
                context=self._context,
                timeout=RPC_DEADLINE,
                attempt=self._attempts - 1,
            )
            self.state = "restoring"
            await self._restore(connection)
        except Exception as error:
            # Whatever went wrong, this supervisor tries again: it is the one that must not end.
            self.state, self.detail = "connecting", str(error)
            self._answers[str(address)] = str(error)
            if not isinstance(error, BrokerError):
                log.exception("the %s connection to %s could not be prepared", self.role, address)
            elif self.refuses(error):
                self._refusing.add(address)
                if len(self._refusing) == len(set(self._where)) and not self.refused.done():
                    # Not the error itself: its traceback would keep the attempt, for as long as this link lives.
                    self.refused.set_result(BrokerError(str(error), code=error.code))
            self._say_away(str(error))
            if connection is not None:
                await connection.close()
            raise
        except asyncio.CancelledError:
            if connection is not None:
                connection.tap.abort("closed")
            raise
        return connection

    def _say_away(self, reason: str) -> None:
        """Say that no broker can be used: after the first try, and then whenever it lasts twice as long."""
        now = asyncio.get_running_loop().time()
        if now < self._say_away_at or (
            self.refused.done() and not self._lost_once
        ):  # then the start fails, and says so
            return
        lasts = now - self._down_since
        self._say_away_at = now + min(max(lasts, SAY_AGAIN), SAY_AGAIN_MAX)
        how_long = "until it is there" if self._lost_once else f"for up to {self._patience:g} s"
        for_now = f"; it has been away for {lasts:.0f} s" if lasts >= 1 else ""
        log.warning("no %s connection: %s%s; tried again %s", self.role, reason, for_now, how_long)

    @staticmethod
    def refuses(error: BrokerError) -> bool:
        """Say whether waiting cannot help: the login, the virtual host or the certificate was refused.

        A limit of connections that is reached comes under the code of a virtual host that is not there, and only its
        text tells them apart; it is waited out.
        """
        text = str(error)
        full = "limit" in text and "reached" in text
        return (error.code in _FINAL and not full) or "TLS: the broker's certificate" in text

    async def _run(self, connection: Connection) -> None:
        now = asyncio.get_running_loop().time
        self.connection, self.state, self.detail = connection, "running", ""
        self._attempts = 0
        self._say_stands(connection)
        if self._report is not None:
            self._report(Connected(self.role, str(connection.address), now() - self._down_since))
        self.running.set()
        for listener in tuple(self.listeners):
            listener()
        try:
            reason = await asyncio.shield(connection.lost)
        finally:
            self._down_since = now()
            self.running.clear()
            self.connection = None
        self.state, self.detail = "connecting", reason
        if not connection.fell_silent:
            self._next -= 1  # a broker that served well is the first to be asked again, unless it fell silent
        self._lost_once = True
        log.warning("%s connection to %s lost: %s", self.role, connection.address, reason)
        if self._report is not None:
            self._report(ConnectionLost(self.role, str(connection.address), reason))
        await connection.close(0.5)
        await asyncio.sleep(random.uniform(0, SPREAD))

    def _say_stands(self, connection: Connection) -> None:
        """Say that the connection stands, as loud as it was said that there was none."""
        downtime = asyncio.get_running_loop().time() - self._down_since
        if self._lost_once:
            log.warning("%s connection to %s stands again, after %.1f s", self.role, connection.address, downtime)
        elif self._say_away_at:
            log.warning("%s connection to %s stands, after %.1f s", self.role, connection.address, downtime)
        else:
            log.info("%s connection to %s stands", self.role, connection.address)
        self._say_away_at = 0.0

    def check(self) -> Check:
        """Say whether the connection stands, and the broker listens."""
        problem = self.detail
        connection = self.connection
        if connection is not None and not problem:
            blocked = connection.tap.blocked
            problem = f"the broker blocks publishers: {blocked}" if blocked is not None else connection.quiet
        return Check(f"connection {self.role}", self.state == "running" and not problem, problem)

    def unavailable(self, waited: float) -> BrokerUnavailableError:
        """Return the error that says where this link looked, and what each place answered."""
        looked = "; ".join(self._answers.values()) or f"no answer yet from {', '.join(map(str, self._where))}"
        return BrokerUnavailableError(f"no broker could be used within {waited:g} s: {looked}")

    async def close(self, timeout: float) -> None:
        """End the supervision and the connection, within ``timeout`` seconds. Does not raise."""
        connection = self.connection
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=timeout)
        self.state, self.detail = "closed", ""
        if connection is not None:
            await connection.close(timeout)

"""NOTIFY, which wakes who waits in other processes once a transaction has committed: PostgreSQL's own, on top of the poll.

It is never sent in the transaction itself, where one waits for the other to commit (10,421 appends/s became 3,774). What is
heard shortens the poll, and nothing depends on it: such connections die without a word.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4
from zlib import crc32

from sqlalchemy import Connection, Table, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents import ConfigurationError
from rabbitevents_sql.databases import AWAY, backend_of, reason, where

PAUSE: Final = 0.01
"""Seconds between two NOTIFYs of a process, and between two that wake somebody."""

PROBING: Final = 10.0
"""Seconds between two looks whether a NOTIFY still arrives."""

ANSWER: Final = 5.0
"""Seconds that a statement, or a NOTIFY, may take."""

AGAIN: Final = (0.5, 2.0, 10.0)
"""Seconds before a listener that has failed is made anew; the last one for ever."""

DRIVERS: Final = ("asyncpg", "psycopg")
"""The drivers whose way of listening is known here."""


class Channel:
    """Where those listen who wait for the rows of one table.

    :param engine: The engine that leads to it.
    :param table: The table.
    :param plugin: What the plugin is called whose rows those are, as its errors say it: "Outbox".
    :param who: Who listens, as the log says it: "the relay of".
    :param log: Where it is said that nothing is heard, and that it is again.

    Raises `ConfigurationError` for an engine on which nobody can listen.
    """

    def __init__(self, engine: AsyncEngine, table: Table, *, plugin: str, who: str, log: logging.Logger) -> None:
        if backend_of(engine) != "postgresql":
            raise ConfigurationError(
                f"{plugin}: wake='notify' needs PostgreSQL, SQLite has no NOTIFY: leave it out, and what other processes write "
                "is looked for now and then"
            )
        if engine.dialect.driver not in DRIVERS:
            raise ConfigurationError(
                f"{plugin}: wake='notify' listens by {' or '.join(DRIVERS)}, not by {engine.dialect.driver}"
            )
        self.name: str = f"rabbitevents_{plugin.lower()}_{crc32(table.fullname.encode()):08x}"
        """What it is called in the database."""
        self.engine: AsyncEngine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.who: str = f"{who} {table.name} in {where(engine)}"
        self.log: logging.Logger = log

    async def notify(self, text: str = "") -> None:
        """Send one NOTIFY, by a connection of the pool, committed by itself. Raises what the database does.

        :param text: What it says; by default nothing, which wakes everybody.
        """
        async with asyncio.timeout(ANSWER), self.engine.connect() as connection:
            await connection.execute(select(func.pg_notify(self.name, text)))


class Notifier:
    """Send a NOTIFY after commits: at once for the first one, and one for all that follow within 10 ms.

    :param channel: Where to.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._wanted = False
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self) -> None:
        """Note the event loop, by which threads of its process send too. Without one, what they write is polled for."""
        self._loop = asyncio.get_running_loop()

    def poke(self) -> None:
        """Have a NOTIFY sent soon. It may be called from any thread."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self.poke)
            return
        self._wanted = True
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._run(), name="rabbitevents notify")

    async def _run(self) -> None:
        while self._wanted:
            self._wanted = False
            try:
                await self._channel.notify()
            except AWAY as error:
                self._channel.log.debug("no NOTIFY was sent, and the rows are found without: %s", reason(error))
            await asyncio.sleep(PAUSE)


class Listener:
    """Call something at each NOTIFY, by a connection that is its own, and made anew whenever nothing arrives there.

    :param channel: Where from.
    :param wake: What is called, in this event loop, at most once in 10 ms.
    """

    def __init__(self, channel: Channel, wake: Callable[[], None]) -> None:
        self._channel = channel
        self._wake = wake
        self._is_asyncpg = channel.engine.dialect.driver == "asyncpg"
        self._me = str(uuid4())
        self._arrived = asyncio.Event()
        """Set when our own NOTIFY has arrived, or can no more."""
        self._loop = asyncio.get_running_loop()
        self._waking: asyncio.TimerHandle | None = None
        self._woken_at = 0.0
        self._failures = 0

    async def run(self) -> None:
        """Listen, until cancelled."""
        while True:
            try:
                await self._listen()
            except Exception as error:
                # Whatever it was, the poll goes on, and the next connection may do: drivers raise errors of their own here.
                self._say(error)
            await asyncio.sleep(AGAIN[min(self._failures, len(AGAIN)) - 1])

    async def _listen(self) -> None:
        driver = await self._connect()
        hearing = self._loop.create_task(self._hear(driver), name="rabbitevents listen")
        hearing.add_done_callback(lambda _: self._arrived.set())
        try:
            await self._probe(hearing)
        finally:
            hearing.cancel()
            await asyncio.wait({hearing})
            if self._is_asyncpg:
                driver.terminate()  # to close it would wait for an answer, and there may be nobody any more
            else:
                await driver.close()

    async def _connect(self) -> Any:
        """Return a connection as the driver has it, taken out of the pool for good."""
        async with asyncio.timeout(ANSWER), self._channel.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await connection.run_sync(Connection.detach)
            await connection.invalidate()
        return driver

    async def _hear(self, driver: Any) -> None:
        """Take what is notified; return, or raise, when the connection is gone."""
        if self._is_asyncpg:
            gone = asyncio.Event()

            def end(_connection: object) -> None:
                gone.set()

            def take(_connection: object, _pid: int, _channel: str, text: str) -> None:
                self._take(text)

            driver.add_termination_listener(end)
            await driver.add_listener(self._channel.name, take)
            self._arrived.set()
            await gone.wait()
            return
        await driver.set_autocommit(True)
        await driver.execute(f"LISTEN {self._channel.name}")
        self._arrived.set()
        async for each in driver.notifies():
            self._take(each.payload)

    async def _probe(self, hearing: asyncio.Task[None]) -> None:
        """Look now and then whether a NOTIFY arrives, through the pool, as those of writers come. Raises if it does not."""
        await self._arrival("no LISTEN was possible")
        while not hearing.done():
            await self._channel.notify(self._me)
            await self._arrival("a NOTIFY does not arrive (through pgbouncer in transaction mode none does)")
            if not hearing.done():
                self._is_there()
                await asyncio.wait({hearing}, timeout=PROBING)
        await hearing
        raise ConnectionError("the connection is gone")

    async def _arrival(self, otherwise: str) -> None:
        try:
            async with asyncio.timeout(ANSWER):
                await self._arrived.wait()
        except TimeoutError:
            raise TimeoutError(otherwise) from None
        self._arrived.clear()

    def _take(self, text: str) -> None:
        if text == self._me:
            self._arrived.set()
        elif not text and self._waking is None:
            pause = max(0.0, self._woken_at + PAUSE - self._loop.time())
            self._waking = self._loop.call_later(pause, self._pass_on)

    def _pass_on(self) -> None:
        self._waking, self._woken_at = None, self._loop.time()
        self._wake()

    def _is_there(self) -> None:
        if self._failures:
            self._channel.log.info("%s is woken by NOTIFY again", self._channel.who)
            self._wake()  # for what was notified meanwhile
        self._failures = 0

    def _say(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            self._channel.log.warning(
                "%s polls only, until NOTIFY is heard again: %s", self._channel.who, reason(error)
            )

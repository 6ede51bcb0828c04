"""What a scenario happens in: servers that belong to us, a proxy before the broker, and the processes under test."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import aio_pika
import msgspec
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from rabbitevents_eventstore import EventTables
from rabbitevents_outbox import Tables
from rabbitevents_process import ProcessTables
from tests.bed.cluster import cluster
from tests.bed.network import Network
from tests.bed.postgres import PostgresServer
from tests.bed.proxy import Proxy
from tests.bed.rabbitmq import RabbitNode
from tests.bed.redis import ON_DISK, RedisServer, shards
from tests.chaos.events import EFFECTS, GRACE, JUNK
from tests.chaos.ledger import Ledger, Tail
from tests.chaos.loads import Load
from tests.chaos.peers import environment
from tests.chaos.process import Process
from tests.committed import until

HEARTBEAT = 4
"""Seconds: a broker that is silent for two and a half of them is given up, so that an injection does not last."""

BACKLOG = 240.0
"""Seconds in which a backlog has to be worked off."""

ROOT = Path(__file__).parents[2]
"""The sources that are run, unless others are."""


_SOON = (
    "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}, {channel_tick_interval, 1000}, "
    "{quorum_tick_interval, 500}]}]"
)
"""What falls due while its queue is full comes 5 s later, and not three minutes, which is the broker's default; and who
holds a delivery for too long is found within a second, and not a minute; what queues say of themselves is as fresh."""


class Servers:
    """The servers that all scenarios of a run share, each started when it is first needed; RabbitMQ at once.

    Of a ``size`` of more than one it is a cluster, each of its nodes on a host of its own. Raises NetworkError where
    such hosts cannot be made. With ``management`` each has its HTTP API, which operators' commands look at.
    """

    def __init__(self, stack: AsyncExitStack, root: str | None, size: int = 1, *, management: bool = False) -> None:
        self.network: Network | None = stack.enter_context(Network(size)) if size > 1 else None
        hosts = self.network.hosts if self.network else ()
        self.nodes: list[RabbitNode] = stack.enter_context(
            cluster(size, root, hosts=hosts, advanced=_SOON, management=management)
        )
        self.moved_until = 0.0
        """When the whole broker was last started again in a way that moves entities to other partitions."""
        self._stack = stack
        self.stores: list[RedisServer | PostgresServer] = []
        """Those beside the broker that were started."""

    @property
    def node(self) -> RabbitNode:
        """A node that runs, if one does: the first."""
        return next((node for node in self.nodes if node.running), self.nodes[0])

    @cached_property
    def redis(self) -> RedisServer:
        """A Redis that forgets nothing that it answered."""
        server = self._stack.enter_context(RedisServer(**ON_DISK))
        self.stores.append(server)
        return server

    @cached_property
    def shards(self) -> list[RedisServer]:
        """A Redis Cluster of three, which forgets nothing either."""
        servers = self._stack.enter_context(shards(**ON_DISK))
        self.stores += servers
        return servers

    @cached_property
    def peers(self) -> Path:
        """The interpreter of those that we are compared with."""
        return environment()

    @cached_property
    def postgres(self) -> PostgresServer:
        """A PostgreSQL."""
        server = self._stack.enter_context(PostgresServer())
        self.stores.append(server)
        return server


class World:
    """What faults and the runner reach for. Times are on the ledger's clock."""

    def __init__(self, servers: Servers, proxy: Proxy, url: str, folder: Path, seed: str) -> None:
        self.servers = servers
        self.proxy = proxy
        self.url = url
        self.folder = folder
        self.random = random.Random(seed)
        self.tail = Tail(folder / "ledger")
        self.services: list[Process] = []
        self.publisher: Process | None = None
        self.database: str | None = None
        self.crashes = 0
        """How many processes that handle were killed, or stopped while what keeps their marks was away."""
        self.store_away = False
        self.late = 0
        """How many processes did not end in time when they were asked to."""
        self.generation = 0
        """How many times other code was deployed."""
        self.forfeit_until = self.forgotten_until = 0.0

    @property
    def node(self) -> RabbitNode:
        """The broker, or a node of it that runs."""
        return self.servers.node

    @property
    def vhost(self) -> str:
        """The virtual host's name."""
        return self.url.rpartition("/")[2]

    # --- what is said of it ---

    def confirmed_since(self, at: float) -> int:
        """Count the publishes that were confirmed after a time."""
        return sum(1 for each in self.tail.read().confirmed.values() if each > at)

    def connections(self) -> int:
        """Count the connections that the broker has; none while it is away."""
        return 0 if not self.node.running else int(self.node.eval("length(rabbit_networking:connections())"))

    def queues(self) -> dict[str, int]:
        """Count what lies in each queue of this scenario, delivered or not, or due and on its way to another one.

        A queue without a leader has -1.
        """
        printed = self.node.eval(f"""
            [begin
                {{resource, _, _, Name}} = amqqueue:get_name(Q),
                {{Name, case catch ra:local_query(amqqueue:get_pid(Q), fun rabbit_fifo:overview/1) of
                    {{ok, {{_, #{{num_messages := N}} = O}}, _}} ->
                        N + maps:get(num_discarded, O, 0) + maps:get(num_discard_checked_out, O, 0);
                    _ -> case catch rabbit_amqqueue:info(Q, [messages]) of [{{_, N}}] -> N; _ -> -1 end
                end}}
            end || Q <- rabbit_amqqueue:list(<<"{self.vhost}">>)]""")
        return {name: int(number) for name, number in re.findall(r'<<"([^"]+)">>,(-?\d+)', printed)}

    # --- its processes ---

    async def begin(self, load: Load, sources: Path) -> None:
        """Start two services and a publisher, and wait until events flow."""
        self.load, environment = load, await self.place(load)
        python = str(self.servers.peers) if "peers" in load.uses else sys.executable

        def process(words: list[str], name: str) -> Process:
            return Process(words, environment, self.folder / f"{name}.log", sources, python)

        self.operator = process(["rabbitevents"], "operator")
        self.services = [process(load.serving, f"service-{number}") for number in range(2)]
        for service in self.services:
            await service.start()
        await until(lambda: all("runs on" in each.said for each in self.services), "the services", 60, every=0.05)
        await asyncio.to_thread(self.node.settle)
        self.publisher = process(load.publishing, "publisher")
        await self.publisher.start()
        await self.flowing()

    async def operate(self, *words: str, seconds: float = 60) -> tuple[int, str]:
        """Run a command of ``rabbitevents topology`` for the bus; return its exit status, and what it said.

        Raises TimeoutError.
        """
        command, *more = words
        looking = ["--http", self.node.http_url]
        self.operator.told = ["rabbitevents", "topology", command, f"tests.chaos.{self.load.bus}", *more, *looking]
        await self.operator.start()
        if not await self.operator.ended(seconds):
            await self.operator.kill()
            raise TimeoutError(f"topology {command} had not ended after {seconds:g} s: {self.operator.said[-500:]}")
        return self.operator.status or 0, self.operator.said

    async def place(self, load: Load) -> dict[str, str]:
        """Say where everything is that a load needs, by the names that `tests.chaos.events.place` has; make its database."""
        nodes = self.servers.nodes
        urls = [f"{node.url}{self.vhost}" for node in nodes] if len(nodes) > 1 else [self.proxy.url_for(self.url)]
        self.random.shuffle(urls)
        found = {"AMQP_URL": " ".join(f"{url}?heartbeat={HEARTBEAT}" for url in urls)}
        found["LEDGER"] = str(self.folder / "ledger")
        if "redis" in load.uses:
            found["REDIS_PORT"] = str(self.servers.redis.port)
        if "shards" in load.uses:
            found["SHARD_PORT"] = str(self.servers.shards[0].port)
        if "postgres" in load.uses:
            found["DATABASE_URL"] = self.database = await self._make_database()
        return found

    async def _make_database(self) -> str:
        server = self.servers.postgres
        url = server.url(database=await asyncio.to_thread(server.database))
        engine = create_async_engine(url)
        for tables in (Tables(), EventTables(), ProcessTables()):
            await tables.create(engine)
        async with engine.begin() as connection:
            await connection.run_sync(EFFECTS.metadata.create_all)
        await engine.dispose()
        return url

    async def flowing(self, since: float | None = None, seconds: float = 120) -> None:
        """Wait until an event that was confirmed after ``since`` (now) is handled. Raises TimeoutError."""
        since = time.monotonic() if since is None else since
        await until(lambda: self.tail.read().flows(since), f"an event of {self.folder.name}", seconds, every=0.05)

    async def end(self, deadline: float, dies: Callable[[str], bool]) -> None:
        """Let all that was published be handled, at most ``deadline`` seconds; then stop, and note what lies in queues.

        ``dies`` says what is not to be handled, since it ends among the dead.
        """
        assert self.publisher is not None
        self.publisher.send(signal.SIGTERM)
        self.late += not await self.publisher.ended(45)
        await self.quiet(deadline, dies)
        for service in self.services:
            service.send(signal.SIGTERM)
        for service in self.services:
            self.late += not await service.ended(GRACE + 5 + 5)  # the machine is busy
        await self.kill()
        await self.take_stock()

    async def take_stock(self) -> None:
        """Note what lies in queues, and the rows that were committed, once all processes have ended."""
        await self._drain()
        if self.database is not None:
            await self._read_effects()
        self.tail.read()

    async def kill(self) -> None:
        """End all processes at once."""
        for process in [*self.services, *([self.publisher] if self.publisher else [])]:
            await process.kill()

    async def quiet(self, deadline: float, dies: Callable[[str], bool]) -> None:
        """Wait until no queue but the dead has anything, and stays so for a second; at most so long without an effect.

        A machine that was busy while the broker was away has a backlog, which is worked off; for `BACKLOG` at most.
        """
        began, since, progress = time.monotonic(), 0.0, (0, 0.0)
        while (now := time.monotonic()) < min(progress[1] or began, began + BACKLOG) + deadline:
            if len(self.tail.read().done) > progress[0]:
                progress = len(self.tail.done), now
            held = await asyncio.to_thread(self.queues)
            waits = any(number for name, number in held.items() if not is_dead(name))
            missing = [id for id in self.tail.confirmed.keys() - self.tail.done.keys() if not dies(id)]
            since = (since or now) if not waits and not missing else 0.0
            if since and now - since > 1:
                return
            await asyncio.sleep(0.2)

    async def _drain(self) -> None:
        """Take all that lies in queues, and note it: by consuming, since ordered queues know no basic.get.

        What was held up behind something else falls due when that is taken, and lies in another queue then.
        """
        connection = await aio_pika.connect(self.url)
        async with connection, connection.channel() as channel:
            for _ in range(4):
                held = [name for name, number in (await asyncio.to_thread(self.queues)).items() if number]
                for name in held:
                    await self._empty(await channel.get_queue(name, ensure=False))
                if not held:
                    return

    async def _empty(self, queue: AbstractQueue) -> None:
        ledger, what = Ledger(self.folder / "ledger"), "dead" if is_dead(queue.name) else "left"
        async with queue.iterator(no_ack=True, timeout=2) as messages:
            with contextlib.suppress(TimeoutError):
                async for message in messages:
                    ledger.write(what, [_id_of(message)])

    async def _read_effects(self) -> None:
        """Note the rows that handlers have committed, and what was never sent."""
        assert self.database is not None
        ledger, engine = Ledger(self.folder / "ledger"), create_async_engine(self.database)
        async with engine.connect() as connection:
            for row in await connection.execute(select(EFFECTS).order_by(EFFECTS.c.number)):
                ledger.write(row.what, [row.id])
            outbox = Tables().outbox
            for row in await connection.execute(select(outbox.c.body)):
                document = msgspec.json.decode(row.body)
                ledger.write("left", [f"{document['lane']}/{document['number']}"])
        await engine.dispose()


def is_dead(queue: str) -> bool:
    """Whether a queue is where what was given up on ends."""
    return queue.endswith(".dead") or queue == "delay.lost"


def _id_of(message: AbstractIncomingMessage) -> str:
    if str(message.message_id).startswith(JUNK):  # which cannot be read, and is called so
        return str(message.message_id)
    document: Any = msgspec.json.decode(message.body)
    if message.content_encoding and "argsrepr" in message.headers:  # Celery's: arguments come first
        return "/".join(map(str, document[0]))
    return f"{document['lane']}/{document['number']}"


@asynccontextmanager
async def world(servers: Servers, folder: Path, seed: str) -> AsyncGenerator[World]:
    """Make a place of its own for a scenario: a virtual host, a proxy, a folder; its processes are gone at the end."""
    url = await asyncio.to_thread(servers.node.add_vhost)
    async with Proxy.before(url) as proxy:
        made = World(servers, proxy, url, folder, seed)
        try:
            yield made
        finally:
            await made.kill()
            if all(node.running for node in servers.nodes):
                await asyncio.to_thread(servers.node.delete_vhost, url)

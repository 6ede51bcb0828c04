"""Both brokers fulfil the one seam."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from rabbitevents.brokers import Broker, Settings
from rabbitevents.brokers.embedded.broker import EmbeddedBroker
from rabbitevents.brokers.rabbitmq.broker import RabbitMQ
from rabbitevents.testing.conformance import BrokerConformance
from tests.bed.proxy import Proxy


class EmbeddedBench:
    """Clients of one embedded broker."""

    def __init__(self, server: EmbeddedBroker | None = None) -> None:
        self.server = server or EmbeddedBroker()
        self.clients: list[Broker] = []

    async def connect(self) -> Broker:
        client = self.server.client()
        await client.start(Settings(), None)
        self.clients.append(client)
        return client

    async def break_connections(self) -> None:
        self.server.drop_connections()

    async def stop(self) -> None:
        for client in self.clients:
            await client.stop(asyncio.get_running_loop().time() + 5)
        self.server.clock.stop()


class RabbitBench:
    """Clients of a RabbitMQ node, by way of a proxy that can cut their wires."""

    def __init__(self, url: str, proxy: Proxy) -> None:
        self.url = proxy.url_for(url)
        self.proxy = proxy
        self.clients: list[RabbitMQ] = []

    async def connect(self) -> Broker:
        client = RabbitMQ(self.url)
        await client.start(Settings(), None)
        self.clients.append(client)
        return client

    async def break_connections(self) -> None:
        self.proxy.cut()

    async def stop(self) -> None:
        await asyncio.gather(*(client.stop(asyncio.get_running_loop().time() + 5) for client in self.clients))


class TestEmbedded(BrokerConformance):
    __test__ = True

    @pytest.fixture
    async def bench(self) -> AsyncIterator[EmbeddedBench]:
        bench = EmbeddedBench()
        yield bench
        await bench.stop()


class TestRabbitMQ(BrokerConformance):
    __test__ = True

    @pytest.fixture
    async def bench(self, rabbit_url: str) -> AsyncIterator[RabbitBench]:
        async with Proxy.before(rabbit_url) as proxy:
            bench = RabbitBench(rabbit_url, proxy)
            yield bench
            await bench.stop()

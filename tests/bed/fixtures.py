"""What a test can ask for by name.

RABBITEVENTS_TEST_AMQP_URL gives a broker to test against: tests that have to control the node are skipped then.
RABBITEVENTS_TEST_ROOT names the folder of another system (see scripts/rabbitmq4) whose RabbitMQ to start.
RABBITEVENTS_TEST_CLUSTER says of how many nodes the broker is that all tests share; one, if it is not set.
Without them the RabbitMQ that is installed here is started.
"""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from random import choice
from typing import Protocol

import pytest

from tests.bed.cluster import cluster
from tests.bed.fake_broker import FakeBroker
from tests.bed.otlp import Collector
from tests.bed.proxy import Proxy
from tests.bed.rabbitmq import RabbitNode
from tests.bed.redis import RedisServer


class NodeFactory(Protocol):
    """Start a node for one test; the arguments are those of `RabbitNode`."""

    async def __call__(
        self,
        *,
        config: Mapping[str, str] | None = None,
        advanced: str = "[]",
        tls: bool = False,
        management: bool = False,
    ) -> RabbitNode: ...


def _root() -> Path | None:
    folder = os.environ.get("RABBITEVENTS_TEST_ROOT")
    return None if folder is None else Path(folder)


def _require_own_node() -> None:
    if "RABBITEVENTS_TEST_AMQP_URL" in os.environ:
        pytest.skip("this test controls its node; the broker of RABBITEVENTS_TEST_AMQP_URL is not ours to control")
    if _root() is None and not Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists():
        pytest.skip("no rabbitmq-server is installed here")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is missing: a node would outlive a test run that is killed")


@pytest.fixture(scope="session")
def rabbit_cluster() -> Iterator[list[RabbitNode]]:
    """The members of the cluster that all tests of the run share: leave them as they were."""
    _require_own_node()
    with cluster(int(os.environ.get("RABBITEVENTS_TEST_CLUSTER", "1")), _root()) as members:
        yield members


@pytest.fixture(scope="session")
def rabbit_node(rabbit_cluster: list[RabbitNode]) -> RabbitNode:
    """The first node of it, which speaks for all."""
    return rabbit_cluster[0]


_QUICK = "[{rabbit, [{quorum_tick_interval, 500}]}]"
"""What quorum queues say of themselves is half a second old at most, and not five."""


@pytest.fixture(scope="session")
def managed_node() -> Iterator[RabbitNode]:
    """A node with the management plugin, that the tests of a process share: leave it as it was."""
    _require_own_node()
    with RabbitNode(management=True, advanced=_QUICK, root=_root()) as node:
        yield node


@pytest.fixture(scope="module")
def managed_cluster() -> Iterator[list[RabbitNode]]:
    """Three nodes that are one cluster, with the management plugin, that the tests of a module share."""
    _require_own_node()
    with cluster(3, _root(), management=True) as members:
        yield members


@pytest.fixture
def own_node() -> Iterator[NodeFactory]:
    """Start nodes that only this test has, to kill, suspend and restart; they are gone when it ends.

    `node = await own_node(config={"consumer_timeout": "60000"})`
    """
    _require_own_node()
    with ExitStack() as nodes:

        async def start(
            *,
            config: Mapping[str, str] | None = None,
            advanced: str = "[]",
            tls: bool = False,
            management: bool = False,
        ) -> RabbitNode:
            node = RabbitNode(config=config, advanced=advanced, tls=tls, management=management, root=_root())
            nodes.callback(node.close)
            return await node.astart()

        yield start


@pytest.fixture
def rabbit_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a virtual host made for this test, or of the given broker, where names have to be unique."""
    given = os.environ.get("RABBITEVENTS_TEST_AMQP_URL")
    if given is not None:
        yield given
        return
    members: list[RabbitNode] = request.getfixturevalue("rabbit_cluster")
    url = members[0].add_vhost()
    yield url.replace(f":{members[0].port}/", f":{choice(members).port}/")
    members[0].delete_vhost(url)


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis server that only this test has, without persistence; it is gone when the test ends."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server is installed here")
    with RedisServer() as server:
        yield server


@pytest.fixture
async def proxy() -> AsyncIterator[Callable[[str], Awaitable[Proxy]]]:
    """Put a proxy in front of the broker of an AMQP URL: `through = await proxy(url)`, then `through.url_for(url)`."""
    async with AsyncExitStack() as proxies:

        async def start(url: str) -> Proxy:
            return await proxies.enter_async_context(Proxy.before(url))

        yield start


@pytest.fixture
async def fake_broker() -> AsyncIterator[FakeBroker]:
    """A broker that follows a script; tests that want one with other settings make a `FakeBroker` themselves."""
    async with FakeBroker() as broker:
        yield broker


@pytest.fixture
def otlp() -> Iterator[Collector]:
    """Something that OTLP exporters can send to, which keeps what they say: ``otlp.endpoint``, ``otlp.spans``."""
    with Collector() as collector:
        yield collector

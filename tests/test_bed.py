"""The node of the test bed does what it says; its network and its fake broker are tested where they are."""

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage, SSLOptions
from aiormq.exceptions import ChannelAccessRefused

from tests.bed.fixtures import NodeFactory
from tests.bed.node import NodeError
from tests.bed.rabbitmq import RabbitNode


async def _publish(url: str, queue: str, *, kind: str = "classic", count: int = 1) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": kind})
        for number in range(count):
            body = str(number).encode()
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, queue)


async def test_a_killed_node_comes_back_with_its_messages(own_node: NodeFactory) -> None:
    node = await own_node()
    await _publish(node.url, "orders", count=3)
    await node.asettle()
    first = node.pid

    await node.akill()
    with pytest.raises(OSError, match=r"Connect call failed|Connection refused"):  # uvloop
        await asyncio.open_connection("127.0.0.1", node.port)
    await node.astart()

    assert node.pid != first
    assert node.queue_counts("orders") == (3, 0, 0)


async def test_a_suspended_node_holds_its_sockets_and_goes_on_later(own_node: NodeFactory) -> None:
    node = await own_node(tls=True, config={"consumer_timeout": "60000"})
    assert node.eval("application:get_env(rabbit, consumer_timeout)") == "{ok,60000}"
    trusting = SSLOptions(cafile=str(node.ca_file))
    async with await aio_pika.connect(node.tls_url, ssl_options=trusting) as connection:
        node.suspend()
        answer = asyncio.ensure_future(connection.channel())
        _, pending = await asyncio.wait([answer], timeout=0.3)
        assert pending

        node.resume()

        await asyncio.wait_for(answer, 5)
    await node.astop()
    assert not node.running


def test_a_node_dies_with_a_test_run_that_is_killed(rabbit_node: RabbitNode) -> None:
    script = (
        "import sys, time; from tests.bed.rabbitmq import RabbitNode\n"
        "node = RabbitNode(root=sys.argv[1] or None).start(); print(node.layout.folder, flush=True); time.sleep(60)"
    )
    root = str(rabbit_node.layout.root or "")
    with subprocess.Popen([sys.executable, "-c", script, root], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        folder = Path(run.stdout.readline().strip())
        assert _processes_of(folder)

        run.kill()

    deadline = time.monotonic() + 5
    while _processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _processes_of(folder) == []
    shutil.rmtree(folder, ignore_errors=True)  # another test process may have removed it


async def test_virtual_hosts_know_nothing_of_each_other(rabbit_node: RabbitNode, rabbit_url: str) -> None:
    other = rabbit_node.add_vhost("other/one")
    await _publish(rabbit_url, "orders")
    await _publish(other, "orders", count=2)

    assert rabbit_node.queue_counts("orders", rabbit_url).ready == 1
    assert rabbit_node.queue_counts("orders", other).ready == 2
    rabbit_node.delete_vhost(other)
    with pytest.raises(NodeError):
        rabbit_node.queue_counts("orders", other)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_counts_are_of_this_moment(rabbit_node: RabbitNode, rabbit_url: str, kind: str) -> None:
    await _publish(rabbit_url, "orders", kind=kind, count=3)
    assert rabbit_node.queue_counts("orders", rabbit_url) == (3, 0, 0)

    async with await aio_pika.connect(rabbit_url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=2)
        queue = await channel.get_queue("orders")
        came: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        await queue.consume(came.put)
        await came.get()
        await came.get()
        assert await rabbit_node.aqueue_counts("orders", rabbit_url) == (1, 2, 1)


async def test_a_deleted_queue_is_gone(rabbit_node: RabbitNode, rabbit_url: str) -> None:
    await _publish(rabbit_url, "orders", kind="quorum")

    await rabbit_node.adelete_queue("orders", rabbit_url)

    with pytest.raises(NodeError):
        rabbit_node.queue_counts("orders", rabbit_url)


async def test_the_memory_alarm_holds_publishes_back(rabbit_node: RabbitNode, rabbit_url: str) -> None:
    async with await aio_pika.connect(rabbit_url) as connection:
        channel = await connection.channel()
        await rabbit_node.aset_memory_alarm(True)
        # RabbitMQ holds the first message at its body: one that has none still passes.
        publish = asyncio.ensure_future(channel.default_exchange.publish(aio_pika.Message(b"x"), "nowhere"))
        try:
            _, pending = await asyncio.wait([publish], timeout=0.3)
            assert pending
        finally:
            await rabbit_node.aset_memory_alarm(False)

        await asyncio.wait_for(publish, 5)


async def test_permissions_passwords_and_connections_can_be_taken_away(
    rabbit_node: RabbitNode, rabbit_url: str
) -> None:
    url = rabbit_node.add_user(rabbit_url, "worker", "secret")
    rabbit_node.set_permissions(url, configure="", user="worker")
    connection = await aio_pika.connect(url)
    closed = asyncio.Event()
    connection.close_callbacks.add(lambda _sender, _reason: closed.set())
    with pytest.raises(ChannelAccessRefused):
        await (await connection.channel()).declare_queue("orders")

    rabbit_node.set_password("worker", "other")
    assert await rabbit_node.aclose_all_connections() >= 1

    await asyncio.wait_for(closed.wait(), 5)
    with pytest.raises(aio_pika.exceptions.AMQPConnectionError):
        await aio_pika.connect(url)


def test_the_tools_of_rabbitmq_work_too(rabbit_node: RabbitNode) -> None:
    assert rabbit_node.version in rabbit_node.ctl("version")
    with pytest.raises(NodeError, match="no_such_command"):
        rabbit_node.ctl("no_such_command")
    with pytest.raises(NodeError, match="oops"):
        rabbit_node.eval("exit(oops)")


def _processes_of(folder: Path) -> list[int]:
    """Every process whose environment names the folder, as a node's, its helpers' and its tools' do."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if folder.name.encode() in environment:
            found.append(int(process.name))
    return found

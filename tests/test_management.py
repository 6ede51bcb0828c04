"""Reading JSON over HTTP of servers that may say anything: no question is answered wrongly, and no password is shown."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from email.utils import formatdate
from typing import Any

import pytest

from rabbitevents import BrokerError, ConfigurationError
from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.management import Management
from rabbitevents.brokers.rabbitmq.site import LARGEST, read_url
from rabbitevents.operations.over_http import seen_over_http
from rabbitevents.operations.scene import Scene
from rabbitevents.operations.standing import queues_of
from rabbitevents.topology import Topology
from tests.bed.loopback import LOOPBACK, free_port

PASSWORD = "marker-in-the-password"
AMQP = Address(f"amqp://shop:{PASSWORD}@{LOOPBACK}:5672/sh%C3%B6p%2F%25")


def answer(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    """An HTTP answer, as a server sends it."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Server:
    """Answers each request by its path, or as ``said`` says; keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.said: Callable[[str], bytes] = lambda path: answer(b"[]")
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        self.asked.append(head.split(" ")[1])
        writer.write(self.said(self.asked[-1]))
        writer.close()
        with suppress(ConnectionError):  # who asked may have heard enough
            await writer.wait_closed()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    there = Server()
    listening = await asyncio.start_server(there.serve, LOOPBACK, 0)
    there.port = listening.sockets[0].getsockname()[1]
    yield there
    listening.close()


async def test_a_virtual_host_with_any_name_is_asked_for_as_the_user_of_the_broker(server: Server) -> None:
    server.said = lambda path: answer(b'[{"name": "q"}]')

    found = await Management(AMQP, f"{server.url}/behind/a/proxy/").list("queues/{vhost}?columns=name")

    assert found == [{"name": "q"}]
    assert server.asked == ["/behind/a/proxy/api/queues/sh%C3%B6p%2F%25?columns=name"]
    assert f"Basic {b64encode(f'shop:{PASSWORD}'.encode()).decode()}" in server.heads[0]


async def test_a_user_in_the_url_stands_before_the_brokers(server: Server) -> None:
    http = Management(AMQP, server.url.replace("//", "//seer:s%2Fcret@"))

    await http.get("overview")

    assert f"Basic {b64encode(b'seer:s/cret').decode()}" in server.heads[0]
    assert str(http) == server.url
    assert http.user == "seer"


@pytest.mark.parametrize(
    ("said", "problem", "code"),
    [
        (answer(b"{}", "401 Unauthorized"), "answers 401 to user 'shop'", 401),
        (answer(b"{}", "404 Not Found"), "answers 404", 404),
        (answer(b"{}", "500 Internal Server Error"), "answers 500", 500),
        (answer(b"", "301 Moved", "Location: https://there/"), "a redirection: say the URL that it leads to", 301),
        (answer(b"<html>"), "with what is no JSON", 0),
        (answer(b""), "with what is no JSON", 0),
        (answer(b"[" * 100_000), "with what is no JSON", 0),
        (answer(gzip.compress(b"[]"), "200 OK", "Content-Encoding: gzip"), "with what is no JSON", 0),
        (answer(b"[1,", length=50), "broke off", 0),
        (b"220 smtp.example ESMTP\r\n", "speaks no HTTP", 0),
        (b"", "speaks no HTTP", 0),
        (answer(b'{"error": "not a list"}'), "answers 200 with no list", 0),
        (answer(b"null"), "answers 200 with no list", 0),
    ],
    ids=lambda each: str(each)[:40],
)
async def test_what_is_no_answer_is_an_error(server: Server, said: bytes, problem: str, code: int) -> None:
    server.said = lambda path: said

    with pytest.raises(BrokerError) as raised:
        await Management(AMQP, server.url).list("queues/{vhost}")

    assert problem in str(raised.value)
    assert raised.value.code == code
    assert PASSWORD not in str(raised.value)


async def test_an_answer_in_chunks_and_one_of_3_megabytes_are_read(server: Server) -> None:
    many = json.dumps([{"name": f"queue-{number}", "messages_ready": 1} for number in range(70_000)]).encode()
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n1\r\n]\r\n0\r\n\r\n"

    server.said = lambda path: chunked if path.endswith("small") else answer(many)
    http = Management(AMQP, server.url)

    assert len(many) > 3_000_000
    assert await http.list("small") == [1]
    assert len(await http.list("large")) == 70_000


async def test_an_answer_without_an_end_is_broken_off(server: Server) -> None:
    server.said = lambda path: answer(b" " * (LARGEST + 1))

    with pytest.raises(BrokerError, match="longer than 32 MiB"):
        await Management(AMQP, server.url).get("overview")


async def test_an_answer_that_comes_too_slowly_is_not_waited_for() -> None:
    gone = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof() and not writer.is_closing():
            writer.write(b"H")
            with suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(65536), 0.01)
        writer.transport.abort()
        gone.set()

    listening = await asyncio.start_server(drip, LOOPBACK, 0)
    url = f"http://{LOOPBACK}:{listening.sockets[0].getsockname()[1]}"

    scene = await seen_over_http(bare(), Management(AMQP, url), within=0.3)
    await gone.wait()
    listening.close()

    assert set(scene.unseen) == {"objects", "numbers", "alarms", "nodes", "flags"}


async def test_nobody_there_is_an_error_with_the_address_and_without_the_password() -> None:
    port = free_port()

    with pytest.raises(BrokerError) as raised:
        await Management(AMQP, f"http://shop:{PASSWORD}@{LOOPBACK}:{port}").get("overview")

    assert str(raised.value) == f"http://{LOOPBACK}:{port}: nobody listens there (connection refused)"


async def test_the_clock_is_compared(server: Server) -> None:
    server.said = lambda path: answer(b"[]", "200 OK", f"Date: {formatdate(time.time() - 60, usegmt=True)}")
    http = Management(AMQP, server.url)

    await http.get("overview")
    skew = http.skew
    server.said = lambda path: answer(b"[]", "200 OK", "Date: yesterday")
    await http.get("overview")

    assert skew is not None
    assert 58 < skew < 63
    assert http.skew is None


@pytest.mark.parametrize(
    "told",
    [
        f"{PASSWORD}",
        f"ftp://{PASSWORD}@here",
        f"http://u:{PASSWORD}@",
        f"http://here/?{PASSWORD}",
        f"http://u:p/@{PASSWORD}",
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_without_being_shown(told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read_url(told, "the URL", "http://user:password@host:15672")

    assert PASSWORD not in str(raised.value)
    assert "write http://user:password@host:15672" in str(raised.value)


def test_it_is_looked_for_beside_the_broker_and_as_encrypted_as_that() -> None:
    assert str(Management(AMQP)) == f"http://{LOOPBACK}:15672"
    assert str(Management(Address("amqps://broker.example/"))) == "https://broker.example:15671"


# --- what is missing is not 0 ----------------------------------------------------------------------------------------


def bare() -> Scene:
    return Scene(exchange="events", routers=(), subscriptions=(), needed=Topology())


def test_numbers_that_are_not_said_are_not_known() -> None:
    said: list[Any] = [
        {"name": "new", "messages_ready": None, "consumers": "", "arguments": [], "policy": None},
        {"name": "blind", "arguments": "", "messages_unacknowledged": True, "members": None, "message_stats": []},
        {"no": "name"},
        "no object",
    ]
    queues = queues_of(said)

    assert (queues["new"].ready, queues["new"].consumers, queues["new"].policy) == (None, None, "")
    assert (queues["blind"].unacked, queues["blind"].acked, queues["blind"].members) == (None, None, ())


@pytest.mark.parametrize("document", [b"null", b"{}", b'""', b'[null, 1, "x", []]'])
async def test_documents_of_another_shape_are_not_looked_at_or_say_nothing(server: Server, document: bytes) -> None:
    server.said = lambda path: answer(document)

    scene = await seen_over_http(bare(), Management(AMQP, server.url))

    assert scene.standing.queues == {}
    assert ("objects" in scene.unseen) == (not document.startswith(b"["))


async def test_statistics_that_are_switched_off_are_said(server: Server) -> None:
    def said(path: str) -> bytes:
        return answer(b'{"disable_stats": true}' if path.endswith("overview") else b"[]")

    server.said = said

    scene = await seen_over_http(bare(), Management(AMQP, server.url))

    assert "management.disable_stats" in scene.unseen["numbers"]


async def test_questions_that_a_version_or_a_user_has_not_take_nothing_else_away(server: Server) -> None:
    def said(path: str) -> bytes:
        if "health" in path:
            return answer(b"{}", "404 Not Found")
        if "nodes" in path or "flags" in path:
            return answer(b"{}", "401 Unauthorized")
        return answer(b"{}" if path.endswith("overview") else b"[]")

    server.said = said

    scene = await seen_over_http(bare(), Management(AMQP, server.url))

    assert set(scene.unseen) == {"alarms", "nodes", "flags"}
    assert "rabbitmqctl set_user_tags shop monitoring" in scene.unseen["nodes"]

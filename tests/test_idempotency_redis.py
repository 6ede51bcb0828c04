"""The Redis store and its wire: shared round trips, deadlines, cancellations, and what Redis may do meanwhile."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from opentelemetry import context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import Redis as BlockingRedis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from rabbitevents import ConfigurationError
from rabbitevents_idempotency import (
    Acquired,
    Busy,
    Done,
    KeyRefusedError,
    RedisStore,
    StoreForbiddenError,
    StoreUnavailableError,
)
from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.proxy import Proxy
from tests.bed.redis import RedisServer
from tests.idempotent import once_it_answers
from tests.shop import eventually

LEASE = timedelta(seconds=30)
KEEP = timedelta(days=7)
CHECKOUT = Path(__file__).parent.parent


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis(port=redis_server.port) as client:
        yield client


def reads_of(server: RedisServer) -> int:
    """How often the server has read from a socket, this question included."""
    lines = server.command("INFO", "stats").decode().split("\r\n")
    return int(next(line.partition(":")[2] for line in lines if line.startswith("total_reads_processed")))


# --- round trips -----------------------------------------------------------------------------------------------------


async def test_claims_of_many_workers_share_round_trips(client: Redis, redis_server: RedisServer) -> None:
    store = RedisStore(client)

    async def work(worker: int) -> None:
        for number in range(20):
            key = f"{worker}-{number}"
            await store.claim(key, key, LEASE)
            await store.complete(key, key, KEEP)

    await work(-1)
    before = reads_of(redis_server)
    await asyncio.gather(*(work(worker) for worker in range(100)))
    reads = reads_of(redis_server) - before

    assert reads < 4000 / 20


def calls_of(server: RedisServer, command: str) -> int:
    """How often a command was run."""
    lines = server.command("INFO", "commandstats").decode().split("\r\n")
    found = [line for line in lines if line.startswith(f"cmdstat_{command}:")]
    return int(found[0].partition("calls=")[2].partition(",")[0]) if found else 0


async def test_what_is_asked_in_one_turn_of_the_loop_is_one_command(client: Redis, redis_server: RedisServer) -> None:
    store = RedisStore(client)
    await asyncio.gather(*(store.claim(f"k-{number}", "one", LEASE) for number in range(200)))
    before = calls_of(redis_server, "evalsha")

    answers = await asyncio.gather(
        *(store.complete(f"k-{number}", "one", KEEP) for number in range(200)),
        *(store.claim(f"k-{number}", "one", LEASE) for number in range(200, 256)),
    )

    assert calls_of(redis_server, "evalsha") - before == 1
    assert answers[:200] == [True] * 200
    assert all(isinstance(claim, Acquired) for claim in answers[200:])


async def test_more_than_a_trip_can_hold_takes_the_next(client: Redis) -> None:
    store = RedisStore(client)

    claims = await asyncio.gather(*(store.claim(f"k-{number}", "one", LEASE) for number in range(1000)))

    assert all(isinstance(claim, Acquired) for claim in claims)


async def test_each_key_of_a_trip_has_its_own_answer(client: Redis) -> None:
    store = RedisStore(client)
    await store.claim("done", "one", LEASE, digest="a")
    await store.complete("done", "one", KEEP)
    await store.claim("busy", "one", LEASE)
    await client.set("rabbitevents:foreign", "mine")

    answers = await asyncio.gather(
        store.claim("done", "other", LEASE, digest="a"),
        store.claim("foreign", "other", LEASE),
        store.claim("done", "other", LEASE, digest="b"),
        store.claim("free", "other", LEASE),
        store.claim("busy", "other", LEASE),
        store.complete("busy", "other", KEEP),
        return_exceptions=True,
    )

    assert [type(answer).__name__ for answer in answers] == [
        "Done", "KeyRefusedError", "Conflict", "Acquired", "Busy", "bool",
    ]  # fmt: skip


async def test_records_of_before_there_were_digests_are_understood(client: Redis) -> None:
    store, now = RedisStore(client), int(time.time() * 1000)
    await client.set("rabbitevents:done", f"done {now} 0 0 somebody")
    await client.set("rabbitevents:claimed", f"claimed {now} 2 {now + 60_000} somebody")

    assert await store.claim("done", "other", LEASE, digest="a") == Done()
    assert isinstance(await store.claim("claimed", "other", LEASE, digest="a"), Busy)
    assert await store.complete("claimed", "somebody", KEEP)


async def test_the_script_is_loaded_again_when_redis_forgot_it(client: Redis, redis_server: RedisServer) -> None:
    store = RedisStore(client)
    first = await store.claim("a", "one", LEASE)
    redis_server.command("SCRIPT", "FLUSH")

    answers = await asyncio.gather(*(store.claim("a", f"other-{number}", LEASE) for number in range(20)))

    assert isinstance(first, Acquired)
    assert all(isinstance(answer, Busy) for answer in answers)


@pytest.mark.parametrize("options", [{"decode_responses": True}, {"protocol": 3}, {"protocol": 2}])
async def test_any_client_s_settings_will_do(options: dict[str, Any], redis_server: RedisServer) -> None:
    async with Redis(port=redis_server.port, **options) as client:
        store = RedisStore(client)

        assert isinstance(await store.claim("a", "one", LEASE), Acquired)
        assert await store.complete("a", "one", KEEP)
        assert await store.claim("a", "other", LEASE) == Done()
        assert await store.look() == ()


@asynccontextmanager
async def cluster_of_one() -> AsyncGenerator[RedisServer]:
    """A cluster of one server, which has all slots."""
    with RedisServer(cluster_enabled="yes", cluster_port=str(free_port())) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        await eventually(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"), "the cluster", 20)
        yield server


async def test_a_cluster_will_do() -> None:
    async with cluster_of_one() as server, RedisCluster(host=LOOPBACK, port=server.port) as client:
        store = RedisStore(client)
        claims = await asyncio.gather(*(store.claim(f"key-{number}", "one", LEASE) for number in range(100)))
        completed = await store.complete("key-5", "one", KEEP)
        claim = await store.claim("key-5", "other", LEASE)

        assert all(isinstance(each, Acquired) for each in claims)
        assert completed
        assert claim == Done()
        assert all("redis-py 7" in warning for warning in await store.look())


async def test_a_client_that_leaves_connections_to_a_cluster_behind_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: dict[str, list[str]] = {}
    async with (
        cluster_of_one() as server,
        RedisCluster(host=LOOPBACK, port=server.port) as cluster,
        Redis(port=server.port) as alone,
    ):
        for version in ("6.4.0", "7.1.1", "7.2.0", "7.4.1", "8.0.0", "17.2.1"):
            monkeypatch.setattr(metadata, "version", {"redis": version}.__getitem__)
            said[version] = [*await RedisStore(cluster).look()]
            assert await RedisStore(alone).look() == ()

    warned = {version: warnings for version, warnings in said.items() if warnings}
    assert warned.keys() == {"7.2.0", "7.4.1"}
    for version, (warning,) in warned.items():
        assert f"redis-py {version}" in warning
        assert "take redis-py 8" in warning


# --- other clients ----------------------------------------------------------------------------------------------------


class ValkeyError(Exception):
    """The root of another client's errors."""


class NoScriptError(ValkeyError):
    """Of the same name as redis's."""


class AuthenticationError(ValkeyError):
    """Of the same name as redis's."""


class Another:
    """A client that is none of redis's: it has what is used of one, and errors of its own."""

    def __init__(self, client: Redis) -> None:
        self.client: Any = client  # whose annotations are partly unknown
        self.asked = 0

    async def __aenter__(self) -> Self:
        return self

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        self.asked += 1
        try:
            return await self.client.execute_command(*words, **options)
        except RedisError as error:
            kinds = {"NoScriptError": NoScriptError, "AuthenticationError": AuthenticationError}
            raise kinds.get(type(error).__name__, ValkeyError)(str(error)) from None


async def test_a_client_of_the_same_make_will_do(client: Redis) -> None:
    store = RedisStore(Another(client))

    assert await store.look() == ()
    assert isinstance(await store.claim("a", "one", LEASE), Acquired)
    assert await store.complete("a", "one", KEEP)
    assert await store.claim("a", "other", LEASE) == Done()


async def test_its_troubles_are_understood(redis_server: RedisServer) -> None:
    at_once = Retry(NoBackoff(), 0)
    wrong = Redis(port=redis_server.port, username="nobody", password="no")
    async with wrong, Redis(port=free_port(), retry=at_once) as away:
        with pytest.raises(StoreForbiddenError, match="AuthenticationError"):
            await RedisStore(Another(wrong)).look()
        with pytest.raises(StoreUnavailableError, match="ValkeyError") as raised:
            await RedisStore(Another(away)).claim("a", "one", LEASE)

    assert not isinstance(raised.value, StoreForbiddenError)


class Hanging(Another):
    """Never answers."""

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        self.asked += 1
        await asyncio.Event().wait()


async def test_a_redis_that_failed_is_asked_by_one_at_a_time_and_the_others_are_refused_at_once(client: Redis) -> None:
    hanging = Hanging(client)
    store = RedisStore(hanging, timeout=0.5)
    with pytest.raises(StoreUnavailableError):
        await store.claim("a", "one", LEASE)

    async def asks_again() -> bool:
        asking = asyncio.ensure_future(store.claim("a", "one", LEASE))
        await asyncio.wait({asking}, timeout=0.1)
        is_asking = not asking.done()
        if is_asking:
            with pytest.raises(StoreUnavailableError, match=r"no answer within 0\.5 s"):
                await store.claim("b", "one", LEASE)
            assert not asking.done()
        with pytest.raises(StoreUnavailableError):
            await asking
        return is_asking

    while not await asks_again():
        pass  # it is not asked for a moment
    assert hanging.asked == 2


class HangingOnce(Another):
    """Answers no first command, whichever loop it is sent in."""

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        self.asked += 1
        if self.asked == 1:
            await asyncio.Event().wait()
        return f"{words[4]} 5\nacquired 7 0"


def test_who_waits_in_an_event_loop_that_is_gone_keeps_nobody_of_the_next_one() -> None:
    store = RedisStore(HangingOnce(Redis()))
    first = asyncio.new_event_loop()
    waiting = [first.create_task(store.claim(key, "one", LEASE)) for key in "ab"]
    first.run_until_complete(asyncio.wait(waiting, timeout=0.01))

    async def claim() -> object:
        return await asyncio.wait_for(store.claim("c", "one", LEASE), 5)

    claimed = asyncio.run(claim())
    first.run_until_complete(end(first))
    first.close()

    assert claimed == Acquired(7, 0)


async def end(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still runs in a loop."""
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_round_trips_make_no_spans_of_an_instrumented_client(redis_server: RedisServer) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("a client's instrumentation")

    class Instrumented(Another):
        async def execute_command(self, *words: Any, **options: Any) -> Any:
            if context.get_value("suppress_instrumentation"):
                return await super().execute_command(*words, **options)
            with tracer.start_as_current_span(str(words[0])):
                return await super().execute_command(*words, **options)

    async with Redis(port=redis_server.port) as client:
        instrumented = Instrumented(client)
        store = RedisStore(instrumented)
        with tracer.start_as_current_span("an event"):
            await store.look()
            await store.claim("a", "one", LEASE)
        await instrumented.execute_command("PING")

    assert [span.name for span in exporter.get_finished_spans()] == ["an event", "PING"]


class Node(NamedTuple):
    name: str


class TwoClocks:
    """Two nodes whose clocks are an hour apart; notes after which time each was told that a question is late."""

    def __init__(self) -> None:
        self.late: dict[str, int] = {}
        self.now = {"a": 1_000_000, "b": 1_000_000 + 3_600_000}

    async def __aenter__(self) -> Self:
        return self

    def get_node_from_key(self, key: str) -> Node:
        return Node(key.removeprefix("rabbitevents:")[0])

    def keyslot(self, key: str) -> int:
        return 0

    async def execute_command(self, *words: Any, **options: Any) -> str:
        name = self.get_node_from_key(words[3]).name
        self.late[name] = words[5]
        return f"{words[4]} {self.now[name]}\nacquired 1 0"


async def test_a_question_is_late_by_the_clock_of_the_node_that_is_asked() -> None:
    client = TwoClocks()
    store = RedisStore(client)

    for key in ("a-1", "b-1", "a-2", "b-2", "a-3"):
        await store.claim(key, "one", LEASE)

    assert {name: round((late - client.now[name]) / 1000) for name, late in client.late.items()} == {"a": 2, "b": 2}


# --- time ------------------------------------------------------------------------------------------------------------


async def test_the_clocks_of_workers_do_not_matter(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real = RedisStore(client), time.time
    claims: list[Any] = []

    for hours in (0, 1, -1):
        monkeypatch.setattr(time, "time", lambda hours=hours: real() + hours * 3600)
        claims.append(await store.claim("a", f"owner-{hours}", LEASE))

    assert isinstance(claims[0], Acquired)
    for claim in claims[1:]:
        assert isinstance(claim, Busy)
        assert timedelta(seconds=20) < claim.left <= LEASE


async def test_a_key_goes_away_by_itself_when_it_has_been_kept_long_enough(client: Redis) -> None:
    store = RedisStore(client)
    await store.claim("done", "one", LEASE)
    await store.complete("done", "one", timedelta(days=7))
    await store.claim("claimed", "one", LEASE)
    await store.claim("long", "one", timedelta(days=2))

    seconds = [await client.ttl(f"rabbitevents:{key}") for key in ("done", "claimed", "long")]

    assert [round(each / 3600) for each in seconds] == [7 * 24, 24, 4 * 24]


# --- cancellations and deadlines -------------------------------------------------------------------------------------


class Distinct:
    """Keys that others own, each with a lease of its own length, so that an answer tells which key it is about."""

    BAND = timedelta(seconds=1000)

    def __init__(self, store: RedisStore) -> None:
        self.store = store
        self.answered = self.cancelled = self.refused = 0

    async def prepare(self, keys: int) -> None:
        lengths = [self.BAND * (number + 1) for number in range(keys)]
        await asyncio.gather(*(self.store.claim(f"k-{n}", "owner", length) for n, length in enumerate(lengths)))

    async def ask(self, number: int) -> None:
        """Claim, and be surprised by any answer that is not this key's."""
        try:
            claim = await self.store.claim(f"k-{number}", "other", LEASE)
        except StoreUnavailableError:
            self.refused += 1
            return
        assert isinstance(claim, Busy)
        assert self.BAND * number < claim.left <= self.BAND * (number + 1)
        self.answered += 1

    async def ask_and_cancel(self, number: int, after: float) -> None:
        asking = asyncio.create_task(self.ask(number))
        await asyncio.wait({asking}, timeout=after)
        if asking.done():
            asking.result()
        else:
            asking.cancel()
            await asyncio.wait({asking})
            self.cancelled += 1


@pytest.fixture
async def slow(redis_server: RedisServer, proxy: Callable[[str], Awaitable[Proxy]]) -> Proxy:
    return await proxy(redis_server.url)


async def test_ten_thousand_cancelled_callers_never_get_nor_leave_another_s_reply(slow: Proxy) -> None:
    async with Redis(port=slow.port) as client:
        distinct = Distinct(RedisStore(client))
        await distinct.prepare(100)
        slow.delay(0.002)

        async def work(number: int) -> None:
            while distinct.cancelled < 10_000:
                await distinct.ask_and_cancel(number, random.uniform(0, 0.03))
                if random.random() < 0.2:
                    await distinct.ask(number)

        await asyncio.gather(*(work(number) for number in range(100)))

    print(f"\n{distinct.cancelled} cancelled, {distinct.answered} answered over {slow.accepted} connections")
    assert distinct.answered > 1000
    assert distinct.refused == 0
    assert slow.accepted == 1


async def test_a_round_trip_past_its_deadline_never_leaves_its_reply_to_the_next(slow: Proxy) -> None:
    async with Redis(port=slow.port) as client:
        patient = Distinct(RedisStore(client))
        await patient.prepare(100)
        hasty = Distinct(RedisStore(client, timeout=0.02))

        for _ in range(300):
            hasty.store = RedisStore(client, timeout=0.02)  # which does not know yet that the last one failed
            slow.delay(random.choice([0.0, 0.008, 0.0095, 0.01, 0.0105, 0.02]))
            await asyncio.gather(*(hasty.ask(random.randrange(100)) for _ in range(20)))
        slow.restore()
        await asyncio.gather(*(patient.ask(number) for number in range(100)))

    print(f"\n{hasty.refused} past the deadline, {hasty.answered} answered over {slow.accepted} connections")
    assert hasty.refused > 100
    assert hasty.answered > 100
    assert patient.answered == 100


async def test_a_caller_that_is_cancelled_leaves_its_command_to_be_done(slow: Proxy) -> None:
    async with Redis(port=slow.port) as client:
        store = RedisStore(client)
        await store.claim("a", "one", LEASE)
        slow.delay(0.05)

        completing = asyncio.create_task(store.complete("a", "one", KEEP))
        await asyncio.sleep(0.01)
        completing.cancel()
        await asyncio.wait({completing})

        assert completing.cancelled()
        assert await store.claim("a", "other", LEASE) == Done()


async def test_a_redis_that_does_not_answer_is_given_up_on_at_the_deadline(slow: Proxy) -> None:
    async with Redis(port=slow.port) as client:
        store = RedisStore(client, timeout=0.3)
        await store.claim("a", "one", LEASE)
        slow.stall()
        started = asyncio.get_running_loop().time()

        refused = await asyncio.gather(
            *(store.claim(f"b-{number}", "one", LEASE) for number in range(1000)), return_exceptions=True
        )
        took = asyncio.get_running_loop().time() - started
        slow.restore()
        answer = await once_it_answers(lambda: store.claim("a", "other", LEASE))

    assert {str(each) for each in refused} == {"Redis: no answer within 0.3 s"}
    assert all(isinstance(each, StoreUnavailableError) for each in refused)
    assert took < 2
    assert isinstance(answer, Busy)
    assert slow.accepted == 2


class Scripted:
    """A server that speaks Redis's protocol, and answers scripts as it is told."""

    def __init__(self) -> None:
        self.connections = 0

    def reply(self, words: list[bytes]) -> bytes:
        raise NotImplementedError

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while words := await self._command(reader):
            writer.write(self.reply(words) if words[0].startswith(b"EVAL") else b"+OK\r\n")
        writer.close()

    async def _command(self, reader: asyncio.StreamReader) -> list[bytes]:
        line = await reader.readline()
        words: list[bytes] = []
        for _ in range(int(line[1:] or b"0")):
            length = int((await reader.readline())[1:])
            words.append((await reader.readexactly(length + 2))[:-2])
        return words

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Redis]:
        async with await asyncio.start_server(self.serve, LOOPBACK) as listening:
            port = listening.sockets[0].getsockname()[1]
            async with Redis(port=port, protocol=2, retry=Retry(NoBackoff(), 0)) as client:
                yield client


class Refusing(Scripted):
    """Answers with an error."""

    def __init__(self, error: str) -> None:
        super().__init__()
        self.error = error

    def reply(self, words: list[bytes]) -> bytes:
        return f"-{self.error}\r\n".encode()


@pytest.mark.parametrize(
    "error",
    [
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "READONLY You can't write against a read only replica.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "NOREPLICAS Not enough good replicas to write.",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "ERR something that nobody thought of",
        "NOSCRIPT No matching script.",
    ],
    ids=lambda error: error.partition(" ")[0],
)
async def test_what_a_server_says_of_itself_is_an_outage(error: str) -> None:
    async with Refusing(error).client() as client:
        with pytest.raises(StoreUnavailableError) as raised:
            await RedisStore(client).claim("a", "one", LEASE)

    assert not isinstance(raised.value, StoreForbiddenError)
    assert not raised.value.partial


@pytest.mark.parametrize(
    "error",
    [
        "NOAUTH Authentication required.",
        "WRONGPASS invalid username-password pair or user is disabled.",
        "NOPERM this user has no permissions to run the 'evalsha' command",
        "NOPERM No permissions to access a key",
        "ERR The user executing the script can't run this command or subcommand",
        "ERR ACL failure in script: User app has no permissions to run the 'set' command",
    ],
)
async def test_what_a_server_says_of_its_user_is_a_mistake(error: str) -> None:
    async with Refusing(error).client() as client:
        with pytest.raises(StoreForbiddenError, match="Redis does not let this user do it"):
            await RedisStore(client).look()


class OutOfStep(Scripted):
    """On its first connection it holds one reply too many."""

    def __init__(self) -> None:
        super().__init__()
        self.held = [b"99 5\nacquired 1 0"]

    def reply(self, words: list[bytes]) -> bytes:
        if self.connections > 1:
            self.held.clear()
        self.held.append(words[4] + b" 5\nacquired 7 0")
        reply = self.held.pop(0)
        return b"$%d\r\n%s\r\n" % (len(reply), reply)


async def test_a_connection_that_holds_another_s_reply_is_found_out_and_closed() -> None:
    server = OutOfStep()
    async with server.client() as client:
        store = RedisStore(client)

        with pytest.raises(StoreUnavailableError, match="out of step"):
            await store.claim("a", "one", LEASE)

        assert await once_it_answers(lambda: store.claim("b", "one", LEASE)) == Acquired(7, 0)
        assert server.connections == 2


async def test_a_claim_that_redis_reads_when_its_caller_is_gone_takes_nothing_over(redis_server: RedisServer) -> None:
    async with Redis(port=redis_server.port) as client, Redis(port=redis_server.port) as another:
        store, owner = RedisStore(client, timeout=0.5), RedisStore(another)
        await owner.claim("a", "owner", timedelta(seconds=1))
        redis_server.suspend()

        with pytest.raises(StoreUnavailableError):
            await store.claim("a", "other", LEASE)
        await asyncio.sleep(1)
        redis_server.resume()

        assert await owner.complete("a", "owner", KEEP)


async def test_a_store_that_knows_redis_s_time_takes_over(client: Redis) -> None:
    store = RedisStore(client)
    await store.claim("a", "owner", timedelta(milliseconds=100))
    await asyncio.sleep(0.2)

    first = await RedisStore(client).claim("a", "does-not-know-the-time-yet", LEASE)

    assert first == Busy(timedelta())
    assert await store.claim("a", "other", LEASE) == Acquired(await fence_of(client, "a"), 1)


async def fence_of(client: Redis, key: str) -> int:
    record: Any = await client.get(f"rabbitevents:{key}")
    return int(record.split()[1])


# --- what Redis may do -----------------------------------------------------------------------------------------------


async def test_a_redis_that_is_gone_is_said_to_be_so_and_used_again_when_it_is_back(redis_server: RedisServer) -> None:
    async with Redis(port=redis_server.port) as client:
        store = RedisStore(client)
        await store.claim("a", "one", LEASE)
        redis_server.kill()

        for step in (store.claim("a", "two", LEASE), store.complete("a", "one", KEEP), store.look()):
            started = asyncio.get_running_loop().time()
            with pytest.raises(StoreUnavailableError, match="Redis"):
                await step
            assert asyncio.get_running_loop().time() - started < 2.5
        await redis_server.astart()

        assert await once_it_answers(lambda: store.complete("a", "one", KEEP))


async def test_a_redis_without_room_is_out_of_reach(client: Redis, redis_server: RedisServer) -> None:
    await client.set("somebody's", "x" * 3_000_000)
    redis_server.command("CONFIG", "SET", "maxmemory", "1mb")

    with pytest.raises(StoreUnavailableError, match="command not allowed when used memory"):
        await RedisStore(client).claim("a", "one", LEASE)


async def test_a_key_that_holds_something_else_is_left_alone(client: Redis) -> None:
    store = RedisStore(client)
    await client.set("rabbitevents:a", "mine")
    await client.rpush("rabbitevents:b", "mine")

    for key in "ab":
        with pytest.raises(KeyRefusedError, match=f"something else than a claim under 'rabbitevents:{key}'"):
            await store.claim(key, "one", LEASE)

    assert await client.get("rabbitevents:a") == b"mine"
    assert isinstance(await store.claim("c", "one", LEASE), Acquired)


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"maxmemory": "64mb", "maxmemory_policy": "allkeys-lru"}, True),
        ({"maxmemory": "64mb", "maxmemory_policy": "volatile-ttl"}, True),
        ({"maxmemory": "64mb", "maxmemory_policy": "noeviction"}, False),
        ({"maxmemory_policy": "allkeys-lru"}, False),
    ],
)
async def test_a_redis_that_may_evict_is_warned_of(settings: dict[str, str], warns: bool) -> None:
    with RedisServer(**settings) as server:
        async with Redis(port=server.port) as client:
            warnings = await RedisStore(client).look()

    assert bool(warnings) is warns
    assert not warns or f"maxmemory-policy {settings['maxmemory_policy']}" in warnings[0]


async def test_where_looking_is_forbidden_nothing_is_said(redis_server: RedisServer) -> None:
    redis_server.command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-info")
    async with Redis(port=redis_server.port, username="app", password="secret") as client:
        store = RedisStore(client)

        assert await store.look() == ()
        assert isinstance(await store.claim("a", "one", LEASE), Acquired)


async def test_a_password_is_in_no_error(redis_server: RedisServer) -> None:
    redis_server.command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
    async with Redis(port=redis_server.port, username="app", password="hunter2-wrong") as client:
        with pytest.raises(StoreUnavailableError) as raised:
            await RedisStore(client).claim("a", "one", LEASE)

    assert "hunter2" not in str(raised.value)
    assert "WRONGPASS" in str(raised.value) or "username-password" in str(raised.value)


# --- at start --------------------------------------------------------------------------------------------------------


def test_a_blocking_client_is_refused() -> None:
    wrong: Any = BlockingRedis()

    with pytest.raises(ConfigurationError, match=r"give a redis\.asyncio\.Redis"):
        RedisStore(wrong)


def test_a_round_trip_needs_some_time() -> None:
    with pytest.raises(ConfigurationError, match="timeout=0"):
        RedisStore(Redis(), timeout=0)


def run(program: str) -> subprocess.CompletedProcess[str]:
    path = f"{CHECKOUT}:{CHECKOUT / 'plugins'}"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=30, check=False)


without_a_stand_in = pytest.mark.skipif(
    "valkey_as_redis" in sys.modules, reason="valkey's client stands in for redis-py, from the start of every process"
)


@without_a_stand_in
def test_redis_is_imported_only_when_its_store_is_used() -> None:
    ran = run("import sys, rabbitevents_idempotency as once\nonce.MemoryStore()\nprint('redis' in sys.modules)")

    assert (ran.stdout, ran.stderr) == ("False\n", "")


@without_a_stand_in
def test_where_redis_is_not_installed_the_error_says_how_to_get_it() -> None:
    ran = run("import sys\nsys.modules['redis'] = None\nfrom rabbitevents_idempotency import RedisStore")

    assert ran.returncode == 1
    assert "ConfigurationError: RedisStore needs redis-py: pip install 'rabbitevents[redis]'" in ran.stderr

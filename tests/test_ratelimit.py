"""No more events in a time than others can take: in this process, or in all of them by Redis."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis
from tenacity import stop_after_attempt, wait_none

from rabbitevents import Bus, ConfigurationError, Router
from rabbitevents.testing import EmbeddedBroker, running
from rabbitevents.testing.bench import eventually
from rabbitevents_deadletter import DeadLetter
from rabbitevents_flow import KillSwitch, RateLimit
from rabbitevents_flow.budget import InRedis
from rabbitevents_retry import Retry
from tests.bed.redis import RedisServer
from tests.jobs import WORK, JobGiven

SLACK = 0.01
"""Seconds by which a timer may be early."""


class Service:
    """A handler that notes when each of its jobs began."""

    def __init__(self, name: str = "work", error: Exception | None = None) -> None:
        self.began: list[float] = []
        self.numbers: list[int] = []
        self.error = error
        self.router = Router(name)
        self.router.on(JobGiven)(self.do)

    async def do(self, job: JobGiven) -> None:
        self.began.append(monotonic())
        self.numbers.append(job.number)
        if self.error is not None:
            raise self.error


def connected(server: RedisServer) -> Any:
    """Return a client, whose annotations are partly unknown."""
    redis: Any = Redis
    return redis.from_url(server.url)


def jobs(count: int) -> list[JobGiven]:
    return [JobGiven(number) for number in range(count)]


async def test_events_begin_evenly_spread_and_in_their_order() -> None:
    service = Service()

    async with running(Bus("memory://", service.router, plugins=[RateLimit(50, per=1)])) as probe:
        await probe.bus.publish_many(jobs(26))
        await probe.settled(timeout=20)

    assert service.numbers == list(range(26))
    assert service.began[-1] - service.began[0] >= 25 / 50 - SLACK


async def test_after_a_quiet_time_as_many_as_the_burst_begin_together() -> None:
    service = Service()

    async with running(Bus("memory://", service.router, plugins=[RateLimit(1, per=2, burst=5)])) as probe:
        await probe.bus.publish_many(jobs(6))
        await eventually(lambda: len(service.began) == 6, "all of them")

    assert service.began[4] - service.began[0] < service.began[5] - service.began[4]
    assert service.began[5] - service.began[0] >= 2 - SLACK


async def test_each_attempt_is_one() -> None:
    service = Service(error=ConnectionError())
    plugins = [DeadLetter(), Retry(stop=stop_after_attempt(5), wait=wait_none()), RateLimit(10)]

    async with running(Bus("memory://", service.router, plugins=plugins)) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled(timeout=20)

    assert len(service.began) == 5
    assert service.began[-1] - service.began[0] >= 4 / 10 - SLACK


async def test_all_subscriptions_of_one_instance_share_its_limit() -> None:
    one, other = Service("one"), Service("other")

    async with running(Bus("memory://", one.router, other.router, plugins=[RateLimit(20)])) as probe:
        await probe.bus.publish_many(jobs(5))
        await probe.settled(timeout=20)

    began = sorted([*one.began, *other.began])
    assert len(began) == 10
    assert began[-1] - began[0] >= 9 / 20 - SLACK


async def test_what_waits_for_its_turn_is_given_back_at_a_stop_and_nobody_waits_for_it() -> None:
    service, broker = Service(), EmbeddedBroker()
    bus = Bus(broker.client(), service.router, plugins=[DeadLetter(), RateLimit(1, per=5)], grace=60)

    async with asyncio.timeout(10), bus:
        await bus.publish_many(jobs(20))
        await eventually(lambda: len(service.began) == 1, "the first one")

    assert broker.queues[WORK].ready == 19
    assert broker.queues[f"{WORK}.dead"].ready == 0


async def test_a_switch_that_opened_meanwhile_keeps_what_had_waited_for_its_turn() -> None:
    service = Service(error=ConnectionError())
    plugins = [DeadLetter(), RateLimit(50), KillSwitch(of=3, pause=60, longest=60)]

    async with running(Bus("memory://", service.router, plugins=plugins)) as probe:
        await probe.bus.publish_many(jobs(20))
        await eventually(lambda: not probe.bus.health().ok, "the switch")
        await eventually(lambda: probe.broker.queues[WORK].ready == 18, "all but those that failed before")

    assert len(service.began) == 3


async def test_processes_share_a_limit_by_redis(redis_server: RedisServer) -> None:
    services = [Service(), Service()]
    async with connected(redis_server) as client:
        broker = EmbeddedBroker()
        buses = [
            Bus(broker.client(), each.router, name="shop", plugins=[RateLimit(40, redis=client)]) for each in services
        ]
        async with buses[0], buses[1]:
            await buses[0].publish_many(jobs(21))
            await eventually(lambda: sum(len(each.began) for each in services) == 21, "all of them")
        keys = await client.keys("*")

    began = sorted([*services[0].began, *services[1].began])
    assert all(service.began for service in services)
    assert began[-1] - began[0] >= 20 / 40 - 0.1  # an answer takes a moment, not each the same
    assert keys == [b"rabbitevents:rate:work.do"]


@pytest.mark.parametrize("trouble", ["killed", "suspended", "read-only"])
async def test_while_redis_is_away_each_process_keeps_the_limit_alone_and_says_so_once(
    trouble: str, redis_server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rabbitevents_flow.budget.AGAIN", 0.2)
    service = Service()
    async with connected(redis_server) as client:
        limit = RateLimit(50, redis=client)
        async with running(Bus("memory://", service.router, plugins=[limit])) as probe:
            await probe.bus.publish_many(jobs(5))
            await probe.settled()
            _trouble(redis_server, trouble)
            await probe.bus.publish_many(jobs(30))
            await probe.settled(timeout=30)
            (away,) = limit.health()
            ready = probe.bus.health().ready
            _mend(redis_server, trouble)
            await asyncio.sleep(0.3)  # so long it is not asked again
            await probe.bus.publish_many(jobs(1))
            await probe.settled(timeout=30)
            (back,) = limit.health()

    assert (away.ok, away.degraded, ready, back.ok) == (False, True, True, True)
    assert len(service.began) == 36
    assert service.began[34] - service.began[5] >= 29 / 50 - 0.1
    said = [record for record in caplog.records if record.name == "rabbitevents.ratelimit"]
    assert [record.levelno for record in said] == [logging.WARNING] * 2
    assert said[0].getMessage().startswith("the rate limit 'rabbitevents:rate:work.do' cannot be shared: Redis failed")


def _trouble(server: RedisServer, trouble: str) -> None:
    if trouble == "killed":
        server.kill()
    elif trouble == "suspended":
        server.suspend()
    else:
        server.command("CONFIG", "SET", "min-replicas-to-write", "1")


def _mend(server: RedisServer, trouble: str) -> None:
    if trouble == "killed":
        server.start()
    elif trouble == "suspended":
        server.resume()
    else:
        server.command("CONFIG", "SET", "min-replicas-to-write", "0")


async def test_while_redis_hangs_one_at_a_time_asks_and_the_others_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rabbitevents_flow.budget.AGAIN", 0.05)
    asking, most = [0], [0]

    class Hanging:
        """A client whose server answers nothing."""

        def register_script(self, text: str) -> Any:
            async def script(**_: object) -> None:
                asking[0] += 1
                most[0] = max(most[0], asking[0])
                try:
                    await asyncio.Event().wait()
                finally:
                    asking[0] -= 1

            return script

    budget = InRedis(Hanging(), "limit", 1e-6, 1)
    await budget.take()

    for _ in range(3):
        await asyncio.sleep(0.06)  # so long it is not asked
        await asyncio.gather(*(budget.take() for _ in range(20)))

    assert most == [1]
    assert budget.away == "TimeoutError"


async def test_the_limit_in_redis_leaves_nothing_behind(redis_server: RedisServer) -> None:
    async with connected(redis_server) as client:
        budget = InRedis(client, "limit", 0.01, 1)

        waits = [await budget.take() for _ in range(5)]
        left = await client.pttl("limit")

    assert waits == sorted(waits)
    assert 0 < waits[-1] <= 0.04
    assert 0 < left <= 1100


async def test_what_would_wait_for_longer_than_the_broker_lets_it_is_refused_at_start() -> None:
    service = Service()
    bus = Bus("memory://", service.router, plugins=[RateLimit(1, per=60)], consumer_timeout=timedelta(minutes=30))

    with pytest.raises(ConfigurationError, match=r"of 100 events .* say on\(\.\.\., prefetch=15\) or less"):
        await bus.start()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"limit": 0}, "RateLimit: limit"),
        ({"limit": "900"}, "RateLimit: limit.*say 900"),
        ({"limit": 1, "per": 0}, "RateLimit: per"),
        ({"limit": 1, "burst": 0}, "RateLimit: burst"),
        ({"limit": 1, "redis": "redis://localhost"}, "give a redis.asyncio.Redis"),
        ({"limit": 1, "redis": Redis}, "give a redis.asyncio.Redis"),
        ({"limit": 1, "key": "payments"}, "say redis=, too"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        RateLimit(arguments.pop("limit"), **arguments)


def test_it_stands_inside_of_retries_and_outside_of_a_kill_switch() -> None:
    with pytest.raises(ConfigurationError, match=r"KillSwitch\(\) must stand inside RateLimit\(\)"):
        Bus("memory://", plugins=[KillSwitch(), RateLimit(1)])

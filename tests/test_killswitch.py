"""A subscription whose events fail one after the other rests, and goes on when one goes well again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import (
    Bus,
    ConfigurationError,
    DecodeError,
    Delivery,
    EncodeError,
    Fact,
    Message,
    Plugin,
    Publish,
    Router,
    UnroutableError,
    facts,
)
from rabbitevents.testing import EmbeddedBroker, Probe, running
from rabbitevents.testing.bench import eventually
from rabbitevents_deadletter import DeadLetter
from rabbitevents_flow import KillSwitch
from rabbitevents_flow.results import Results
from rabbitevents_idempotency import Idempotency, MemoryStore
from rabbitevents_retry import Fatal, Retry, RetryLater
from tests.jobs import WORK, JobDone, JobGiven
from tests.outage import outage

SHORT = 0.02
"""A pause, in seconds, that is over soon."""

LONG = 60.0
"""A pause that is not over within a test."""


class Service:
    """A handler whose jobs fail as ``error`` says, and all that it saw."""

    def __init__(self, error: Callable[[JobGiven], BaseException | None], **options: Any) -> None:
        self.error = error
        self.calls = Counter[int]()
        self.done: dict[int, int] = {}
        """The attempt by which each job was done."""
        self.counts: list[int] = []
        self.facts: list[Fact] = []
        self.router = Router("work")
        self.router.on(JobGiven, **options)(self.do)

    async def do(self, job: JobGiven, delivery: Delivery) -> None:
        self.calls[job.number] += 1
        error = self.error(job)
        if error is not None:
            await asyncio.sleep(0.002)  # others are handled meanwhile
            raise error
        self.done[job.number] = delivery.attempt
        self.counts.append(delivery.delivery_count)

    def bus(self, *plugins: Plugin) -> Bus:
        """Return a bus with these plugins, and one that notes what is told of switches and pauses."""
        noted = self.facts

        class Noting(Plugin):
            def observe(self, fact: Fact) -> None:
                if isinstance(fact, facts.Tripped | facts.Paused | facts.Resumed | facts.DeadLettered):
                    noted.append(fact)

        return Bus("memory://", self.router, plugins=[*plugins, Noting()])


def away(job: JobGiven) -> BaseException | None:
    return ConnectionError("the database")


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "rabbitevents.killswitch"]


async def give(probe: Probe, *numbers: int) -> None:
    await probe.bus.publish_many([JobGiven(number) for number in numbers])


def is_open(probe: Probe) -> bool:
    return any(check.name == "kill switch work.do" and not check.ok for check in probe.bus.health().checks)


@pytest.mark.parametrize("place", ["embedded", "rabbitmq"])
async def test_what_comes_while_a_dependency_is_away_is_handled_when_it_is_back_and_nothing_is_spent(
    place: str, request: pytest.FixtureRequest
) -> None:
    url = "memory://" if place == "embedded" else request.getfixturevalue("rabbit_url")

    found = await outage(url, away=3, events=200, pause=0.2, longest=0.5)

    assert (found.handled, found.dead, found.counted) == (200, 0, 0)
    assert found.calls <= 20 + 9 + 3 / 0.2  # those that trip it, those under way, and the tries
    assert found.attempts[1] >= 180  # the others had failed before it tripped
    assert found.degraded[-1].startswith("kill switch work.do: ConnectionError for ")


async def test_it_trips_once_its_share_of_the_last_events_failed_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service(lambda job: ConnectionError() if job.number % 2 else None, concurrency=1)

    async with running(service.bus(DeadLetter(), KillSwitch(failed=0.5, of=10, pause=LONG, longest=LONG))) as probe:
        await give(probe, *range(30))
        await eventually(lambda: is_open(probe), "the switch")
        health = probe.bus.health()

    assert service.calls.total() == 10
    assert [fact for fact in service.facts if not isinstance(fact, facts.DeadLettered)] == [
        facts.Tripped("work.do", 5, 10, "ConnectionError"),
        facts.Paused("work.do", "paused by its kill switch: ConnectionError, 0 tries"),
    ]
    assert health.ready
    assert not health.ok
    assert _said(caplog) == [
        "work.do rests: 5 of its last 10 events failed, the latest with ConnectionError. It tries with one in 60 s, and "
        "goes on when that goes well",
    ]


async def test_it_stays_closed_where_less_than_its_share_failed() -> None:
    service = Service(lambda job: ConnectionError() if job.number % 3 == 0 else None, concurrency=1)

    async with running(service.bus(DeadLetter(), KillSwitch(failed=0.5, of=10, pause=LONG, longest=LONG))) as probe:
        await give(probe, *range(60))
        await probe.settled()

    assert service.calls.total() == 60
    assert not any(isinstance(fact, facts.Tripped) for fact in service.facts)


async def test_it_trips_though_nothing_ever_succeeded_and_again_long_after_it_was_closed() -> None:
    broken = [True]
    service = Service(lambda job: ConnectionError() if broken[0] else None)

    async with running(service.bus(DeadLetter(), Retry(), KillSwitch(of=5, pause=SHORT, longest=SHORT))) as probe:
        await give(probe, *range(10))
        await eventually(lambda: is_open(probe), "the switch")
        broken[0] = False
        await eventually(lambda: len(service.done) == 10, "all of them")
        await give(probe, *range(10, 200))
        await eventually(lambda: len(service.done) == 200, "many more")
        broken[0] = True
        await give(probe, *range(200, 210))
        await eventually(lambda: is_open(probe), "the switch, again")
        broken[0] = False
        await eventually(lambda: len(service.done) == 210, "the last ones")
        await eventually(lambda: not is_open(probe), "the switch closed")

    assert sum(isinstance(fact, facts.Tripped) for fact in service.facts) == 2
    assert not any(isinstance(fact, facts.DeadLettered) for fact in service.facts)


async def test_one_poisonous_event_stops_nobody_however_often_it_is_tried() -> None:
    service = Service(lambda job: ConnectionError() if job.number == 0 else None)
    plugins = (DeadLetter(), Retry(wait=wait_fixed(0.001)), KillSwitch(failed=0.5, of=4, pause=LONG, longest=LONG))

    async with running(service.bus(*plugins)) as probe:
        await give(probe, 0)
        await probe.settled()
        await give(probe, *range(1, 10))
        await probe.settled()

    assert service.calls[0] == 5
    assert len(service.done) == 9
    assert [type(fact) for fact in service.facts] == [facts.DeadLettered]


@pytest.mark.parametrize(
    "error",
    [
        Fatal("no such customer"),
        RetryLater(0.001),
        DecodeError("unreadable"),
        EncodeError("unwritable"),
        ConfigurationError("not so"),
        ExceptionGroup("several", [Fatal("no such customer")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_says_nothing_of_a_dependency_does_not_count(error: Exception) -> None:
    service = Service(lambda job: error)

    async with running(service.bus(DeadLetter(), Retry(), KillSwitch(of=5, pause=LONG, longest=LONG))) as probe:
        await give(probe, *range(20))
        await probe.settled()

    assert len(service.calls) == 20
    assert all(isinstance(fact, facts.DeadLettered) for fact in service.facts)


async def test_a_group_counts_where_one_of_its_members_does() -> None:
    service = Service(lambda job: ExceptionGroup("several", [Fatal("none"), TimeoutError()]))

    async with running(service.bus(DeadLetter(), KillSwitch(of=5, pause=LONG, longest=LONG))) as probe:
        await give(probe, *range(20))
        await eventually(lambda: is_open(probe), "the switch")


async def test_only_the_exceptions_that_it_is_told_of_count() -> None:
    service = Service(lambda job: TimeoutError() if job.number >= 20 else ValueError())
    switch = KillSwitch(of=5, pause=LONG, longest=LONG, counting=(TimeoutError, ConnectionError))

    async with running(service.bus(DeadLetter(), switch)) as probe:
        await give(probe, *range(20))
        await probe.settled()
        closed_at_first = not is_open(probe)
        await give(probe, *range(20, 40))
        await eventually(lambda: is_open(probe), "the switch")

    assert closed_at_first


async def test_the_pauses_double_up_to_the_longest_and_each_try_is_one_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rabbitevents.killswitch")
    service = Service(away, concurrency=1)
    switch = KillSwitch(failed=1, of=3, pause=0.01, longest=0.05)

    async with running(service.bus(DeadLetter(), switch)) as probe:
        await give(probe, *range(10))
        await eventually(lambda: len(_said(caplog)) >= 5, "four tries")
        calls, lines = service.calls.total(), _said(caplog)

    assert [line.rpartition("in ")[2] for line in lines[1:5]] == ["0.02 s", "0.04 s", "0.05 s", "0.05 s"]
    assert calls == 3 + len(lines) - 1


async def test_a_try_that_fails_spends_no_attempt_though_what_tripped_it_is_long_past() -> None:
    broken = [True]
    service = Service(lambda job: ConnectionError() if broken[0] else None)
    switch = KillSwitch(of=5, within=0.05, pause=0.1, longest=0.1)

    async with running(service.bus(DeadLetter(), switch)) as probe:
        await give(probe, *range(20))
        await eventually(lambda: any("2 tries" in check.detail for check in switch.health()), "two tries")
        calls, dead = service.calls.total(), _dead(service)
        broken[0] = False
        await eventually(lambda: len(service.done) == 20 - dead, "all but what had failed before")

    # Of ten workers; then one at a time. On a machine that is busy, more may fail before five do so within the time.
    assert calls - dead <= 1 + 9 + 4
    assert 4 <= _dead(service) == dead


def _dead(service: Service) -> int:
    return sum(isinstance(fact, facts.DeadLettered) for fact in service.facts)


async def test_once_closed_it_begins_anew() -> None:
    broken = [True]
    service = Service(lambda job: ConnectionError() if broken[0] or job.number == 99 else None)

    async with running(service.bus(DeadLetter(), KillSwitch(of=5, pause=SHORT, longest=SHORT))) as probe:
        await give(probe, *range(5))
        await eventually(lambda: is_open(probe), "the switch")
        broken[0] = False
        await eventually(lambda: not is_open(probe), "the switch closed")
        await give(probe, 99)
        await eventually(lambda: service.calls[99] == 1, "a failure")
        await probe.settled()
        closed = not is_open(probe)

    assert closed


async def test_a_service_that_fails_alone_among_its_subscriptions_rests_alone() -> None:
    router, done = Router("work"), list[int]()

    @router.on(JobGiven)
    async def broken(job: JobGiven) -> None:
        raise ConnectionError

    @router.on(JobGiven)
    async def well(job: JobGiven) -> None:
        done.append(job.number)

    switch = KillSwitch(of=5, pause=LONG, longest=LONG)
    async with running(Bus("memory://", router, plugins=[DeadLetter(), switch])) as probe:
        await give(probe, *range(50))
        await eventually(lambda: len(done) == 50, "those that go well")
        open_ones = [check.name for check in switch.health() if not check.ok]

    assert open_ones == ["kill switch work.broken"]


async def test_the_applications_pause_outlives_the_switchs() -> None:
    broken = [True]
    service = Service(lambda job: ConnectionError() if broken[0] else None)

    async with running(service.bus(DeadLetter(), KillSwitch(of=5, pause=0.1, longest=0.1))) as probe:
        await give(probe, *range(10))
        await eventually(lambda: is_open(probe), "the switch")
        await probe.bus.pause("work.do")
        broken[0] = False
        calls = service.calls.total()
        await asyncio.sleep(0.3)  # nothing may be tried in this time
        while_paused = service.calls.total()
        await probe.bus.resume("work.do")
        await eventually(lambda: not is_open(probe), "the switch closed")

    assert while_paused == calls


async def test_a_stop_while_it_rests_leaves_all_in_the_queue() -> None:
    service, broker = Service(away), EmbeddedBroker()
    bus = Bus(broker.client(), service.router, plugins=[DeadLetter(), KillSwitch(of=5, pause=LONG, longest=LONG)])

    async with asyncio.timeout(10), bus:
        await bus.publish_many([JobGiven(number) for number in range(20)])
        await eventually(lambda: not bus.health().ok, "the switch")

    dead = broker.queues[f"{WORK}.dead"].ready
    assert dead == 4  # those that failed before it tripped, with no Retry
    assert broker.queues[WORK].ready == 20 - dead


async def test_what_had_succeeded_is_not_handled_again_because_a_switch_opens_while_its_result_is_published() -> None:
    router, calls, returned = Router("work"), Counter[int](), list[int]()

    class Unconfirmed(Plugin):
        """The broker does not confirm what the first job returns until the switch is open."""

        async def publish(self, proceed: Publish, message: Message) -> None:
            if message.type == "job.done" and not is_open(probe):
                raise UnroutableError(message)
            await proceed(message)

    @router.on(JobGiven)
    async def do(job: JobGiven) -> JobDone | None:
        calls[job.number] += 1
        if job.number > 0:
            raise ConnectionError
        return JobDone(job.number)

    @router.on(JobDone)
    async def note(done: JobDone) -> None:
        returned.append(done.number)

    switch = KillSwitch(of=5, pause=LONG, longest=LONG)
    plugins = [DeadLetter(), Retry(wait=wait_fixed(0.05), stop=stop_after_attempt(100)), switch, Unconfirmed()]
    async with running(Bus("memory://", router, plugins=plugins, publish_timeout=0.5)) as probe:
        await give(probe, 0)
        await eventually(lambda: calls[0] == 1, "the first job")
        await give(probe, *range(1, 20))
        await eventually(lambda: is_open(probe), "the switch")
        await eventually(lambda: returned == [0], "what the first job returned")

    assert calls[0] == 1


async def test_a_claim_is_free_again_when_its_event_goes_back() -> None:
    broken = [True]
    service = Service(lambda job: ConnectionError() if broken[0] else None)
    plugins = (DeadLetter(), Retry(), KillSwitch(of=5, pause=SHORT, longest=SHORT), Idempotency(MemoryStore()))

    async with running(service.bus(*plugins)) as probe:
        await give(probe, *range(30))
        await eventually(lambda: is_open(probe), "the switch")
        broken[0] = False
        await eventually(lambda: len(service.done) == 30, "all of them")

    assert not any(isinstance(fact, facts.DeadLettered) for fact in service.facts)


async def test_without_another_plugin_what_it_held_before_it_tripped_is_handled_too() -> None:
    broken = [True]
    service = Service(lambda job: ConnectionError() if broken[0] else None, concurrency=2)

    async with running(service.bus(KillSwitch(of=5, pause=SHORT, longest=SHORT))) as probe:
        await give(probe, *range(10))
        await eventually(lambda: is_open(probe), "the switch")
        broken[0] = False
        await eventually(lambda: len(service.done) == 10, "all of them", 30)


def test_it_stands_inside_of_what_decides_about_failures() -> None:
    with pytest.raises(ConfigurationError, match=r"KillSwitch\(\) must stand inside Retry\(\)"):
        Bus("memory://", plugins=[KillSwitch(), Retry()])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"failed": 0}, "say a share above 0 and up to 1"),
        ({"failed": 50}, "say a share above 0 and up to 1"),
        ({"failed": "half"}, "say a share above 0 and up to 1"),
        ({"failed": True}, "say a share above 0 and up to 1"),
        ({"failed": float("nan")}, "say a share above 0 and up to 1"),
        ({"of": 0}, "KillSwitch: of"),
        ({"of": 2.5}, "KillSwitch: of"),
        ({"of": 1_000_000}, "KillSwitch: of"),
        ({"within": 0}, "KillSwitch: within"),
        ({"pause": 0}, "KillSwitch: pause"),
        ({"pause": "10"}, "KillSwitch: pause.*say 10"),
        ({"pause": 60}, "longest=45 s is shorter than pause=60 s"),
        ({"counting": "ConnectionError"}, "say classes of exceptions"),
        ({"counting": (OSError, ValueError("x"))}, "say classes of exceptions"),
        ({"counting": Fatal}, "Fatal never counts"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        KillSwitch(**options)


@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=40), st.integers(1, 8))
def test_an_event_is_one_failure_among_the_last_results_however_often_it_fails(went: list[int | None], of: int) -> None:

    results = Results(of, 60)
    kept: list[int | None] = []
    for one in went:
        if one is None:
            results.went_well()
            kept.append(None)
        else:
            results.failed(UUID(int=one))
            kept += [one] if one not in kept else []
        kept = kept[-of:]

        assert results.failures == len({each for each in kept if each is not None})
        assert results.full == (len(kept) == of)


def test_a_result_that_is_too_old_says_nothing_any_more() -> None:

    results = Results(3, 0.0)

    for number in range(10):
        results.failed(UUID(int=number))

    assert not results.full

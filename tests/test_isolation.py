"""What a handler does to its surroundings stays its own: context variables, cancellations, the event loop's time."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rabbitevents import Bus, Consume, Delivery, Host, Message, Plugin, Router, Settlement, forward
from rabbitevents.consuming.isolation import isolated, take_back_cancellations
from rabbitevents.testing import running
from tests.jobs import JobDone, JobGiven


class Session:
    """What is made for each event."""


tenant = contextvars.ContextVar[str]("tenant", default="nobody")


def never() -> None:
    """Nobody asks whether it waits."""


async def handled(
    handle: Callable[[JobGiven], Awaitable[None]], numbers: range, *plugins: Plugin, concurrency: int = 1
) -> Bus:
    """Have ``handle`` called for each number, in order where one worker does it."""
    router = Router("work")

    @router.on(JobGiven, concurrency=concurrency)
    async def do(job: JobGiven) -> None:
        await handle(job)

    async with running(Bus("memory://", router, plugins=plugins)) as probe:
        await probe.bus.publish_many([JobGiven(number) for number in numbers])
        await probe.settled()
        return probe.bus


# --- context variables -----------------------------------------------------------------------------------------------


async def test_what_a_handler_leaves_in_a_context_variable_is_not_there_for_the_next_event() -> None:
    seen = list[str]()

    async def handle(job: JobGiven) -> None:
        seen.append(tenant.get())
        tenant.set(f"tenant {job.number}")
        await asyncio.sleep(0)
        assert tenant.get() == f"tenant {job.number}"

    await handled(handle, range(5))

    assert seen == ["nobody"] * 5


async def test_tasks_and_threads_of_a_handler_see_what_it_set() -> None:
    seen = list[str]()

    async def note() -> None:
        seen.append(tenant.get())

    async def handle(job: JobGiven) -> None:
        tenant.set(f"tenant {job.number}")
        await asyncio.create_task(note())
        seen.append(await asyncio.to_thread(tenant.get))

    await handled(handle, range(2))

    assert seen == ["tenant 0", "tenant 0", "tenant 1", "tenant 1"]


class Forwarding(Plugin):
    """Sets a variable in `consume`, and looks for it in `forward`, where the copy of what failed goes out."""

    def __init__(self) -> None:
        self.seen = list[str]()

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        tenant.set(f"of {delivery.tag}")
        try:
            return await proceed(delivery)
        except OSError as error:
            return forward(Message.copy_of(delivery, queue="work.do.dead"), error=error)

    def forward(self, delivery: Delivery, message: Message) -> Message:
        self.seen.append(f"{tenant.get()}: {delivery.tag}")
        return message


async def test_a_plugin_s_variable_reaches_from_consume_to_forward() -> None:
    class Wakes(Plugin):
        async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
            await asyncio.sleep(0)
            assert tenant.get() == f"of {delivery.tag}"
            return await proceed(delivery)

    plugin = Forwarding()

    async def handle(job: JobGiven) -> None:
        assert tenant.get().startswith("of ")
        raise OSError

    await handled(handle, range(3), plugin, Wakes(), concurrency=3)

    assert plugin.seen == ["of 1: 1", "of 2: 2", "of 3: 3"]


async def test_a_factory_s_context_is_the_handler_s() -> None:
    router, seen = Router("work"), list[str]()

    @asynccontextmanager
    async def session(delivery: Delivery) -> AsyncGenerator[Session]:
        tenant.set("by the factory")
        yield Session()
        seen.append(tenant.get())

    @router.on(JobGiven)
    async def do(job: JobGiven, session: Session) -> None:
        seen.append(tenant.get())
        tenant.set("by the handler")

    bus = Bus("memory://", router)
    bus.provide(Session, factory=session)
    async with running(bus) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

    assert seen == ["by the factory", "by the handler"]


# --- a coroutine in a context of its own -----------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["set", "sleep", "future", "thread", "timeout", "group", "caught"]), max_size=6))
def test_whatever_an_isolated_coroutine_awaits_it_goes_on_and_leaves_nothing(steps: list[str]) -> None:
    async def work() -> list[str]:
        done = list[str]()
        loop = asyncio.get_running_loop()
        for number, step in enumerate(steps):
            if step == "set":
                tenant.set(str(number))
            elif step == "sleep":
                await asyncio.sleep(0)
            elif step == "future":
                future: asyncio.Future[int] = loop.create_future()
                loop.call_soon(future.set_result, number)
                assert await future == number
            elif step == "thread":
                assert await asyncio.to_thread(lambda: 7) == 7
            elif step == "timeout":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await asyncio.Event().wait()
            elif step == "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.sleep(0))
            else:
                with pytest.raises(ExceptionGroup):
                    async with asyncio.TaskGroup() as group:
                        group.create_task(fails())
                await take_back_cancellations()  # before 3.13, a group leaves its task cancelled
            done.append(step)
        return done

    async def fails() -> None:
        raise ValueError

    async def main() -> tuple[list[str], str]:
        return await isolated(work(), never), tenant.get()

    assert asyncio.run(main()) == (steps, "nobody")


async def test_a_cancellation_from_outside_reaches_an_isolated_coroutine_and_its_cleanup() -> None:
    story = list[str]()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            story.append("cancelled")
            await asyncio.sleep(0)
            story.append("cleaned up")
            raise

    async def run() -> None:
        await isolated(work(), never)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert story == ["cancelled", "cleaned up"]


async def test_who_waits_says_so_once_and_who_does_not_wait_says_nothing() -> None:
    waits = list[int]()

    async def work(times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(0)

    for times in (0, 1, 3):
        await isolated(work(times), lambda times=times: waits.append(times))  # type: ignore[misc]

    assert waits == [1, 3]


# --- cancellations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("returns", [True, False], ids=["returns", "fails"])
async def test_a_handler_that_cancels_its_own_task_harms_no_later_event(returns: bool) -> None:
    story = list[str]()

    async def handle(job: JobGiven) -> None:
        task = asyncio.current_task()
        assert task is not None
        if job.number == 0:
            task.cancel()
            if not returns:
                raise OSError
            return
        story.append(f"{job.number} begins, cancelled {task.cancelling()} times")
        await asyncio.sleep(0.001)
        story.append(f"{job.number} ends")

    await handled(handle, range(3), Forwarding())

    assert story == [
        "1 begins, cancelled 0 times", "1 ends", "2 begins, cancelled 0 times", "2 ends",
    ]  # fmt: skip


async def test_a_handler_that_cancels_its_own_task_publishes_what_it_returns_all_the_same() -> None:
    router, calls = Router("work"), list[int]()

    @router.on(JobGiven)
    async def do(job: JobGiven) -> JobDone:
        calls.append(job.number)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return JobDone(job.number)

    async with running(Bus("memory://", router, unroutable="ignore")) as probe:
        await probe.bus.publish(JobGiven(1))
        await probe.settled()

        assert probe.published(JobDone) == [JobDone(1)]
    assert calls == [1]


# --- the event loop's time -------------------------------------------------------------------------------------------


class Ticker(Plugin):
    """Counts how many events are handled between two turns of the event loop, at most."""

    def __init__(self) -> None:
        self.handled = 0
        self.most = 0

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        ticking = asyncio.create_task(self._tick())
        yield
        ticking.cancel()

    async def _tick(self) -> None:
        while True:
            before = self.handled
            await asyncio.sleep(0)
            self.most = max(self.most, self.handled - before)


@pytest.mark.parametrize("concurrency", [1, 10])
async def test_handlers_that_compute_let_the_loop_turn_every_ten_milliseconds(concurrency: int) -> None:
    ticker = Ticker()

    async def handle(job: JobGiven) -> None:
        ends = time.perf_counter() + 0.004
        while time.perf_counter() < ends:
            pass
        ticker.handled += 1

    await handled(handle, range(80), ticker, concurrency=concurrency)

    assert ticker.handled == 80
    assert ticker.most <= 4  # 4 ms each: the third one ends beyond the slice; one more may have been woken beside


async def test_handlers_that_wait_for_nothing_are_all_handled_by_one_worker_in_one_turn() -> None:
    tasks, ticker = set[object](), Ticker()

    async def handle(job: JobGiven) -> None:
        tasks.add(asyncio.current_task())
        ticker.handled += 1

    router = Router("work")

    @router.on(JobGiven, concurrency=10)
    async def do(job: JobGiven) -> None:
        await handle(job)

    async with running(Bus("memory://", router, plugins=[ticker])) as probe:
        await probe.bus.pause("work.do")
        await probe.bus.publish_many([JobGiven(number) for number in range(100)])
        await probe.bus.resume("work.do")
        await probe.settled()

    assert ticker.handled == 100
    assert ticker.most >= 50
    assert len(tasks) <= 2

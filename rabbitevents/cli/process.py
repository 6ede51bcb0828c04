"""A bus at work in this process, alone or as one of several workers."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final

from rabbitevents import Bus, ConfigurationError, Plugin, RabbitEventsError, Subscription
from rabbitevents.cli import logs
from rabbitevents.cli.codes import CRASHED, WRONG
from rabbitevents.cli.former import refuse_former_names
from rabbitevents.cli.leftovers import say_leftovers
from rabbitevents.cli.line import Lifeline
from rabbitevents.cli.loop import loop_factory, loop_name
from rabbitevents.cli.reference import load_bus
from rabbitevents.cli.settings import Settings
from rabbitevents.health import QUESTIONS, HealthServer
from rabbitevents.loops import run_to_the_end
from rabbitevents.partitions import names
from rabbitevents.routing import Handler

LAST_MOMENT: Final = 0.5
"""Seconds that threads which are no daemons have to end when the bus has stopped; Python would wait for ever."""


def serve(settings: Settings) -> None:
    """Run the bus until SIGTERM or SIGINT, then drain.

    Raises `ConfigurationError` for what is written wrong, and `BrokerUnavailableError` when no broker can be used.
    """
    with _threads_left_behind():
        if settings.outputs is not None:
            _write_lines_at_once()
        line = Lifeline(settings.lifeline, settings.outputs) if settings.lifeline is not None else None
        bus = _bus_of(settings)
        logs.configure(settings)
        try:
            run_to_the_end(_serving(bus, settings, line), loop_factory())
        finally:
            if line is not None:
                line.leaves()


def serve_bus(bus: Bus, settings: Settings) -> None:
    """Run a bus that is there already, as `serve` does."""
    with _threads_left_behind():
        logs.configure(settings)
        run_to_the_end(_serving(bus, settings, None), loop_factory())


def _write_lines_at_once() -> None:
    """Write each line when it is there: we write into a pipe, and Python would keep 8 KiB of what is printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def _bus_of(settings: Settings) -> Bus:
    bus = load_bus(settings.reference)
    if any(check.name == "bus" and check.detail != "new" for check in bus.health().checks):
        raise ConfigurationError(
            f"{settings.reference} has run while its module was imported: put what runs it under if __name__ == '__main__'"
        )
    if settings.workers > 1 and bus.address == "memory://":
        raise ConfigurationError(
            f"{settings.reference} is on memory://, a broker inside of one process: leave out --workers, or use amqp://"
        )
    if settings.workers > 1:
        _check_company([*bus.plugins, *(own for each in bus.subscriptions for own in each.plugins)], settings)
    return bus


def _check_company(plugins: Iterable[object], settings: Settings) -> None:
    """Raise `ConfigurationError` for a plugin that must not have other processes beside its own."""
    for plugin in plugins:
        if isinstance(plugin, Plugin) and (why := plugin.alone()):
            raise ConfigurationError(f"{settings.reference}: {why}, or leave out --workers")


async def _serving(bus: Bus, settings: Settings, line: Lifeline | None) -> None:
    if settings.worker <= 1:  # of several, the others start once the first one runs
        await refuse_former_names(bus)
    # Soon: whoever reads it and sends a signal finds us listening for signals.
    asyncio.get_running_loop().call_soon(logs.tell, f"connecting to {bus.address}")
    looking: set[asyncio.Task[None]] = set()
    async with _health(bus, settings):
        if line is not None:
            line.hold(bus, health=settings.health is not None)
        try:
            await bus.serve(grace=settings.grace, started=partial(_started, bus, settings, line, looking))
        finally:
            for task in looking:
                task.cancel()


@asynccontextmanager
async def _health(bus: Bus, settings: Settings) -> AsyncGenerator[None]:
    """Answer questions about health meanwhile; of several workers their supervisor does, who is told."""
    if settings.health is None or settings.worker:
        yield
    else:
        async with HealthServer(bus.health, settings.health) as server:
            logs.tell(f"health on port {server.port}: {QUESTIONS}")
            yield


def _started(bus: Bus, settings: Settings, line: Lifeline | None, looking: set[asyncio.Task[None]]) -> None:
    for sentence in story_of(bus, in_short=settings.worker > 1):
        logs.tell(sentence)
    if line is not None:
        line.ready()
    if settings.worker <= 1:  # of several, the first one says it for all
        looking.add(asyncio.create_task(say_leftovers(bus, settings.reference), name="rabbitevents leftovers"))


def story_of(bus: Bus, *, in_short: bool) -> Iterator[str]:
    """Say what is connected, and which queues feed which handlers."""
    queues = bus.subscriptions
    idle = {check.name.removeprefix("consumer ") for check in bus.health().problems}
    idle &= {subscription.queue for subscription in queues}
    what = (
        f"{len(queues)} queue{'' if len(queues) == 1 else 's'}" if queues else "it only publishes: there is no router"
    ) + (f", of which {len(idle)} {'is' if len(idle) == 1 else 'are'} not consumed" if idle else "")
    yield f"{bus.name} runs on {bus.address} (pid {os.getpid()}, {loop_name()}); {what}"
    for subscription in () if in_short else queues:
        if not subscription.whole:
            yield _feeds(subscription, "does not feed" if subscription.queue in idle else "feeds")
        elif subscription.queue == (parts := names(subscription.whole, subscription.options.partitions))[0]:
            still = len(idle.intersection(parts))
            yield _feeds(subscription, f"to {parts[-1]} feed{f' (but for {still} of them)' if still else ''}")


def _feeds(subscription: Subscription, feeds: str) -> str:
    handlers = ", ".join(f"{each.name} ({_takes(each)})" for each in subscription.handlers)
    return f"queue{'s' if subscription.whole else ''} {subscription.queue} {feeds} {handlers}"


def _takes(handler: Handler) -> str:
    """Say what a handler is called for, and where that comes from unless it is the bus's own exchange by that name."""
    names, source = " ".join(dict.fromkeys(handler.names)), handler.source
    if source.exchange is None and not handler.keys:
        return names
    there = "the bus's exchange" if source.exchange is None else f"exchange {source.exchange.name}"
    return f"{names} from {there} by {' '.join(map(repr, source.keys))}"


@contextmanager
def _threads_left_behind() -> Generator[None]:
    """See to it that threads of the user's which hang do not hold up the exit: not for longer than `LAST_MOMENT`."""
    code = CRASHED
    try:
        yield
        code = 0
    except RabbitEventsError:
        code = WRONG
        raise
    finally:
        staying = [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
        if staying:
            timer = threading.Timer(LAST_MOMENT, _leave, [code, staying])
            timer.daemon = True
            timer.start()


def _leave(code: int, staying: Sequence[str]) -> None:
    logs.log.error("threads that will not end: %s; leaving them", ", ".join(staying))
    os._exit(code)

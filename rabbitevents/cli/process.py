"""A bus at work in this process, alone or as one of several workers."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Final

import msgspec

from rabbitevents import Bus, ConfigurationError, Health, Plugin, RabbitEventsError, Subscription
from rabbitevents.cli import logs
from rabbitevents.cli.codes import CRASHED, WRONG
from rabbitevents.cli.loop import loop_factory, loop_name
from rabbitevents.cli.reference import load_bus
from rabbitevents.cli.settings import Settings
from rabbitevents.health import HealthServer
from rabbitevents.loops import run_to_the_end
from rabbitevents.routing import Handler

LAST_MOMENT: Final = 0.5
"""Seconds that threads which are no daemons have to end when the bus has stopped; Python would wait for ever."""


HEALTH_EVERY: Final = 1.0
"""Seconds between two words of a worker about its health."""


class Word(msgspec.Struct, frozen=True):
    """What a worker tells its supervisor, in a packet of its own.

    ``grace`` (seconds) once its bus runs, ``health`` every now and then.
    """

    grace: float | None = None
    health: Health | None = None


def serve(settings: Settings) -> None:
    """Run the bus until SIGTERM or SIGINT, then drain.

    Raises `ConfigurationError` for what is written wrong, and `BrokerUnavailableError` when no broker can be used.
    """
    with _threads_left_behind():
        _serve(settings)


def _serve(settings: Settings) -> None:
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
    logs.configure(settings)
    run_to_the_end(_serving(bus, settings), loop_factory())


def _check_company(plugins: Iterable[object], settings: Settings) -> None:
    """Raise `ConfigurationError` for a plugin that must not have other processes beside its own."""
    for plugin in plugins:
        if isinstance(plugin, Plugin) and (why := plugin.alone()):
            raise ConfigurationError(f"{settings.reference}: {why}, or leave out --workers")


async def _serving(bus: Bus, settings: Settings) -> None:
    line = _Lifeline(bus, settings.lifeline) if settings.lifeline is not None else None
    # Soon: whoever reads it and sends a signal finds us listening for signals.
    asyncio.get_running_loop().call_soon(logs.tell, f"connecting to {bus.address}")
    async with _health(bus, settings, line):
        await bus.serve(grace=settings.grace, started=partial(_started, bus, settings, line))


@asynccontextmanager
async def _health(bus: Bus, settings: Settings, line: _Lifeline | None) -> AsyncGenerator[None]:
    """Answer questions about health meanwhile; one of several workers tells its supervisor instead, who answers for all."""
    if settings.health is None:
        yield
    elif settings.worker == 0:
        async with HealthServer(bus.health, settings.health) as server:
            logs.tell(f"health on port {server.port}: /live, /ready, /health")
            yield
    else:
        telling = asyncio.create_task(line.tell_health()) if line is not None else None
        yield
        if telling is not None:
            telling.cancel()


def _started(bus: Bus, settings: Settings, line: _Lifeline | None) -> None:
    for sentence in story_of(bus, in_short=settings.worker > 1):
        logs.tell(sentence)
    if line is not None:
        line.ready()


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
        yield _feeds(subscription, "does not feed" if subscription.queue in idle else "feeds")


def _feeds(subscription: Subscription, feeds: str) -> str:
    handlers = ", ".join(f"{each.name} ({_takes(each)})" for each in subscription.handlers)
    return f"queue {subscription.queue} {feeds} {handlers}"


def _takes(handler: Handler) -> str:
    """Say what a handler is called for, and where that comes from unless it is the bus's own exchange by that name."""
    names, source = " ".join(dict.fromkeys(handler.names)), handler.source
    if source.exchange is None and not handler.keys:
        return names
    there = "the bus's exchange" if source.exchange is None else f"exchange {source.exchange.name}"
    return f"{names} from {there} by {' '.join(map(repr, source.keys))}"


class _Lifeline:
    """A worker's end of the line to its supervisor: it says when it runs, and learns when nobody is there any more."""

    def __init__(self, bus: Bus, descriptor: int) -> None:
        self._bus = bus
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._ended)

    def ready(self) -> None:
        """Tell the supervisor that the bus runs. One that is gone already is no matter: `_ended` is for that."""
        self._say(Word(grace=self._bus.grace))

    async def tell_health(self) -> None:
        """Tell the supervisor how the bus is, once a second."""
        while True:
            self._say(Word(health=self._bus.health()))
            await asyncio.sleep(HEALTH_EVERY)

    def _say(self, word: Word) -> None:
        """Say something in one packet. What there is no room for is left out: the next word comes soon."""
        with suppress(OSError):
            self._socket.send(msgspec.json.encode(word))

    def _ended(self) -> None:
        """Stop when the supervisor has ended without a word, as by SIGKILL: nobody would ever stop this process."""
        asyncio.get_running_loop().remove_reader(self._socket)
        logs.log.warning("the supervisor is gone; stopping")
        self._bus.ask_to_stop()


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

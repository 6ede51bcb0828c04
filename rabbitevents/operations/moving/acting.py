"""Doing what the course says, step by step: under a lock, with figures, until there is nothing more to do."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import msgspec

from rabbitevents.brokers.rabbitmq.altering import Altering
from rabbitevents.errors import BrokerError, ConfigurationError
from rabbitevents.operations.applying import consumers_of
from rabbitevents.operations.moving.course import (
    Bind,
    DeclareExchange,
    DeclareQueue,
    DeleteExchange,
    Empty,
    Step,
    Unbind,
    next_step,
)
from rabbitevents.operations.moving.emptiness import Waiting, until_empty
from rabbitevents.operations.moving.renaming import Renaming, next_renaming_step
from rabbitevents.operations.moving.resizing import Resizing, next_resizing_step
from rabbitevents.operations.over_http import INTERVAL, standing_of
from rabbitevents.operations.planning import Worksite
from rabbitevents.topology import Queue

LOCKING: Final = 3.0
"""Seconds that a lock is asked for: one whose owner was killed is free as soon as the broker sees that."""

_PAUSE: Final = 0.25


Wanted = Queue | Renaming | Resizing
"""What is to come about."""


class Done(msgspec.Struct, frozen=True):
    """A step that is done. ``lost`` messages were in a queue when it was deleted, which must not be."""

    step: Step
    lost: int = 0


async def migrate(
    site: Worksite, wanted: Wanted, *, within: float, interval: float = INTERVAL
) -> AsyncGenerator[Done | Waiting]:
    """Make a queue anew, give it another name, or have other partitions; yield each step once it is done.

    In between, how it is with what is waited for is yielded. ``within`` are the seconds that emptying one queue may take,
    ``interval`` those between two looks at numbers. Broken off anywhere, it is called again. Raises `BrokerError`, and
    `ConfigurationError` where there is no way on.
    """
    altering = Altering(site.connection)
    await lock(site, altering, _locked(wanted))
    while (step := await _next(site, wanted)) is not None:
        if not isinstance(step.act, Empty):
            await _act(altering, step.act)
            yield Done(step)
            continue
        if isinstance(wanted, Renaming) and step.act.name != wanted.was:
            await _left(site, wanted, step.act.name)
        async with aclosing(until_empty(site, step.act.name, within=within, interval=interval)) as looks:
            async for waiting in looks:
                yield waiting
                if await _next(site, wanted) != step:  # somebody has bound it anew, say
                    break
            else:
                yield Done(step, await altering.delete_queue(step.act.name, kind=step.act.kind))


def _locked(wanted: Wanted) -> str:
    """Return the name whose lock is taken."""
    match wanted:
        case Renaming(was):
            return was
        case Resizing(whole):
            return whole
        case Queue(name):
            return name


async def _next(site: Worksite, wanted: Wanted) -> Step | None:
    standing = await standing_of(site.management)
    match wanted:
        case Renaming():
            return next_renaming_step(wanted, standing)
        case Resizing():
            return next_resizing_step(wanted, standing)
        case Queue():
            return next_step(wanted, standing)


async def _left(site: Worksite, renaming: Renaming, queue: str) -> None:
    """See that no code from before a rename is there: it would make its queue anew. Raises `ConfigurationError`."""
    depth = await Altering(site.connection).depth(queue)
    if depth is not None and depth.consumers:
        where = sorted({each.where for each in await consumers_of(site.management, queue)})
        raise ConfigurationError(
            f"code that does not say was={renaming.was!r} runs at {', '.join(where) or 'a place that is not shown yet'}, and "
            f"would make {renaming.was!r} anew. Nothing is lost: {renaming.name!r} is consumed, and that code stands idle. "
            "Stop it, and run this again"
        )


async def _act(altering: Altering, act: DeclareQueue | DeclareExchange | Bind | Unbind | DeleteExchange) -> None:
    match act:
        case DeclareQueue(name, arguments, pause):
            await asyncio.sleep(pause)
            await altering.declare_queue(name, arguments)
        case DeclareExchange(name, alternate, kind, arguments, anew):
            if anew:
                await altering.delete_exchange(name, if_unused=False)
            await altering.declare_exchange(name, alternate=alternate, kind=kind, arguments=arguments)
        case Bind(link):
            await altering.bind(link)
        case Unbind(link):
            await altering.unbind(link)
        case DeleteExchange(name, if_unused):
            await altering.delete_exchange(name, if_unused=if_unused)


async def lock(site: Worksite, altering: Altering, queue: str) -> None:
    """Be the only one who moves a queue, as long as we are connected. Raises `ConfigurationError`, which says who is."""
    name = f"rabbitevents.lock.{queue}"
    me = f"{socket.gethostname()}:{os.getpid()}"
    ends = asyncio.get_running_loop().time() + LOCKING
    while not await altering.lock(name, me):
        if asyncio.get_running_loop().time() > ends:
            raise ConfigurationError(f"queue {queue!r} is being moved already, by {await _owner(site, name)}")
        await asyncio.sleep(_PAUSE)


async def _owner(site: Worksite, lock: str) -> str:
    try:
        there = (await standing_of(site.management)).queues.get(lock)
    except BrokerError:
        there = None
    return str(there.arguments.get("rabbitevents-by", "somebody else")) if there is not None else "somebody else"

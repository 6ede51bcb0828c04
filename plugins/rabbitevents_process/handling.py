"""The one handler of a process: lock what is kept, have a function decide, write it, and publish what it says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Union, cast

from sqlalchemy.ext.asyncio import AsyncSession

from rabbitevents import Bus, Delivery, Event, event_fields, facts
from rabbitevents_process.errors import LateForProcess, NoSuchProcessError, named
from rabbitevents_process.keeping import Keeping
from rabbitevents_process.life import TimedOut
from rabbitevents_process.plot import Plot
from rabbitevents_process.script import Idle
from rabbitevents_process.tending import log


def handler(plot: Plot, keeping: Keeping, classes: Sequence[type]) -> Callable[..., Any]:
    """Return the handler of a process, whose annotations say what it is for.

    :param plot: The process.
    :param keeping: Where its states are.
    :param classes: The event classes that it is for.
    """

    async def handle(event: Event[Any], session: AsyncSession, bus: Bus, delivery: Delivery) -> list[Any]:
        payload: Any = event.payload
        key = plot.key_of(payload)
        starts = type(payload) in plot.script.starts
        life = await (keeping.begin if starts else keeping.take)(session, key)
        if isinstance(payload, TimedOut) and payload.left and life is not None and life.waits_for(payload):
            timed_out, after = payload.waiting(payload.left)
            await bus.publish(timed_out, delay=after)
            return []
        chosen = plot.script.choose(key, life, event)
        if isinstance(chosen, str):
            _say(chosen, bus, delivery, plot.name, key)
            return []
        answer = chosen.call(event, plot.state(key, life, chosen), session)
        step = chosen.step(await answer if inspect.isawaitable(answer) else answer)
        plot.script.check(step, chosen.where)
        following = plot.next(key, life, event, step, datetime.now(UTC))
        await keeping.write(session, key, following, anew=life is None or life.ended)
        for timed_out, after in plot.timeouts(key, step, event.id):
            await bus.publish(timed_out, delay=after)
        return list(step.events)

    envelope, union = cast("Any", Event), cast("Any", Union)
    handle.__annotations__["event"] = envelope[union[tuple(classes)]]
    return handle


def _say(why: Idle, bus: Bus, delivery: Delivery, process: str, key: str) -> None:
    """Report what was acknowledged without a step; a timeout that nobody waits for any more is as it should be."""
    about = (delivery.queue, delivery.type, str(delivery.id))
    if why == "late":
        log.info("%s came after the end of %s", delivery.describe(), named(process, key), extra=event_fields(delivery))
        bus.report(LateForProcess(*about, process, key))
    elif why == "missing":
        bus.report(facts.Discarded(*about, delivery.attempt, NoSuchProcessError.__name__))

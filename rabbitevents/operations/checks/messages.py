"""Checks of what is in the queues, and of who takes it out. What only lasts is wrong: it is so in two looks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rabbitevents.operations.scene import Scene
from rabbitevents.operations.standing import StandingQueue
from rabbitevents.states import Finding
from rabbitevents.topology import DELAY_LOST


def lost(scene: Scene) -> Iterator[Finding]:
    """Look whether something fell due while no queue was there for it."""
    depth = scene.depths.get(DELAY_LOST)
    if depth is not None and depth.ready:
        what = f"{depth.ready:,} events fell due when no queue was bound for them; nobody handles them"
        yield Finding("wrong", DELAY_LOST, what, "rabbitevents dlq show MODULE:BUS --queue delay.lost")


def dead(scene: Scene) -> Iterator[Finding]:
    """Look for dead letters."""
    for each in scene.subscriptions:
        depth = scene.depths.get(each.dead_queue)
        if depth is not None and depth.ready:
            letters = "1 dead letter" if depth.ready == 1 else f"{depth.ready:,} dead letters"
            yield Finding("risk", each.dead_queue, letters, f"rabbitevents dlq list MODULE:BUS --queue {each.queue}")


def stuck(scene: Scene) -> Iterator[Finding]:
    """Look for dead letters that cannot leave, since their target takes none."""
    for now in scene.ours:
        before = scene.before.get(now.name)
        if before is not None and now.stuck and before.stuck:
            what = f"{now.stuck:,} messages cannot leave: what they are to go to is full, or is not there"
            yield Finding(
                "wrong", now.name, what, "look at the queue that its dead-letter exchange leads to; 32 stop all others"
            )


def consumers(scene: Scene) -> Iterator[Finding]:
    """Look whether somebody takes out what is in each queue."""
    for each in scene.subscriptions:
        depth = scene.depths.get(each.queue)
        if depth is None:
            continue
        # Before RabbitMQ 4.3, AMQP's number of consumers may be too low (rabbitmq-server#16185), and HTTP's is older.
        there = scene.standing.queues.get(each.queue)
        number = max(depth.consumers, (there.consumers if there is not None else 0) or 0)
        if scene.replicas is not None and number < scene.replicas:
            what = f"{number} of {scene.replicas} consumers are there; {depth.ready:,} ready"
            yield Finding("wrong", each.queue, what, "rabbitevents run MODULE:BUS; its log says why one does not run")
        elif not number and depth.ready:
            what = f"nobody consumes it, and {depth.ready:,} are ready"
            yield Finding("wrong", each.queue, what, "rabbitevents run MODULE:BUS; its log says why one does not run")


_NONE: Final = "with a consumer that is none (its queue was deleted and made anew): restart the service"


def unsettled(scene: Scene) -> Iterator[Finding]:
    """Look for deliveries that nobody settles: a window that is full, a handler that hangs, or a consumer that is none."""
    for each, now in scene.queues:
        before = scene.before.get(each.queue)
        if before is None or not _stands_still(before, now) or not now.unacked or not now.consumers:
            continue
        window = each.options.prefetch * now.consumers
        if now.unacked >= window:
            what = f"{now.unacked:,} unacknowledged, as many as its consumers may have, and none was settled between two looks"
            yield Finding(
                "risk", each.queue, what, "are they held, or do handlers hang? --health URL of a process says so"
            )
        elif now.unacked > each.options.workers * now.consumers:
            what = f"{now.unacked:,} unacknowledged, more than are handled at a time, and none was settled between two looks"
            yield Finding("risk", each.queue, what, f"held, or {_NONE}")
        elif now.ready and before.ready and not each.options.single_active_consumer:
            what = (
                f"{now.ready:,} ready, and its consumers take none, which have room: none was settled between two looks"
            )
            yield Finding("risk", each.queue, what, _NONE)


def _stands_still(before: StandingQueue, now: StandingQueue) -> bool:
    return before.unacked == now.unacked and before.acked == now.acked


def processes(scene: Scene) -> Iterator[Finding]:
    """Pass on what the service's own processes say of themselves."""
    yield from scene.processes


def may_last(queue: StandingQueue) -> bool:
    """Say whether a second look is needed: what is so now may be over in a moment."""
    return bool(queue.stuck) or bool(queue.unacked and queue.consumers)

"""Checks of what is declared: what is missing, otherwise there, too much, or overridden."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from rabbitevents.operations.differences import (
    is_moving,
    is_unfinished,
    left_behind,
    of_exchange,
    of_queue,
    orphan_queues,
    said,
    stale_bindings,
    to_be_renamed,
    wanted_bindings,
)
from rabbitevents.operations.effective import Setting
from rabbitevents.operations.scene import Scene
from rabbitevents.operations.standing import StandingBinding, StandingQueue
from rabbitevents.states import Finding, Grade
from rabbitevents.topics import matches
from rabbitevents.topology import (
    DEAD_LETTER_LIMIT,
    DELAY_DUE,
    DELAY_LOST,
    MOVING,
    Exchange,
    Queue,
    due_exchange,
)

LEAST_LIMIT: Final = 20
"""Deliveries below which a few deploys and lost connections use up a limit: before RabbitMQ 4.3 each give-back counts."""

_HARMLESS: Final = ("x-delivery-limit", "x-max-length", "x-max-length-bytes")
"""Arguments with which a queue still keeps what it was given."""

_ANEW: Final = "bring the bus into line with it, or empty and delete it, so that it is declared anew"


def missing(scene: Scene) -> Iterator[Finding]:
    """Look for queues and exchanges that are not there."""
    own = [each.queue for each in scene.subscriptions if each.queue in scene.missing]
    if own and len(own) == len(scene.subscriptions):
        what = f"none of this bus's queues is there: {', '.join(own)}"
        yield Finding("wrong", "queues", what, "start the service once (rabbitevents run) with a user that may declare")
        return
    for name, why in scene.missing.items():
        if is_moving(scene, name):
            continue
        yield Finding("wrong", name, why, "" if ":" in why else "start the service, with a user that may declare")


def otherwise(scene: Scene) -> Iterator[Finding]:
    """Look for queues and exchanges that are there with other arguments, or of another kind."""
    for item in scene.needed.items:
        if isinstance(item, Queue) and item.name in scene.standing.queues:
            there = scene.standing.queues[item.name]
            differing = of_queue(item, there)
            if any(each.argument == "type" for each in differing):
                what = f"it is a {there.kind} queue: it does not outlive its node, and what is rejected may be lost"
                yield Finding("wrong", item.name, what, _anew(scene, item.name))
            elif differing:
                grade: Grade = "risk" if all(each.argument in _HARMLESS for each in differing) else "wrong"
                yield Finding(grade, item.name, f"other arguments: {said(differing)}", _anew(scene, item.name))
        elif isinstance(item, Exchange) and item.name in scene.standing.exchanges:
            differing = of_exchange(item, scene.standing.exchanges[item.name])
            if differing:
                what = f"other arguments: {said(differing)}"
                yield Finding("wrong", item.name, what, "have it deleted and declared anew")
    for division in scene.divisions:
        way_out = f"rabbitevents topology migrate MODULE:BUS {division.whole}"
        yield Finding("wrong", division.whole, str(division), way_out)


def _anew(scene: Scene, queue: str) -> str:
    """Return the way to have a queue made anew: of a handler's there is a command."""
    if any(each.queue == queue for each in scene.subscriptions):
        return f"bring the bus into line with it, or rabbitevents topology migrate MODULE:BUS {queue}"
    return _ANEW


def unbound(scene: Scene) -> Iterator[Finding]:
    """Look for bindings that are not there: those events do not come."""
    for queue, keys in _by_queue(wanted_bindings(scene.needed) - scene.standing.bindings).items():
        if queue not in scene.missing and queue in scene.standing.queues and not is_moving(scene, queue):
            what = f"it is not bound to {keys}: those events do not come"
            yield Finding("wrong", queue, what, "rabbitevents topology apply MODULE:BUS, or a start of the service")


def stale(scene: Scene) -> Iterator[Finding]:
    """Look for bindings of our queues that the code does not have: an event type that was dropped, or a changed pattern."""
    exchanges: dict[tuple[str, str], list[str]] = {}
    for each in stale_bindings(scene):
        exchanges.setdefault((each.target, each.routing_key), []).append(each.exchange)
    way_out = "once no older version of the service runs, rabbitevents topology apply MODULE:BUS --prune"
    for (queue, key), names in exchanges.items():
        what = f"it is bound to {' and '.join(names)} by {key!r}, and no handler is called for that"
        yield Finding("risk", queue, what, way_out)


def orphans(scene: Scene) -> Iterator[Finding]:
    """Look for queues under our routers' names that no code names: those of handlers that were renamed or removed."""
    for router, queue in orphan_queues(scene):
        name = queue.name
        bound = [each for each in scene.standing.bindings if each.to_queue and each.target == name]
        keys = sorted({each.routing_key for each in bound if each.exchange == scene.exchange})
        gets = f"; it gets {', '.join(keys)}" if keys else ""
        ready = "" if queue.ready is None else f"; {queue.ready:,} ready"
        if queue.consumers:
            what = f"no handler of this bus has this queue, and somebody consumes it{gets}{ready}"
            way_out = f"another bus's, or an older version's? Of a handler that is renamed, say @on(..., was={name!r})"
            yield Finding("note", name, what, way_out)
        else:
            what = f"nobody's: no handler of this bus has this queue, and nobody consumes it{gets}{ready}"
            old = name.removeprefix(f"{router}.")
            way_out = (
                f"renamed? on(..., name={old!r}) keeps it; removed? rabbitevents topology remove MODULE:BUS {name}"
            )
            yield Finding("risk", name, what, way_out)


def policies(scene: Scene) -> Iterator[Finding]:
    """Look what policies make of our queues."""
    timeouts = {each.queue: each.options.timeout for each in scene.subscriptions}
    for queue in scene.ours:
        policy, operator = scene.standing.over(queue)
        names = [f"policy {policy.name}"] if policy is not None else []
        names += [f"operator policy {operator.name}"] if operator is not None else []
        holds = scene.standing.holds(queue, scene.version)
        for grade, what in overridden(queue, holds):
            yield Finding(grade, queue.name, f"{' and '.join(names)}: {what}", _exclude(scene, queue))
        timeout, limit = timeouts.get(queue.name), holds.get("consumer-timeout")
        if timeout is not None and limit is not None and timeout.total_seconds() * 1000 >= float(limit.value):
            what = f"a consumer timeout of {float(limit.value) / 1000:g} s, and one handling may take {timeout.total_seconds():g} s"
            yield Finding("wrong", queue.name, what, "raise it, or lower the handler's timeout=")


def overridden(queue: StandingQueue, holds: Mapping[str, Setting]) -> Iterator[tuple[Grade, str]]:
    """Yield what policies take from a queue, given what truly holds for it."""
    theirs = {key: setting.value for key, setting in holds.items() if setting.by.endswith("policy")}
    wants_all = queue.arguments.get("x-dead-letter-strategy") == "at-least-once"
    waits = "x-message-ttl" in queue.arguments
    if "overflow" in theirs and theirs["overflow"] != "reject-publish":
        lost = "dead letters can be lost" if wants_all else "what does not fit is dropped"
        yield "wrong", f"overflow={theirs['overflow']} overrides reject-publish: {lost}"
    if "expires" in theirs:
        yield "wrong", f"expires={theirs['expires']}: a queue that nobody uses for so long is deleted, full or not"
    if "message-ttl" in theirs:
        after = f"message-ttl={theirs['message-ttl']}: "
        yield (
            "wrong",
            f"{after}events come back too early" if waits else f"{after}what waits longer becomes a dead letter",
        )
    for key in ("max-length", "max-length-bytes"):
        if key in theirs:
            yield "risk", f"{key}={theirs[key]}: what does not fit is refused, and publishing fails"
    if "delivery-limit" in theirs:
        yield (
            "risk",
            f"delivery-limit={theirs['delivery-limit']} stands before {queue.arguments.get('x-delivery-limit', 'none')}",
        )
    if theirs.get("delayed-retry-type", "disabled") != "disabled":
        yield "risk", "delayed-retry: what is given back comes later, also what a stop gives back"


def _exclude(scene: Scene, queue: StandingQueue) -> str:
    router = next((router for router in scene.routers if queue.name.startswith(f"{router}.")), None)
    prefix = scene.exchange if router is None and queue.name.startswith(f"{scene.exchange}.") else router or "delay"
    return f"exclude it: let the policy's pattern begin with ^(?!{prefix}\\.)"


def limits(scene: Scene) -> Iterator[Finding]:
    """Look whether a few give-backs use up a queue's delivery limit, and whether dead letters can be looked at."""
    for _, queue in scene.queues:
        limit = scene.standing.holds(queue, scene.version).get("delivery-limit")
        if limit is not None and 0 <= int(limit.value) < LEAST_LIMIT:
            what = (
                f"a delivery limit of {limit.value}: a few deploys and lost connections make a dead letter of an event"
            )
            yield Finding("risk", queue.name, what, "50 is the bus's own; see Bus(delivery_limit=)")
    for name in [*(each.dead_queue for each in scene.subscriptions), DELAY_LOST]:
        dead = scene.standing.queues.get(name)
        held = None if dead is None else scene.standing.holds(dead, scene.version).get("delivery-limit")
        if held is not None and 0 <= int(held.value) < DEAD_LETTER_LIMIT:
            what = f"a delivery limit of {held.value}: so often can its letters be looked at, and then they are gone"
            yield Finding("risk", name, what, _ANEW)


def ways_out(scene: Scene) -> Iterator[Finding]:
    """Look whether what has waited goes somewhere, also where its queue is gone."""
    for name in (DELAY_DUE, due_exchange(scene.exchange)):
        there = scene.standing.exchanges.get(name)
        if there is None:
            continue
        policy = scene.standing.over_exchange(there)
        if "alternate-exchange" not in {*there.arguments, *(policy.definition if policy is not None else ())}:
            what = "it has no alternate exchange: 32 events for a queue that is gone stop everybody's waiting"
            yield Finding("wrong", name, what, "have it deleted and declared anew, by a start of the service")
    for queue in scene.waiting:
        leads_to = queue.arguments.get("x-dead-letter-exchange")
        if leads_to is None or leads_to not in scene.standing.exchanges:
            gone = "leads nowhere" if leads_to is None else f"leads to exchange {leads_to}, which is not there"
            yield Finding(
                "wrong", queue.name, f"what waits in it {gone}, and never comes back", "start the service anew"
            )


def unheard(scene: Scene) -> Iterator[Finding]:
    """Look for events that handlers publish and no queue is bound for."""
    keys = {each.routing_key for each in scene.standing.bindings if each.exchange == scene.exchange}
    for type in scene.published:
        if not any(matches(key, type) for key in keys):
            yield Finding("note", type, f"no queue is bound to {scene.exchange} for this event: nobody gets it")


def moving(scene: Scene) -> Iterator[Finding]:
    """Look for queues that stand in for ours."""
    for each in scene.subscriptions:
        there = scene.standing.queues.get(f"{each.queue}{MOVING}")
        if each.was and is_unfinished(scene, each):
            what = f"it is given another name, {each.name}, or was and nobody went on"
            yield Finding("risk", each.was, what, f"rabbitevents topology migrate MODULE:BUS {each.name} goes on")
        elif there is not None:
            wait = "" if there.ready is None else f"; {there.ready:,} wait here"
            what = f"{each.queue} is being made anew, or was and nobody went on{wait}"
            yield Finding("risk", there.name, what, f"rabbitevents topology migrate MODULE:BUS {each.queue} goes on")


def renames(scene: Scene) -> Iterator[Finding]:
    """Look for queues that have their former names, and for what is left of those."""
    for each in to_be_renamed(scene):
        what = f"in the code it is {each.name}; it is consumed as it is called"
        way_out = f"once no older version of the service runs, rabbitevents topology migrate MODULE:BUS {each.name}"
        yield Finding("note", each.was, what, way_out)
    for each, queue in left_behind(scene):
        if queue.name == each.was:
            what = (
                f"it stands beside {each.queue}, and its events come to both: older code has run again since the rename"
            )
            yield Finding("wrong", queue.name, what, f"stop that; rabbitevents topology remove MODULE:BUS {queue.name}")
            continue
        there = "?" if queue.ready is None else f"{queue.ready:,}"
        what = f"dead letters of {each.queue} from before it had this name: {there}"
        move = f"rabbitevents topology move MODULE:BUS {queue.name} {each.dead_queue}"
        way_out = f"once all replicas have started anew, {move}, and remove"
        yield Finding("risk" if queue.ready else "note", queue.name, what, way_out)


# --- what is ours ----------------------------------------------------------------------------------------------------


def _by_queue(bindings: frozenset[StandingBinding]) -> Mapping[str, str]:
    found: dict[str, list[str]] = {}
    for each in sorted(bindings, key=lambda each: (each.target, each.exchange, each.routing_key)):
        found.setdefault(each.target, []).append(f"{each.exchange} by {each.routing_key!r}")
    return {queue: ", ".join(keys) for queue, keys in found.items()}

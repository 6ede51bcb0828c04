"""What RabbitMQ's management API says: what stands, what is in it, alarms, nodes, feature flags."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from rabbitevents.brokers.rabbitmq.management import Management
from rabbitevents.brokers.rabbitmq.site import Answer
from rabbitevents.errors import BrokerError
from rabbitevents.operations.checks.messages import may_last
from rabbitevents.operations.scene import Overview, Scene, Sight, unseen, with_overview
from rabbitevents.operations.standing import (
    BINDING_COLUMNS,
    EXCHANGE_COLUMNS,
    QUEUE_COLUMNS,
    Standing,
    an_object,
    bindings_of,
    exchanges_of,
    objects,
    policies_of,
    queues_of,
    text,
    texts,
)

_ALL_OF_HTTP: Final[tuple[Sight, ...]] = ("objects", "numbers", "alarms", "nodes", "flags")


INTERVAL: Final = 5.5
"""Seconds between two looks: RabbitMQ's statistics are made every 5 s (``collect_statistics_interval``)."""

FIRST: Final = 3.0
"""Seconds for what stands; as many for each of the rest, which is asked for at once."""


async def seen_over_http(scene: Scene, http: Management, *, interval: float = INTERVAL, within: float = 10.0) -> Scene:
    """Add what the management API says; what it does not, and why, is in `Scene.unseen`.

    Takes ``within`` seconds at most. A second look, ``interval`` seconds later, is made where it is needed.
    """
    ends = asyncio.get_running_loop().time() + within
    try:
        async with asyncio.timeout(min(FIRST, within)):
            overview = an_object((await http.get("overview")).document)
            standing = await standing_of(http)
    except TimeoutError:
        return unseen(scene, f"{http}: no answer within {FIRST:g} s", *_ALL_OF_HTTP)
    except BrokerError as error:
        return unseen(scene, f"{error}; {way_in(error, http)}", *_ALL_OF_HTTP)
    nodes = sorted({text(each.get("node")) for each in objects(overview.get("listeners"))} - {""})
    is_supported = text(overview.get("release_series_support_status")) not in ("expired", "out_of_support")
    seen = Overview(nodes=tuple(nodes), is_supported=is_supported, skew=http.skew)
    scene = msgspec.structs.replace(scene, standing=standing, before=standing.queues, overview=seen)
    if overview.get("disable_stats") is True:
        scene = unseen(scene, "statistics are switched off at the broker (management.disable_stats)", "numbers")
    looks, scene = await asyncio.gather(
        asyncio.gather(_alarms(http), _nodes(http), _flags(http)), _again(scene, http, interval, ends)
    )
    for said, why, sight in looks:
        scene = unseen(scene, why, sight) if why else with_overview(scene, **said)
    return scene


def way_in(error: BrokerError, http: Management) -> str:
    """Return what lets one see more."""
    if error.code == 401:
        return (
            f"rabbitmqctl set_user_tags {http.user} management, and any permission in the virtual host, let this user "
            "see it, or say another one's with --http"
        )
    return "say where the management API is with --http"


async def standing_of(http: Management) -> Standing:
    """Return what stands in the virtual host. Raises `BrokerError`."""
    paths = (
        f"queues/{{vhost}}?columns={QUEUE_COLUMNS}",
        f"exchanges/{{vhost}}?columns={EXCHANGE_COLUMNS}",
        f"bindings/{{vhost}}?columns={BINDING_COLUMNS}",
        "policies/{vhost}",
        "operator-policies/{vhost}",
    )
    said = await asyncio.gather(*map(http.list, paths), return_exceptions=True)  # so that none is left under way
    for each in said:
        if isinstance(each, BaseException):
            raise each
    queues, exchanges, bindings, policies, operator = said
    return Standing(
        queues=queues_of(queues),
        exchanges=exchanges_of(exchanges),
        bindings=bindings_of(bindings),
        policies=policies_of(policies),
        operator_policies=policies_of(operator),
    )


Seen = tuple[Mapping[str, object], str, Sight]
"""What is known of the cluster now, or why it is not, and which sight that is."""


async def _alarms(http: Management) -> Seen:
    try:
        async with asyncio.timeout(FIRST):
            alarms = await http.get("health/checks/alarms")
            critical = await http.get("health/checks/node-is-quorum-critical")
    except (BrokerError, TimeoutError) as error:
        return {}, _why(error), "alarms"
    found = [
        f"{text(each.get('resource')) or 'an alarm'} on {text(each.get('node'))}"
        for each in objects(an_object(alarms.document).get("alarms"))
    ]
    if alarms.status == 503 and not found:
        found = [_reason(alarms)]
    return {"alarms": tuple(found), "critical": _reason(critical) if critical.status == 503 else ""}, "", "alarms"


def _why(error: BrokerError | TimeoutError) -> str:
    return str(error) or f"no answer within {FIRST:g} s"


def _reason(answer: Answer) -> str:
    return text(an_object(answer.document).get("reason")) or "a health check of RabbitMQ's fails"


async def _nodes(http: Management) -> Seen:
    try:
        async with asyncio.timeout(FIRST):
            nodes = list(objects(await http.list("nodes?columns=name,running,partitions")))
    except (BrokerError, TimeoutError) as error:
        tags = f"rabbitmqctl set_user_tags {http.user} monitoring lets this user see it"
        return {}, tags if _is_refused(error) else _why(error), "nodes"
    known = {
        "nodes": tuple(text(each.get("name")) for each in nodes),
        "down": tuple(text(each.get("name")) for each in nodes if each.get("running") is False),
        "partitions": tuple(text(each.get("name")) for each in nodes if texts(each.get("partitions"))),
    }
    return known, "", "nodes"


async def _flags(http: Management) -> Seen:
    try:
        async with asyncio.timeout(FIRST):
            flags = list(objects(await http.list("feature-flags")))
            used = await _deprecated(http)
    except (BrokerError, TimeoutError) as error:
        tags = "before RabbitMQ 3.13 only an administrator sees them: rabbitmqctl list_feature_flags"
        return {}, tags if _is_refused(error) else _why(error), "flags"
    disabled = [
        text(each.get("name"))
        for each in flags
        if each.get("stability") in ("stable", "required") and each.get("state") == "disabled"
    ]
    return {"disabled_flags": tuple(disabled), "deprecated": tuple(used)}, "", "flags"


async def _deprecated(http: Management) -> list[str]:
    try:
        return [text(each.get("name")) for each in objects(await http.list("deprecated-features/used"))]
    except BrokerError:
        return []  # before 3.13 there is no such question


def _is_refused(error: BrokerError | TimeoutError) -> bool:
    return isinstance(error, BrokerError) and error.code in (401, 403)


async def _again(scene: Scene, http: Management, interval: float, ends: float) -> Scene:
    """Look at the queues a second time, where what was seen may be over in a moment."""
    if "numbers" in scene.unseen or not any(map(may_last, scene.ours)):
        return scene
    left = ends - asyncio.get_running_loop().time() - interval
    if left < 0.5:
        return unseen(scene, "the broker answers too slowly for a second look", "numbers")
    await asyncio.sleep(interval)
    try:
        async with asyncio.timeout(left):
            later = queues_of(await http.list(f"queues/{{vhost}}?columns={QUEUE_COLUMNS}"))
    except (BrokerError, TimeoutError) as error:
        return unseen(scene, f"at the second look, {_why(error)}", "numbers")
    return msgspec.structs.replace(scene, standing=msgspec.structs.replace(scene.standing, queues=later))

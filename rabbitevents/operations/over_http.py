"""What RabbitMQ's management API says: what stands, what is in it, alarms, nodes, feature flags."""

from __future__ import annotations

import asyncio
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


async def seen_over_http(scene: Scene, http: Management, *, interval: float = INTERVAL) -> Scene:
    """Add what the management API says; what it does not, and why, is in `Scene.unseen`."""
    try:
        overview = an_object((await http.get("overview")).document)
        standing = await standing_of(http)
    except BrokerError as error:
        return unseen(scene, f"{error}; {way_in(error, http)}", *_ALL_OF_HTTP)
    nodes = sorted({text(each.get("node")) for each in objects(overview.get("listeners"))} - {""})
    is_supported = text(overview.get("release_series_support_status")) not in ("expired", "out_of_support")
    seen = Overview(nodes=tuple(nodes), is_supported=is_supported, skew=http.skew)
    scene = msgspec.structs.replace(scene, standing=standing, before=standing.queues, overview=seen)
    if overview.get("disable_stats") is True:
        scene = unseen(scene, "statistics are switched off at the broker (management.disable_stats)", "numbers")
    for look in (_alarms, _nodes, _flags):
        scene = await look(scene, http)
    return await _again(scene, http, interval)


def way_in(error: BrokerError, http: Management) -> str:
    """Return what lets one see more."""
    if error.code == 401:
        return (
            f"rabbitmqctl set_user_tags {http.user} management lets this user see it, or say another one's with --http"
        )
    return "say where the management API is with --http"


async def standing_of(http: Management) -> Standing:
    """Return what stands in the virtual host. Raises `BrokerError`."""
    queues, exchanges, bindings, policies, operator = await asyncio.gather(
        http.list(f"queues/{{vhost}}?columns={QUEUE_COLUMNS}"),
        http.list(f"exchanges/{{vhost}}?columns={EXCHANGE_COLUMNS}"),
        http.list(f"bindings/{{vhost}}?columns={BINDING_COLUMNS}"),
        http.list("policies/{vhost}"),
        http.list("operator-policies/{vhost}"),
    )
    return Standing(
        queues=queues_of(queues),
        exchanges=exchanges_of(exchanges),
        bindings=bindings_of(bindings),
        policies=policies_of(policies),
        operator_policies=policies_of(operator),
    )


async def _alarms(scene: Scene, http: Management) -> Scene:
    try:
        alarms, critical = await asyncio.gather(
            http.get("health/checks/alarms"), http.get("health/checks/node-is-quorum-critical")
        )
    except BrokerError as error:
        return unseen(scene, str(error), "alarms")
    found = [
        f"{text(each.get('resource')) or 'an alarm'} on {text(each.get('node'))}"
        for each in objects(an_object(alarms.document).get("alarms"))
    ]
    if alarms.status == 503 and not found:
        found = [_reason(alarms)]
    return with_overview(scene, alarms=tuple(found), critical=_reason(critical) if critical.status == 503 else "")


def _reason(answer: Answer) -> str:
    return text(an_object(answer.document).get("reason")) or "a health check of RabbitMQ's fails"


async def _nodes(scene: Scene, http: Management) -> Scene:
    try:
        nodes = list(objects(await http.list("nodes?columns=name,running,partitions")))
    except BrokerError as error:
        tags = f"rabbitmqctl set_user_tags {http.user} monitoring lets this user see it"
        return unseen(scene, tags if error.code in (401, 403) else str(error), "nodes")
    return with_overview(
        scene,
        nodes=tuple(text(each.get("name")) for each in nodes) or scene.overview.nodes,
        down=tuple(text(each.get("name")) for each in nodes if each.get("running") is False),
        partitions=tuple(text(each.get("name")) for each in nodes if texts(each.get("partitions"))),
    )


async def _flags(scene: Scene, http: Management) -> Scene:
    try:
        flags = list(objects(await http.list("feature-flags")))
    except BrokerError as error:
        tags = "before RabbitMQ 3.13 only an administrator sees them: rabbitmqctl list_feature_flags"
        return unseen(scene, tags if error.code in (401, 403) else str(error), "flags")
    deprecated: list[str] = []
    try:
        used = await http.list("deprecated-features/used")
        deprecated = [text(each.get("name")) for each in objects(used)]
    except BrokerError:
        pass  # before 3.13 there is no such thing
    disabled = [
        text(each.get("name"))
        for each in flags
        if each.get("stability") in ("stable", "required") and each.get("state") == "disabled"
    ]
    return with_overview(scene, disabled_flags=tuple(disabled), deprecated=tuple(deprecated))


async def _again(scene: Scene, http: Management, interval: float) -> Scene:
    """Look at the queues a second time, where what was seen may be over in a moment."""
    if "numbers" in scene.unseen or not any(map(may_last, scene.ours)):
        return scene
    await asyncio.sleep(interval)
    try:
        later = queues_of(await http.list(f"queues/{{vhost}}?columns={QUEUE_COLUMNS}"))
    except BrokerError as error:
        return unseen(scene, f"at the second look, {error}", "numbers")
    return msgspec.structs.replace(scene, standing=msgspec.structs.replace(scene.standing, queues=later))

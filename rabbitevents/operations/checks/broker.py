"""Checks of the broker itself: reached, of a good version, let in, awake."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from rabbitevents.operations.effective import Version
from rabbitevents.operations.scene import Scene
from rabbitevents.states import Finding, Grade

FLOOR: Final[Version] = (3, 10)

FAULTS: Final[tuple[tuple[Version, Version, str], ...]] = (
    (
        (3, 13, 0),
        (3, 13, 3),
        "drops dead letters that were rejected as if they went in circles (rabbitmq-server#11159)",
    ),
    ((4, 3, 0), (4, 3, 1), "lets only those look at a queue who may configure it (rabbitmq-server#16085)"),
    ((4, 3, 0), (4, 3, 3), "may confirm what a majority has not written (ra#637)"),
    (
        (4, 3, 0),
        (4, 3, 7),
        "keeps consumers that timed out, and a queue with a single active one may stand still (#17317)",
    ),
)
"""From a version on, until before another one: what it does wrong."""

CERTIFICATE_WRONG: Final = 7
CERTIFICATE_RISK: Final = 21
"""Days that a certificate still holds."""

SKEW: Final = 5.0
"""Seconds that clocks may be apart."""

_HELD_UP: Final = ("down", "stopped", "minority")


def connecting(scene: Scene) -> Iterator[Finding]:
    """Look whether each URL leads to a broker, and how long its certificate holds."""
    everywhere = all(visit.problem for visit in scene.visits)
    for visit in scene.visits:
        if visit.problem:
            others = "" if everywhere else "; another URL of the list serves"
            yield Finding(
                "wrong" if everywhere else "risk", visit.address, f"{visit.problem}{others}", _advice(visit.code)
            )
        elif visit.days_left is not None and visit.days_left < CERTIFICATE_RISK:
            soon: Grade = "wrong" if visit.days_left < CERTIFICATE_WRONG else "risk"
            yield Finding(soon, visit.address, f"its certificate ends in {visit.days_left:.0f} days", "renew it")


def _advice(code: int) -> str:
    return {
        403: "check the user and the password in the URL (signs such as / or @ are written %2F, %40)",
        530: "check the virtual host in the URL, and what the user may do there (rabbitmqctl list_permissions)",
    }.get(code, "is RabbitMQ running there?")


def version(scene: Scene) -> Iterator[Finding]:
    """Look whether the version is one that is known to keep what it confirms."""
    here, said = scene.version, ".".join(map(str, scene.version))
    if not here:
        yield Finding("note", "RabbitMQ", "the broker says no version", "")
        return
    if here < FLOOR:
        yield Finding(
            "wrong", "RabbitMQ", f"{said} is older than 3.10: it cannot dead-letter at least once", "upgrade it"
        )
    for first, fixed, what in FAULTS:
        if first <= here < fixed:
            yield Finding("risk", "RabbitMQ", f"{said} {what}", f"upgrade it to {'.'.join(map(str, fixed))} or later")
    if not scene.overview.is_supported:
        yield Finding("note", "RabbitMQ", f"{said} is of a series that is not supported any more", "upgrade it")


def flags(scene: Scene) -> Iterator[Finding]:
    """Look whether all that the version can do is switched on, and what will be taken away."""
    disabled = scene.overview.disabled_flags
    needed = [name for name in disabled if name in ("quorum_queue", "stream_queue")]
    if needed:
        what = f"the feature flags {', '.join(needed)} are off: without them nothing is dead-lettered at least once"
        yield Finding("wrong", "RabbitMQ", what, "rabbitmqctl enable_feature_flag all")
    others = [name for name in disabled if name not in needed]
    if others:
        what = f"feature flags are off, and the next upgrade wants them on: {', '.join(others)}"
        yield Finding("note", "RabbitMQ", what, "rabbitmqctl enable_feature_flag all")
    if scene.overview.deprecated:
        what = f"deprecated features are in use: {', '.join(scene.overview.deprecated)}"
        yield Finding("note", "RabbitMQ", what, "see who uses them before the next upgrade")


def rights(scene: Scene) -> Iterator[Finding]:
    """Look whether the user may do what the service does."""
    said = ""
    for lack in scene.lacks:
        way_out, said = "" if lack.way_out == said else lack.way_out, lack.way_out
        if lack.kind == "bind":
            yield Finding("note", "rights", f"{lack.what}: a new handler's bindings cannot be made", way_out)
        else:
            yield Finding("wrong", "rights", lack.what, way_out)


def alarms(scene: Scene) -> Iterator[Finding]:
    """Look for alarms, which block who publishes, and for queues that are one node away from standing still."""
    for alarm in scene.overview.alarms:
        yield Finding(
            "wrong", "RabbitMQ", f"an alarm is on, and blocks who publishes: {alarm}", "free memory or disk there"
        )
    if scene.overview.critical:
        yield Finding("risk", "RabbitMQ", scene.overview.critical, "bring the other nodes back before this one stops")


def replicas(scene: Scene) -> Iterator[Finding]:
    """Look whether each queue has the replicas that it should, and a majority of them."""
    for queue in scene.ours:
        members, online = len(queue.members), len(queue.online)
        no_majority = members > 0 and online > 0 and online <= members // 2
        if queue.state in _HELD_UP or no_majority:
            what = (
                f"it cannot work: {online} of its {members} replicas are there"
                if no_majority
                else f"it is {queue.state}"
            )
            yield Finding("wrong", queue.name, what, "bring the nodes back: rabbitmq-diagnostics check_running there")
        elif 0 < online < members:
            gone = ", ".join(sorted({*queue.members} - {*queue.online}))
            yield Finding(
                "risk", queue.name, f"{online} of its {members} replicas are there; not on {gone}", "bring it back"
            )
        elif members == 1 and len(scene.overview.nodes) > 1:
            what = f"it is on {queue.members[0]} alone, of a cluster of {len(scene.overview.nodes)}: with that node it is gone"
            yield Finding("risk", queue.name, what, "rabbitmq-queues grow NODE all")


def nodes(scene: Scene) -> Iterable[Finding]:
    """Look whether the nodes of the cluster run, and see each other."""
    for node in scene.overview.down:
        yield Finding(
            "risk", node, "this node of the cluster does not run", "start it, or take it out: forget_cluster_node"
        )
    for node in scene.overview.partitions:
        yield Finding("wrong", node, "this node sees others as gone that are there", "rabbitmqctl cluster_status")


def clocks(scene: Scene) -> Iterator[Finding]:
    """Look whether our clock and the broker's agree."""
    skew = scene.overview.skew
    if skew is not None and abs(skew) > SKEW:
        which = "ahead of" if skew > 0 else "behind"
        what = f"this machine's clock is {abs(skew):.0f} s {which} the broker's"
        yield Finding("risk", "clocks", what, "synchronise both (NTP): ages and times of failures are wrong by it")

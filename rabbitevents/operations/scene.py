"""The scene: what a bus needs, and what was seen at its broker, as one value for all checks; and what they find in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from rabbitevents.brokers.rabbitmq.visiting import Lacking, Visit
from rabbitevents.operations.effective import Version
from rabbitevents.operations.standing import Standing, StandingQueue
from rabbitevents.partitions import GUARD, counted
from rabbitevents.routing import Subscription
from rabbitevents.states import Depth, Finding, Grade
from rabbitevents.topology import Topology

Sight = Literal["broker", "rights", "objects", "numbers", "alarms", "nodes", "flags", "processes"]
"""What can be seen or not: a broker by AMQP, a user's rights there; over HTTP what stands, its numbers, alarms, the
cluster's nodes and feature flags; the service's own processes."""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the whole cluster. None is what was not said."""

    nodes: tuple[str, ...] = ()
    is_supported: bool = True
    """Whether RabbitMQ itself says that its release series is supported."""
    alarms: tuple[str, ...] = ()
    """The alarms that are on: "memory on rabbit@a"."""
    critical: str = ""
    """What RabbitMQ says of queues that one node more would stop."""
    down: tuple[str, ...] = ()
    """Nodes of the cluster that do not run."""
    partitions: tuple[str, ...] = ()
    """Nodes that see others as gone that are there."""
    disabled_flags: tuple[str, ...] = ()
    deprecated: tuple[str, ...] = ()
    """Deprecated features that are in use."""
    skew: float | None = None


class Division(msgspec.Struct, frozen=True):
    """A handler that is to have another number of partitions than it has at the broker; one is a queue that nothing divides."""

    whole: str
    stands: int
    wanted: int

    @property
    def guard(self) -> str:
        """The exchange that says of how many partitions it is."""
        return f"{self.whole}{GUARD}"

    def __str__(self) -> str:
        if self.stands == self.wanted:
            return "its partitions are led over to others"
        return f"it has {counted(self.stands)}, and is to have {counted(self.wanted)}"


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """All that checks look at. What is in ``unseen`` was not looked at, and why; a field for it says nothing then."""

    exchange: str
    routers: tuple[str, ...]
    subscriptions: tuple[Subscription, ...]
    needed: Topology
    published: tuple[str, ...] = ()
    """The event types that handlers say they publish."""
    replicas: int | None = None
    visits: tuple[Visit, ...] = ()
    lacks: tuple[Lacking, ...] = ()
    missing: Mapping[str, str] = {}
    depths: Mapping[str, Depth | None] = {}
    standing: Standing = Standing()
    divisions: tuple[Division, ...] = ()
    """The handlers that are divided otherwise. What is of their partitions is neither needed nor standing here."""
    before: Mapping[str, StandingQueue] = {}
    """The queues as they were an interval of the broker's statistics earlier."""
    overview: Overview = Overview()
    processes: tuple[Finding, ...] = ()
    unseen: Mapping[Sight, str] = {}

    @property
    def version(self) -> Version:
        """The broker's version; empty where there is no broker."""
        return next((version_of(visit.server.get("version", "")) for visit in self.visits if not visit.problem), ())

    @property
    def vhost(self) -> str:
        """The virtual host."""
        return next((visit.vhost for visit in self.visits), "/")

    @property
    def queues(self) -> Iterator[tuple[Subscription, StandingQueue]]:
        """Each subscription whose queue stands, with it."""
        for each in self.subscriptions:
            if each.queue in self.standing.queues:
                yield each, self.standing.queues[each.queue]

    @property
    def waiting(self) -> Iterator[StandingQueue]:
        """The queues that events wait in, of all services."""
        families = ("delay.", f"{self.exchange}.delay.")
        for name, queue in sorted(self.standing.queues.items()):
            if name.startswith(families) and name.rpartition(".")[2].isdecimal():
                yield queue

    @property
    def ours(self) -> Iterator[StandingQueue]:
        """The queues that the bus needs and that stand, and all that events wait in."""
        own = (*self.needed.queues, *(each.queue for each in self.subscriptions))
        for name in dict.fromkeys((*own, *(queue.name for queue in self.waiting))):
            if name in self.standing.queues:
                yield self.standing.queues[name]


def version_of(text: str) -> Version:
    """Return "3.10.8" as numbers; what follows them ("-rc.1", "+5") is left out."""
    numbers: list[int] = []
    for word in text.split("."):
        digits = word[: len(word) - len(word.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != word:
            break
    return tuple(numbers)


def unseen(scene: Scene, why: str, *sights: Sight) -> Scene:
    """Return the scene of which ``sights`` were not seen. Without a reason, nobody asked for them."""
    return msgspec.structs.replace(scene, unseen={**scene.unseen, **dict.fromkeys(sights, why)})


def with_overview(scene: Scene, **said: Any) -> Scene:
    """Return the scene with more known of the cluster."""
    return msgspec.structs.replace(scene, overview=msgspec.structs.replace(scene.overview, **said))


class Check(msgspec.Struct, frozen=True):
    """One thing to look for: its number, what it is about in words, what it has to see, and the looking."""

    id: str
    about: str
    needs: tuple[Sight, ...]
    look: Callable[[Scene], Iterable[Finding]]


class Found(msgspec.Struct, frozen=True):
    """What a check found; a plugin's has the plugin's name in the check's place."""

    check: str
    grade: Grade
    where: str
    what: str
    way_out: str


class Unseen(msgspec.Struct, frozen=True):
    """What could not be looked at, and why."""

    about: tuple[str, ...]
    why: str


class Result(msgspec.Struct, frozen=True):
    """What all checks come to. ``checks`` is how many were made."""

    found: tuple[Found, ...]
    unseen: tuple[Unseen, ...]
    checks: int


GRADES: Final[tuple[Grade, ...]] = ("wrong", "risk", "note")


def found_by(check: str, findings: Iterable[Finding]) -> Iterator[Found]:
    """Yield findings with the check that they are of."""
    for each in findings:
        yield Found(check, each.grade, each.where, each.what, each.way_out)


def examined(scene: Scene, checks: Iterable[Check]) -> Result:
    """Make each check that can be made; the worst findings first."""
    found: list[Found] = []
    unseen: dict[str, list[str]] = {}
    made = 0
    for check in checks:
        why = next((scene.unseen[sight] for sight in check.needs if sight in scene.unseen), None)
        if why is None:
            made += 1
            found += found_by(check.id, check.look(scene))
        elif why:  # nobody asked for what has no reason
            unseen.setdefault(why, []).append(check.about)
    found.sort(key=lambda each: GRADES.index(each.grade))
    return Result(tuple(found), tuple(Unseen(tuple(dict.fromkeys(about)), why) for why, about in unseen.items()), made)

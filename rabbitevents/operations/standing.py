"""What stands at a broker, as its management API tells it: read once, tolerantly.

What is not there is not known: a number that is missing, null or no number is None, and never 0. RabbitMQ says an
empty object as ``{}``, ``[]`` or ``""``, depending on its version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, cast

import msgspec

from rabbitevents.operations.effective import Definition, Setting, Version, effective
from rabbitevents.topology import Argument, Arguments

QUEUE_COLUMNS: Final = (
    "name,type,durable,arguments,policy,operator_policy,messages_ready,messages_unacknowledged,messages_dlx,consumers,"
    "members,online,leader,state,message_stats.ack"
)
EXCHANGE_COLUMNS: Final = "name,type,durable,arguments,policy"
BINDING_COLUMNS: Final = "source,destination,destination_type,routing_key"

Object = Mapping[str, object]


class StandingQueue(msgspec.Struct, frozen=True, kw_only=True):
    """A queue. None is what was not said."""

    name: str
    kind: str = "quorum"
    durable: bool = True
    arguments: Arguments = {}
    policy: str = ""
    operator_policy: str = ""
    ready: int | None = None
    unacked: int | None = None
    stuck: int | None = None
    """Dead letters that cannot leave, since their target does not take them."""
    consumers: int | None = None
    acked: int | None = None
    """How many messages consumers have acknowledged so far."""
    members: tuple[str, ...] = ()
    online: tuple[str, ...] = ()
    leader: str = ""
    state: str = ""


class StandingExchange(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange."""

    name: str
    kind: str = "topic"
    durable: bool = True
    arguments: Arguments = {}
    policy: str = ""


class StandingBinding(msgspec.Struct, frozen=True):
    """What leads from an exchange to a queue, or to another exchange."""

    exchange: str
    target: str
    routing_key: str
    to_queue: bool = True


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy, or an operator's: what it sets for the queues and exchanges whose names match."""

    name: str
    pattern: str = ""
    apply_to: str = "all"
    priority: int = 0
    definition: Definition = {}

    def matches(self, name: str, kinds: tuple[str, ...]) -> bool:
        """Say whether it is for what is called so, which is of one of ``kinds``; a pattern that we cannot read is for nothing."""
        try:
            return self.apply_to in kinds and re.search(self.pattern, name) is not None
        except re.error:
            return False


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a virtual host."""

    queues: Mapping[str, StandingQueue] = {}
    exchanges: Mapping[str, StandingExchange] = {}
    bindings: frozenset[StandingBinding] = frozenset()
    policies: tuple[Policy, ...] = ()
    operator_policies: tuple[Policy, ...] = ()

    def holds(self, queue: StandingQueue, version: Version) -> dict[str, Setting]:
        """Return what truly holds for a queue."""
        policy, operator = self.over(queue)
        return effective(
            queue.arguments,
            {} if policy is None else policy.definition,
            {} if operator is None else operator.definition,
            version,
        )

    def over(self, queue: StandingQueue) -> tuple[Policy | None, Policy | None]:
        """Return the policy and the operator's policy that a queue is under."""
        kinds = ("all", "queues", f"{queue.kind}_queues")
        mine = _first(self.policies, queue.name, kinds, queue.policy)
        return mine, _first(self.operator_policies, queue.name, kinds, queue.operator_policy)

    def over_exchange(self, exchange: StandingExchange) -> Policy | None:
        """Return the policy that an exchange is under."""
        return _first(self.policies, exchange.name, ("all", "exchanges"), exchange.policy)


def _first(policies: Iterable[Policy], name: str, kinds: tuple[str, ...], said: str) -> Policy | None:
    """Return the one policy that counts: of the highest priority, and of several the one that the broker ``said``.

    The broker says it a few seconds late, and at first not at all: so it is looked for.
    """
    found = [each for each in policies if each.matches(name, kinds)]
    found = found or [each for each in policies if each.name == said]
    return max(found, key=lambda each: (each.priority, each.name == said), default=None)


def queues_of(document: object) -> dict[str, StandingQueue]:
    """Read ``/api/queues/VHOST``."""
    return {queue.name: queue for queue in map(_queue, objects(document))}


def _queue(said: Object) -> StandingQueue:
    return StandingQueue(
        name=text(said.get("name")),
        kind=text(said.get("type")) or "classic",
        durable=said.get("durable") is not False,
        arguments=arguments_of(said.get("arguments")),
        policy=text(said.get("policy")),
        operator_policy=text(said.get("operator_policy")),
        ready=number(said.get("messages_ready")),
        unacked=number(said.get("messages_unacknowledged")),
        stuck=number(said.get("messages_dlx")),
        consumers=number(said.get("consumers")),
        acked=number(an_object(said.get("message_stats")).get("ack")),
        members=texts(said.get("members")),
        online=texts(said.get("online")),
        leader=text(said.get("leader")),
        state=text(said.get("state")),
    )


def exchanges_of(document: object) -> dict[str, StandingExchange]:
    """Read ``/api/exchanges/VHOST``."""
    return {
        text(said.get("name")): StandingExchange(
            name=text(said.get("name")),
            kind=text(said.get("type")),
            durable=said.get("durable") is not False,
            arguments=arguments_of(said.get("arguments")),
            policy=text(said.get("policy")),
        )
        for said in objects(document)
    }


def bindings_of(document: object) -> frozenset[StandingBinding]:
    """Read ``/api/bindings/VHOST``; the default exchange's, which every queue has, are left out."""
    return frozenset(
        StandingBinding(
            text(said.get("source")),
            text(said.get("destination")),
            text(said.get("routing_key")),
            said.get("destination_type") == "queue",
        )
        for said in objects(document)
        if said.get("source")
    )


def policies_of(document: object) -> tuple[Policy, ...]:
    """Read ``/api/policies/VHOST`` and ``/api/operator-policies/VHOST``."""
    return tuple(
        Policy(
            name=text(said.get("name")),
            pattern=text(said.get("pattern")),
            apply_to=text(said.get("apply-to")) or "all",
            priority=number(said.get("priority")) or 0,
            definition=arguments_of(said.get("definition")),
        )
        for said in objects(document)
    )


# --- reading tolerantly ----------------------------------------------------------------------------------------------


def objects(document: object) -> Iterator[Object]:
    """Yield the objects of a list; nothing, where it is none."""
    for each in cast("Iterable[object]", document) if isinstance(document, list) else ():
        if isinstance(each, dict):
            yield cast("Object", each)


def an_object(document: object) -> Object:
    """Return an object; an empty one, where it is none."""
    return cast("Object", document) if isinstance(document, dict) else {}


def arguments_of(document: object) -> dict[str, Argument]:
    """Return those of an object's values that an argument of ours can be."""
    return {key: value for key, value in an_object(document).items() if isinstance(value, (str, int))}


def text(said: object) -> str:
    """Return a text; an empty one, where it is none."""
    return said if isinstance(said, str) else ""


def texts(said: object) -> tuple[str, ...]:
    """Return the texts of a list."""
    return tuple(
        each for each in (cast("list[object]", said) if isinstance(said, list) else ()) if isinstance(each, str)
    )


def number(said: object) -> int | None:
    """Return a whole number; None, where it is none."""
    return said if isinstance(said, int) and not isinstance(said, bool) else None

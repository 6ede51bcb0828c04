"""Declaring at RabbitMQ: look first, make nothing that could not be made as a whole, and use what stands.

What is refused is that thing's trouble alone, but for rights: where something is missing and the user lacks a right to
make it, nothing is made at all, so that no half of a topology is left behind.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from functools import cached_property, partial
from typing import Any, Final

import msgspec

from rabbitevents import partitions
from rabbitevents.brokers.rabbitmq import rights
from rabbitevents.brokers.rabbitmq.calls import together
from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.control import ControlChannel
from rabbitevents.brokers.rabbitmq.moving import handled
from rabbitevents.brokers.rabbitmq.rights import Lack
from rabbitevents.brokers.rabbitmq.trials import lacks_for, refused_for
from rabbitevents.errors import BrokerError, TopologyError
from rabbitevents.partitions import DIVIDED, GUARD, ended
from rabbitevents.states import Depth
from rabbitevents.topology import HASH, Argument, Binding, Exchange, Queue, Topology, guard_of, missing

_COMMAND_INVALID: Final = 503
"""The code for a type of exchange that a broker does not know."""

_PLUGIN: Final = "rabbitmq_consistent_hash_exchange"

_REFUSALS: Final = (403, 404, 405, 406)
"""Codes that concern the one thing that was asked for."""

_UNANSWERED: Final = 3
"""Questions without an answer after which the connection is in doubt, and not what was asked for: where no other one was
answered since they were asked."""

_OR_ELSE: Final = {
    Queue: ", or empty and delete it, so that it is declared anew",
    Exchange: ": the bus's own is a durable topic exchange; of another team's say the kind that it has, or its name alone",
    Binding: "",
}

_LIMITS: Final = ("x-delivery-limit", "x-max-length", "x-max-length-bytes")
"""Arguments with which a queue keeps what it was given, whatever they are."""

_BOTH_SIDES = re.compile(
    r"inequivalent arg '(?P<what>[^']+)' for [^:]*: received (?P<ours>.*) but current is (?P<theirs>.*)$", re.DOTALL
)


class Declared(msgspec.Struct, frozen=True):
    """What came of declaring: what could not be declared, by name, and what is to be said of what is used as it is."""

    refused: dict[str, TopologyError]
    info: str = ""
    warning: str = ""
    otherwise: str = ""
    """What is said of queues that are used though their limits are other ones."""


async def declare(
    connection: Connection, topology: Topology, *, passive: bool, service: Topology, said: set[str]
) -> Declared:
    """Declare in order, or with ``passive`` only look; say what could not be, by name. Raises `BrokerError`.

    What depends on something refused is still tried: a queue that is otherwise there stops only itself, and so does
    one that the broker gives no answer about. What stands and may not be declared is used as it is: its error says so
    (``stands``). ``service`` is all that the bus declares; the command that grants rights fits it. ``said`` has the
    names of what was said to be used as it is; what is said now is added.
    """
    going = _Declaring(connection, topology, service, said)
    await going.look()
    if passive:
        return Declared({name: going.explained(item, error) for name, (item, error) in going.missing.items()})
    await going.make()
    return going.declared()


async def depth(connection: Connection, queue: str) -> Depth | None:
    """Return what the broker says of ``queue``; None if there is none of that name. Raises `BrokerError`."""
    try:
        answer = await connection.ask(
            lambda channel: channel.queue_declare(queue, passive=True), f"looking at queue {queue!r}"
        )
    except BrokerError as error:
        if error.code != 404:
            raise
        return None
    return Depth(answer.message_count or 0, answer.consumer_count or 0)


_VALUE = re.compile(r"^the value '(?P<value>.*)' of type '(?P<type>\w+)'$", re.DOTALL)


async def probe(connection: Connection, item: Exchange | Queue) -> tuple[str, Argument | None, Argument | None] | None:
    """Declare what stands once more, and return an argument that differs, what it is, and what is wanted.

    None where it is as it is wanted. Of several that differ RabbitMQ says one, whichever. Raises `BrokerError`, with
    403 where it may not be declared.
    """
    try:
        await connection.ask(partial(_declared, item=item, passive=False), f"looking at {_name(item)}")
    except BrokerError as error:
        sides = _BOTH_SIDES.search(str(error))
        if error.code != 406 or sides is None:
            raise
        return sides["what"], _value(sides["theirs"]), _value(sides["ours"])
    return None


def _value(said: str) -> Argument | None:
    """Read a value as RabbitMQ says it: "the value '50' of type 'signedint'", "'50'", "none", "topic"."""
    found = _VALUE.match(said.strip())
    value = said.strip().strip("'") if found is None else found["value"]
    if value == "none":
        return None
    return int(value) if value.removeprefix("-").isdecimal() else value


class _Declaring:
    """One go at a topology, on one connection."""

    def __init__(self, connection: Connection, topology: Topology, service: Topology, said: set[str]) -> None:
        self.missing: dict[str, tuple[Exchange | Queue, BrokerError]] = {}
        self._connection = connection
        self._items = topology.items
        self._service = service
        self._said = said
        self._answers = 0
        """How many questions were answered, be it with a refusal."""
        self._unanswered = 0
        self._refused: dict[str, TopologyError] = {}
        self._stand: list[str] = []
        self._unknown: list[str] = []
        """Bindings that could not be made, and may be there."""
        self._lacks: set[Lack] = set()
        self._otherwise: list[str] = []
        """What is said of queues that are used though they are otherwise."""
        self._divisions: dict[str, TopologyError] = {}
        """Why nothing of a division is made, by its guard: there are other partitions, or others are led over to; and of a
        queue, by its name: it is divided."""

    async def look(self) -> None:
        """Look which exchanges and queues are there. That takes no right (3.10), or any one of the three (4.3)."""
        things = [item for item in self._items if not isinstance(item, Binding)]
        for item, error in zip(things, await together(self._look_at(item) for item in things), strict=True):
            if error is not None and error.code in (0, 403, 404):
                self.missing.setdefault(item.name, (item, error))

    def _look_at(self, item: Exchange | Queue) -> Awaitable[BrokerError | None]:
        return self._ask(partial(_declared, item=item, passive=True), f"looking at {_name(item)}")

    async def make(self) -> None:
        """Declare what stands, to see whether it is what is wanted; make what is missing, or nothing at all."""
        lacks = await lacks_for(self._items, self._absent, self._ask)
        for thing, error in self.missing.values():
            if error.code == 0 or _is_foreign(thing):  # whoever got no answer does not wait for a second one
                self._refused[thing.name] = self.explained(thing, error)
            elif lacks:
                self._refused[thing.name] = self._not_made(thing, lacks)
        await self._look_for_the_plugin()
        await self._look_for_other_divisions()
        await self._look_for_divided_ones()
        for wave in Topology(self._items).waves:
            await together(map(self._make, wave))

    async def _make(self, item: Exchange | Queue | Binding) -> None:
        if (why := self._divisions.get(guard_of(item) or _key(item))) is not None:
            self._note_divided(item, why)
        elif isinstance(item, Binding) and item.exchange in self._refused.keys() & self._not_ours_to_make:
            self._note_unbound(item)
        elif not self._refused.keys() & self._made_of(item):
            refused = await self._ask(partial(_declared, item=item, passive=False), f"declaring {_name(item)}")
            if refused is None or self._is_divided_otherwise(item, refused):
                return
            if not await self._is_used_all_the_same(item, refused):
                self._note(item, refused)

    async def _look_for_the_plugin(self) -> None:
        """See that the broker has exchanges that divide. It ends a connection that asks for a type that it does not know."""
        wanted = [thing for thing, _ in self.missing.values() if isinstance(thing, Exchange) and thing.kind == HASH]
        if not wanted:
            return
        connection = await self._connection.another()
        try:
            await connection.ask(partial(_not_to_be, item=wanted[0]), f"looking for exchanges of type {HASH}")
        except BrokerError:
            if connection.tap.closed is None or connection.tap.closed[0] != _COMMAND_INVALID:
                return  # it knows the type, and refuses what was asked for, as it was meant to
            for each in wanted:
                self._refused[each.name] = TopologyError(
                    f"this RabbitMQ divides nothing among partitions: `rabbitmq-plugins enable {_PLUGIN}` on each of its nodes",
                    name=each.name,
                    code=406,
                )
        finally:
            await connection.close()

    async def _look_for_other_divisions(self) -> None:
        """See of which partitions of ours nothing is to be made.

        Those that others have been led over from are consumed as they stand; and where a queue stands that nothing divides
        yet, that is consumed by the code that it is of.
        """
        for item in self._items:
            if not isinstance(item, Exchange) or not item.name.endswith(GUARD):
                continue
            there, whole = _division(item), item.name.removesuffix(GUARD)
            if await self._look_at(Exchange(ended(there), "fanout")) is None:
                text = f"the partitions {there!r} have ended, and others stand in their place: {_leading(whole, 'leads back to them')}"
                self._divisions[item.name] = TopologyError(text, name=item.name, code=0, stands=True)
            elif item.name in self.missing and await self._look_at(Queue(whole)) is None:
                text = (
                    f"queue {whole!r} stands, which nothing divides, and this bus wants it {there.removeprefix(f'{whole}.')}: "
                    f"while the code that consumes it still runs, {_leading(whole, 'leads over')}"
                )
                self._divisions[item.name] = TopologyError(text, name=item.name, code=406)

    async def _look_for_divided_ones(self) -> None:
        """See which of our queues are divided: they are consumed as they stand, as long as they do, and not made."""
        queues = [queue for queue in handled(Topology(self._items)) if partitions.guard_of(queue) is None]
        if not queues:
            return
        none_at_all = await self._look_at(Exchange(DIVIDED, "fanout"))
        if none_at_all is not None and none_at_all.code != 403:  # whoever may not look at that looks at each
            return
        signs = [(queue, name) for queue in queues for name in (f"{queue}{GUARD}", ended(queue))]
        answers = await together(self._look_at(Exchange(name, "fanout")) for _, name in signs)
        for (queue, _), error in zip(signs, answers, strict=True):
            if error is None:
                text = (
                    f"queue {queue!r} is divided into partitions, or is being divided, and this bus wants it as one: while the "
                    f"code that they are of still runs, {_leading(queue, 'leads over')}"
                )
                self._divisions[queue] = TopologyError(text, name=queue, code=0, stands=True)

    def _note_divided(self, item: Exchange | Queue | Binding, why: TopologyError) -> None:
        """Note why something of a division is not made; the place of its dead letters is none of it."""
        name = _key(item)
        if name.endswith(GUARD) or (name not in self._divisions and partitions.guard_of(name) is None):
            return
        stands = why.stands and name not in self.missing
        error = TopologyError(str(why), name=name, code=why.code if stands else 406, stands=stands)
        self._refused.setdefault(name, error)

    def _is_divided_otherwise(self, item: Exchange | Queue | Binding, error: BrokerError) -> bool:
        """Say whether there are other partitions than ours: nothing of ours is made then."""
        if not isinstance(item, Exchange) or not item.name.endswith(GUARD) or error.code != 406:
            return False
        sides, whole = _BOTH_SIDES.search(str(error)), item.name.removesuffix(GUARD)
        theirs = str(_value(sides["theirs"])) if sides else "others"
        ours, theirs = (each.removeprefix(f"{whole}.") for each in (_division(item), theirs))
        text = (
            f"the partitions of {whole!r} are {theirs}, and this bus wants them {ours}: while the code that they are of "
            f"still runs, {_leading(whole, 'leads over')}"
        )
        self._divisions[item.name] = TopologyError(text, name=item.name, code=406)
        return True

    async def _is_used_all_the_same(self, item: Exchange | Queue | Binding, error: BrokerError) -> bool:
        """Say whether a queue that stands differs in limits alone: with other ones, too, it keeps what it was given."""
        if not isinstance(item, Queue) or error.code != 406:
            return False
        arguments, differing, refused = dict(item.arguments), list[str](), error
        while (sides := _BOTH_SIDES.search(str(refused))) is not None and sides["what"] in _LIMITS:
            # RabbitMQ says one argument that differs: with its value in place of ours, the next one, if there is any.
            value = _value(sides["theirs"])
            arguments = {name: there for name, there in arguments.items() if name != sides["what"]}
            arguments |= {} if value is None else {sides["what"]: value}
            differing.append(f"{sides['what']} is {'not set' if value is None else value}")
            wanted = Queue(item.name, arguments)
            answer = await self._ask(partial(_declared, item=wanted, passive=False), f"looking at {_name(item)}")
            if answer is None or len(differing) > len(_LIMITS):
                break
            refused = answer
        else:
            return False
        text = (
            f"{_name(item)} is used as it stands, which is not as this bus wants it: {', '.join(differing)}; "
            f"rabbitevents topology migrate MODULE:BUS {item.name} makes it anew"
        )
        self._refused.setdefault(item.name, TopologyError(text, name=item.name, code=406, stands=True))
        self._otherwise += [text] if self._is_news(item) else []
        return True

    def _note_unbound(self, item: Binding) -> None:
        """Note that a queue cannot be bound to another team's exchange, since that is not there."""
        why = self._refused[item.exchange]
        text = f"{_name(item)} cannot be made: {why}"
        self._refused.setdefault(item.queue, TopologyError(text, name=item.queue, code=why.code))

    @cached_property
    def _not_ours_to_make(self) -> set[str]:
        """The exchanges that are missing and cannot be made by us: other teams', and those that RabbitMQ has a plugin for."""
        return {thing.name for thing, _ in self.missing.values() if _is_foreign(thing) or _divides(thing)}

    @property
    def _absent(self) -> set[str]:
        return {name for name, (_, error) in self.missing.items() if error.code}

    def _made_of(self, item: Exchange | Queue | Binding) -> set[str]:
        """Return what must be made before ``item``, as far as it is missing."""
        names = {item.queue, item.exchange} if isinstance(item, Binding) else {item.name}
        return {name for name in names if name in self.missing}

    def _note(self, item: Exchange | Queue | Binding, error: BrokerError) -> None:
        stood = error.code == 403 and not self._made_of(item)
        if stood and isinstance(item, Binding):
            if self._is_news(item):
                self._unknown.append(_name(item))
                self._lacks.add(refused_for(error, item.queue, item.exchange, item.routing_key))
            return
        if stood and not isinstance(item, Binding) and not _is_own_name(item.name):
            if self._is_news(item):
                self._stand.append(_name(item))
            text = f"{_name(item)} is used as it stands: {self._where} has no right to configure it"
            self._refused.setdefault(item.name, TopologyError(text, name=item.name, code=403, stands=True))
            return
        key = _key(item)
        known = self._refused.get(key)
        if known is None or known.stands:
            self._refused[key] = self.explained(item, error)

    def _is_news(self, item: Exchange | Queue | Binding) -> bool:
        name = _name(item)
        if name in self._said:
            return False
        self._said.add(name)
        return True

    async def _ask(self, question: Callable[[ControlChannel], Awaitable[Any]], what: str) -> BrokerError | None:
        """Return what the broker refuses, None where it agrees. Raises `BrokerError` where the connection is in doubt."""
        answers = self._answers
        try:
            await self._connection.ask(question, what)
        except BrokerError as error:
            self._answers += error.code != 0
            self._unanswered = self._unanswered + 1 if answers == self._answers else 0
            if self._connection.lost.done() or self._unanswered == _UNANSWERED or error.code not in (0, *_REFUSALS):
                raise
            return error
        self._answers += 1
        return None

    # --- what is said ---

    @property
    def _where(self) -> str:
        user, vhost = rights.login(self._connection.address)
        return f"user {user!r} in virtual host {vhost!r}"

    def _remedy(self, lacks: Iterable[Lack]) -> str:
        return f"To grant it: {rights.remedy(lacks, self._service, self._connection.address)}"

    def declared(self) -> Declared:
        """Return what came of it."""
        info = warning = ""
        if self._stand:
            info = f"{self._where} has no right to configure {', '.join(self._stand)}, and uses what stands"
        if self._unknown:
            warning = (
                f"{self._where} may not make {'; '.join(self._unknown)}: it lacks {rights.said(self._lacks)}. "
                "Whether they are there already, AMQP cannot say, and rabbitmqctl list_bindings does: without them, "
                f"those events do not come. {self._remedy(self._lacks)}"
            )
        return Declared(self._refused, info, warning, "; ".join(self._otherwise))

    def _not_made(self, item: Exchange | Queue, lacks: frozenset[Lack]) -> TopologyError:
        unknown = self.missing[item.name][1].code == 403
        text = (
            f"{_name(item)} {'may not be looked at' if unknown else 'does not exist'}, and nothing that is missing was "
            f"made, since {self._where} lacks {rights.said(lacks)}. {self._remedy(lacks)}. Or have it declared by "
            "somebody who may"
        )
        return TopologyError(text, name=item.name, code=403)

    def explained(self, item: Exchange | Queue | Binding, error: BrokerError) -> TopologyError:
        """Say what the broker has, what we want, and the way out."""
        if error.code == 404 and _is_foreign(item):
            return TopologyError(missing(_key(item)), name=_key(item), code=404)
        sides = _BOTH_SIDES.search(str(error))
        key = _key(item)
        if sides is not None:
            text = (
                f"{_name(item)} exists with other arguments: {sides['what']} is {sides['theirs']}, and this bus wants {sides['ours']}. "
                f"Bring the bus into line with it{_OR_ELSE[type(item)]}"
            )
        elif error.code == 404:
            text = f"{_name(item)} does not exist: have it declared by somebody who may, or let this bus declare (declare='active')"
        elif error.code == 403 and _is_own_name(key):
            text = f"{_name(item)}: names that begin with 'amq.' are the broker's own; choose another"
        elif error.code == 403:
            text = f"{_name(item)}: refused to {self._where} ({error}). {self._remedy([Lack('configure', key)])}"
        else:
            text = f"{_name(item)}: {error}"
        return TopologyError(text, name=key, code=error.code)


def _declared(channel: ControlChannel, item: Exchange | Queue | Binding, *, passive: bool) -> Awaitable[Any]:
    match item:
        case Exchange():
            return channel.exchange_declare(
                item.name,
                exchange_type=item.kind or "topic",
                durable=True,
                passive=passive or item.kind is None,
                arguments=dict(item.arguments),
            )
        case Queue():
            return channel.queue_declare(item.name, durable=True, passive=passive, arguments=dict(item.arguments))
        case Binding(to_exchange=True):
            return channel.exchange_bind(destination=item.queue, source=item.exchange, routing_key=item.routing_key)
        case Binding():
            return channel.queue_bind(item.queue, item.exchange, routing_key=item.routing_key)


def _is_foreign(item: Exchange | Queue | Binding) -> bool:
    """Say whether it is another team's exchange, which must be there and is never declared here."""
    return isinstance(item, Exchange) and item.kind is None


def _leading(whole: str, leads: str) -> str:
    """Say what leads to the partitions that this code wants."""
    return f"`rabbitevents topology migrate MODULE:BUS {whole}` {leads}, with this code's bus"


def _division(guard: Exchange) -> str:
    """Return what the guard of partitions says, as we want it."""
    return str(guard.arguments["alternate-exchange"])


def _divides(item: Exchange | Queue) -> bool:
    return isinstance(item, Exchange) and item.kind == HASH


def _not_to_be(channel: ControlChannel, item: Exchange) -> Awaitable[Any]:
    """Declare an exchange that cannot be, of a type that may be unknown."""
    return channel.exchange_declare(
        item.name, exchange_type=str(item.kind), durable=True, arguments={"alternate-exchange": -1}
    )


def _key(item: Exchange | Queue | Binding) -> str:
    """Return under which name a trouble with ``item`` is known: a binding's under its queue's."""
    return item.queue if isinstance(item, Binding) else item.name


def _is_own_name(name: str) -> bool:
    return not name or name.startswith("amq.")


def _name(item: Exchange | Queue | Binding) -> str:
    match item:
        case Exchange():
            return f"exchange {item.name!r}"
        case Queue():
            return f"queue {item.name!r}"
        case Binding():
            what = "exchange" if item.to_exchange else "queue"
            return f"the binding of {what} {item.queue!r} to {item.routing_key!r} on exchange {item.exchange!r}"

"""The course of making a queue anew, without a broker: at any moment an event has one way, and there is always an end."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitevents import ConfigurationError
from rabbitevents.brokers.rabbitmq.altering import Link
from rabbitevents.operations.moving.course import (
    Act,
    Bind,
    DeclareExchange,
    DeclareQueue,
    DeleteExchange,
    Empty,
    Unbind,
    next_step,
)
from rabbitevents.operations.standing import Standing, StandingBinding, StandingExchange, StandingQueue
from rabbitevents.topology import Queue

Q = "shop.record"
WANTED = Queue(Q, {"x-queue-type": "quorum", "x-delivery-limit": 50})
SOURCES = (("events", "order.placed"), ("events", "payment.#"), ("events.due", "order.placed"), ("delay.due", Q))


def before(limit: int = 20, kind: str = "quorum") -> Standing:
    """What stands before: the queue with other arguments, bound, and a neighbour."""
    queue = StandingQueue(name=Q, kind=kind, arguments={"x-queue-type": kind, "x-delivery-limit": limit})
    other = StandingQueue(name="shop.other", arguments=WANTED.arguments)
    bindings = {StandingBinding(source, Q, key) for source, key in SOURCES}
    bindings |= {StandingBinding("delay.due", "shop.other", "shop.other")}
    exchanges = {name: StandingExchange(name=name) for name in ("events", "events.due", "delay.due")}
    return Standing(queues={Q: queue, "shop.other": other}, exchanges=exchanges, bindings=frozenset(bindings))


def after(standing: Standing, act: Act) -> Standing:
    """What stands after an act; with a queue or an exchange its bindings are gone."""
    queues, exchanges, bindings = dict(standing.queues), dict(standing.exchanges), set(standing.bindings)
    match act:
        case DeclareQueue(name, arguments):
            assert name not in queues
            queues[name] = StandingQueue(name=name, arguments=arguments)
        case DeclareExchange(name, alternate, kind, arguments):
            told = {**arguments, **({} if alternate is None else {"alternate-exchange": alternate})}
            exchanges[name] = StandingExchange(name=name, kind=kind, arguments=told)
        case Bind(link):
            bindings.add(_standing(link))
        case Unbind(link):
            bindings.remove(_standing(link))
        case Empty(name):
            del queues[name]
            bindings = {each for each in bindings if not (each.to_queue and each.target == name)}
        case DeleteExchange(name):
            del exchanges[name]
            bindings = {each for each in bindings if each.exchange != name and (each.to_queue or each.target != name)}
    return Standing(queues=queues, exchanges=exchanges, bindings=frozenset(bindings))


def _standing(link: Link) -> StandingBinding:
    return StandingBinding(link.source, link.target, link.key, link.to_queue)


def reached(standing: Standing, source: str, key: str) -> set[str]:
    """The queues that a message reaches, however many ways lead to each."""
    found: set[str] = set()
    ways = [each for each in standing.bindings if each.exchange == source and each.routing_key in (key, "")]
    for way in ways:
        found |= {way.target} if way.to_queue else reached(standing, way.target, key)
    exchange = standing.exchanges[source]
    if not ways and "alternate-exchange" in exchange.arguments:
        return reached(standing, str(exchange.arguments["alternate-exchange"]), key)
    return found


def course(standing: Standing) -> list[tuple[Act, Standing]]:
    """All acts, and what stands after each."""
    found: list[tuple[Act, Standing]] = []
    while (step := next_step(WANTED, standing)) is not None:
        standing = after(standing, step.act)
        found.append((step.act, standing))
        assert len(found) < 100
    return found


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_at_each_moment_every_event_reaches_one_queue_of_the_two(kind: str) -> None:
    moments = [before(kind=kind), *(standing for _, standing in course(before(kind=kind)))]

    ways = {frozenset(reached(each, source, key)) for each in moments for source, key in SOURCES}

    assert ways == {frozenset({Q}), frozenset({f"{Q}.moving"})}


def test_a_queue_is_emptied_only_when_nothing_more_comes_to_it() -> None:
    moments = [before(), *(standing for _, standing in course(before()))]

    for standing, (act, _) in zip(moments, course(before()), strict=False):
        if isinstance(act, Empty):
            assert all(act.name not in reached(standing, source, key) for source, key in SOURCES)


def test_in_the_end_the_queue_stands_anew_with_the_bindings_that_it_had_and_nothing_is_left_over() -> None:
    start = before()

    end = course(start)[-1][1]

    assert end.queues[Q].arguments == WANTED.arguments
    assert end.bindings == start.bindings
    assert end.queues.keys() == start.queues.keys()
    assert end.exchanges.keys() == start.exchanges.keys()


def test_nothing_is_done_where_the_queue_is_as_it_is_wanted() -> None:
    assert next_step(WANTED, before(limit=50)) is None


@given(st.data())
def test_a_binding_that_somebody_makes_meanwhile_is_taken_away_before_a_queue_is_emptied(data: st.DataObject) -> None:
    moments = [before(), *(standing for _, standing in course(before()))]
    standing = data.draw(st.sampled_from([each for each in moments[1:-1] if Q in each.queues]))
    source, key = data.draw(st.sampled_from(SOURCES))
    bound = {*standing.bindings, StandingBinding(source, Q, key)}

    rest = course(msgspec.structs.replace(standing, bindings=frozenset(bound)))

    end = rest[-1][1] if rest else standing
    assert end.bindings == before().bindings
    assert {*end.queues} == {Q, "shop.other"}


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        (Standing(), "there is no queue 'shop.record': rabbitevents topology apply declares it"),
        (msgspec.structs.replace(before(), bindings=frozenset()), "nothing leads to queue 'shop.record'"),
        (
            msgspec.structs.replace(before(), exchanges={f"{Q}.moving.first": StandingExchange(name="x")}),
            "somebody declared it meanwhile: x-delivery-limit is 20, wanted is 50. Its events are safe in",
        ),
    ],
)
def test_where_there_is_no_way_on_it_says_so(standing: Standing, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said.replace(".", r"\.")):
        next_step(WANTED, standing)

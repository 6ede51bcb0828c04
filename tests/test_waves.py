"""What a bus declares goes to the broker in waves, side by side within one, and targets still stand before sources."""

from __future__ import annotations

from rabbitevents import Bus, Router
from rabbitevents.topology import Binding, Exchange, Queue, Topology
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from tests.shop import OrderPlaced


async def _quiet(order: OrderPlaced) -> None:
    pass


def _of_many(handlers: int) -> Topology:
    shop = Router("shop")
    for number in range(handlers):
        shop.on(OrderPlaced, name=f"handler-{number}")(_quiet)
    return Bus("memory://", shop, plugins=[DeadLetter(), Retry()]).topology


def test_waves_are_as_many_for_two_hundred_handlers_as_for_one() -> None:
    one, many = _of_many(1), _of_many(200)

    assert len(one.waves) == len(many.waves)
    assert sorted(map(str, many.items)) == sorted(str(item) for wave in many.waves for item in wave)


def test_what_is_bound_and_where_dead_letters_go_stands_before() -> None:
    placed = [(item, number) for number, wave in enumerate(_of_many(3).waves) for item in wave]

    place = {item: number for item, number in placed if isinstance(item, Binding)}
    of = {item.name: number for item, number in placed if not isinstance(item, Binding)}
    for item, number in placed:
        if isinstance(item, Binding):
            assert number > max(of[item.queue], of[item.exchange])
        elif isinstance(item, Queue) and "x-dead-letter-exchange" in item.arguments:
            way = Binding("events.dead", f"{item.name}.dead", item.name)
            assert number > place[way]
        elif isinstance(item, Exchange) and "alternate-exchange" in item.arguments:
            assert number > place[Binding("delay.lost", "delay.lost", "")]


def test_a_thing_that_nothing_leads_to_is_in_the_first_wave() -> None:
    alone = Topology((Queue("a"), Exchange("b", "topic"), Queue("c", {"x-dead-letter-exchange": "elsewhere"})))

    assert alone.waves == (alone.items,)

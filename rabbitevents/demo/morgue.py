"""The dead letter queues of the shop: what is really in there, whatever services say."""

from __future__ import annotations

from typing import Final

from rabbitevents import Bus
from rabbitevents.demo.tally import Effect, Tally
from rabbitevents_deadletter import DeadLetters

SEEN: Final = 2000
"""How many dead letters of a queue are looked at; quorum queues let no more out at a time."""


async def look(bus: Bus, tally: Tally) -> None:
    """Look for the events that have no effect among the dead letters of their queues, and note those that are there.

    What lies behind the first `SEEN` letters of a queue cannot be seen, and services are believed. Raises `BrokerError`.
    """
    for queue in sorted({queue for queue, _ in tally.lost}):
        letters = await DeadLetters(bus, queue, hold=SEEN).find(limit=SEEN)
        found: dict[Effect, str] = {(queue, each.id): each.cause for each in letters}
        if len(letters) == SEEN:
            found = {each: error for each, error in tally.given_up.items() if each[0] == queue} | found
        tally.bury(found)

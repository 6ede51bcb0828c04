"""What happened around claims, for whoever observes (`Plugin.observe`); a duplicate is the core's ``facts.Duplicate``."""

from __future__ import annotations

from rabbitevents import Fact


class _OfEvent(Fact, frozen=True):
    subscription: str
    type: str
    id: str


class LeaseLost(_OfEvent, frozen=True):
    """A handler runs whose claim has passed to another: what it still does may be done twice."""


class Fenced(_OfEvent, frozen=True):
    """A handler ended whose claim had passed to another: it was not marked as done, and comes back later."""


class Unclaimed(_OfEvent, frozen=True):
    """An event is handled without a claim, since the store is away and ``when_unavailable`` is "proceed"."""


class StoreLost(Fact, frozen=True):
    """The store is out of reach."""

    reason: str


class StoreBack(Fact, frozen=True):
    """The store answers again; ``downtime`` in seconds."""

    downtime: float

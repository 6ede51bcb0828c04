"""The checks: each looks at a scene, says what is wrong there, and the way out. Pure functions, which ask nobody."""

from __future__ import annotations

from typing import Final

from rabbitevents.operations.checks import broker, messages, topology
from rabbitevents.operations.scene import Check

CHECKS: Final = (
    Check("D1", "connecting", (), broker.connecting),
    Check("D2", "the broker's version", ("broker",), broker.version),
    Check("D3", "feature flags", ("broker", "flags"), broker.flags),
    Check("D4", "rights", ("rights",), broker.rights),
    Check("D5", "missing queues and exchanges", ("broker",), topology.missing),
    Check("D5", "arguments", ("objects",), topology.otherwise),
    Check("D5", "missing bindings", ("objects",), topology.unbound),
    Check("D6", "stale bindings", ("objects",), topology.stale),
    Check("D7", "queues that are nobody's", ("objects",), topology.orphans),
    Check("D8", "policies", ("broker", "objects"), topology.policies),
    Check("D9", "delivery limits", ("broker", "objects"), topology.limits),
    Check("D10", "where what waited goes", ("objects",), topology.ways_out),
    Check("D10", "what fell due for nobody", ("broker",), messages.lost),
    Check("D11", "dead letters", ("broker",), messages.dead),
    Check("D11", "dead letters that are stuck", ("numbers",), messages.stuck),
    Check("D12", "consumers", ("broker",), messages.consumers),
    Check("D13", "unacknowledged messages", ("numbers",), messages.unsettled),
    Check("D13", "events that are held", ("processes",), messages.processes),
    Check("D14", "alarms", ("alarms",), broker.alarms),
    Check("D14", "replicas of queues", ("objects",), broker.replicas),
    Check("D14", "the cluster's nodes", ("nodes",), broker.nodes),
    Check("D15", "events that nobody gets", ("objects",), topology.unheard),
    Check("D16", "clocks", ("objects",), broker.clocks),
    Check("D18", "unfinished moves", ("objects",), topology.moving),
    Check("D18", "renamed queues", ("objects",), topology.renames),
)
"""In the order in which they are said. (Two bindings of one queue that overlap deliver once: there is no D17.)"""

"""Which scenarios a run has: a load, and one fault or two at a time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import msgspec

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.loads import LOADS
from tests.chaos.peers import COMPARED, PEERS

_BESIDE = {"cluster", "service", "redis", "postgres"}
"""What is touched by faults that meet those of a cluster: no proxy is in front of its nodes."""


class Scenario(msgspec.Struct, frozen=True):
    """A load, what happens to it, and how often."""

    load: str
    faults: tuple[str, ...]
    injections: int = 1

    @property
    def name(self) -> str:
        return " + ".join((self.load, *self.faults))


def fits(fault: type[Fault], load: str) -> bool:
    """Whether a fault makes sense for a load."""
    if load in fault.without:
        return False
    return (not fault.loads or load in fault.loads) and (not fault.uses or fault.uses in LOADS[load].uses)


def singles(*, cluster: bool = False) -> list[Scenario]:
    """Every fault of one node, or of a cluster, with every load that it makes sense for."""
    known = [fault for fault in FAULTS.values() if (fault.touches == "cluster") == cluster]
    return [Scenario(load, (fault.name,)) for fault in known for load in LOADS if fits(fault, load)]


def pairs(seed: int, *, cluster: bool = False) -> list[Scenario]:
    """Every two faults that touch different things, once, each pair with a load that the seed says.

    A cluster's faults meet those of what is beside the broker.
    """
    chosen, found = random.Random(f"pairs {seed}"), list[Scenario]()
    for one, other in itertools.combinations(FAULTS.values(), 2):
        touched = {one.touches, other.touches}
        if ("cluster" in touched) != cluster or (cluster and not touched <= _BESIDE):
            continue
        loads = [load for load in LOADS if fits(one, load) and fits(other, load)]
        if one.touches != other.touches and loads and all(each.lossless and not each.alone for each in (one, other)):
            found.append(Scenario(chosen.choice(loads), (one.name, other.name)))
    return found


def compared(injections: int, only: Sequence[str] = ()) -> list[Scenario]:
    """Return what we and the others meet, each as often; ``only`` are names that each scenario must have."""
    found = [Scenario(load, (fault,)) for fault in COMPARED for load in ("handle", *PEERS)]
    found = [each for each in found if set(only) <= {each.load, *each.faults}]
    return [Scenario(each.load, each.faults, max(1, injections // len(found))) for each in found]


def planned(
    seed: int, injections: int, *, only: Sequence[str] = (), pairwise: bool = False, cluster: bool = False
) -> list[Scenario]:
    """Return the scenarios of a run in the seed's order; ``only`` are names that each of them must have.

    With fewer injections than scenarios, not all of these are in it. Raises ValueError where nothing is left.
    """
    known = [*LOADS, *FAULTS]
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"there is no {unknown[0]!r}; there are {', '.join(known)}")
    two_faults = sum(name in FAULTS for name in only) == 2
    both = pairs(seed, cluster=cluster)
    chosen = both if two_faults else [*singles(cluster=cluster), *(both if pairwise else ())]
    if two_faults and (loads := [name for name in only if name in LOADS]):
        chosen = [
            Scenario(loads[0], each.faults) for each in chosen if all(fits(FAULTS[f], loads[0]) for f in each.faults)
        ]
    chosen = [each for each in chosen if set(only) <= {each.load, *each.faults}]
    if not chosen:
        raise ValueError(f"nothing has all of {', '.join(only)}")
    random.Random(f"plan {seed}").shuffle(chosen)
    each, more = divmod(injections, len(chosen))
    sized = [Scenario(s.load, s.faults, each + (number < more)) for number, s in enumerate(chosen)]
    return [scenario for scenario in sized if scenario.injections]

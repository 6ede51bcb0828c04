"""How things are at this moment, as small values: of a queue, of a subscription in this process, of a bus.

(What happened is a fact: `rabbitevents.facts`.)
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Grade = Literal["wrong", "risk", "note"]
"""How bad a finding is: something loses events or stands still; it may come to that; it is good to know."""


class Depth(msgspec.Struct, frozen=True):
    """What the broker says of a queue: the messages that are ready, and its consumers, anybody's."""

    ready: int
    consumers: int


class Load(msgspec.Struct, frozen=True):
    """What a subscription has in this process: deliveries that wait for a worker, that are handled, that are held."""

    queued: int
    running: int
    held: int


SUBSCRIPTION: Final = "subscription "
"""How a subscription's check begins, before its name."""


class Check(msgspec.Struct, frozen=True):
    """One line of `Bus.health()`: a thing, whether it is as it should be, and what is the matter if not.

    ``degraded`` says of a thing that is not as it should be that its work goes on all the same. ``held`` is how many
    deliveries a subscription holds; None for everything else.
    """

    name: str
    ok: bool
    detail: str = ""
    degraded: bool = False
    held: int | None = None


class Health(msgspec.Struct, frozen=True):
    """What a bus says of itself: every piece it should be running, and whether that runs."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return all(check.ok for check in self.checks)

    @property
    def ready(self) -> bool:
        """Whether the work goes on, with all that it needs: everything is as it should be, or only degraded."""
        return all(check.ok or check.degraded for check in self.checks)

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that are not as they should be."""
        return tuple(check for check in self.checks if not check.ok)


class Finding(msgspec.Struct, frozen=True):
    """Something that ``rabbitevents doctor`` found: how bad it is, where, what it is, and the way out.

    ``where`` is the name of a queue, an exchange, a node or a plugin.
    """

    grade: Grade
    where: str
    what: str
    way_out: str = ""

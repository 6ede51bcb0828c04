"""The group of commands, and what several of them are told."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

import click
from click.types import StringParamType

from rabbitevents import ConfigurationError
from rabbitevents.cli.groups import BusCommands

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WAIT: Final = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)$")


class _Waits(StringParamType):
    """Waiting times: ``1m,1h``, and from one to another, ``4s..6s``."""

    name = "times"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read them."""
        if not isinstance(value, str):
            return value
        return tuple(self._span(each.strip(), param, ctx) for each in value.split(","))

    def _span(self, told: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        ends = [_WAIT.match(each.strip()) for each in told.partition("..")[::2] if each]
        if not ends or None in ends:
            self.fail(f"{told[:40]!r} is no waiting time: write 30s, 5m, 1h, 7d, or 4s..6s for all between", param, ctx)
        times = [float(each[1]) * _UNITS[each[2]] for each in ends if each is not None]
        if times[0] > times[-1] or times[-1] > 30 * _UNITS["d"]:
            self.fail(f"{told[:40]!r}: the shorter time first, and none above 30d", param, ctx)
        return times[0], times[-1]


WAITS: Final = click.option(
    "--delays",
    "waits",
    metavar="TIMES",
    type=_Waits(),
    default=(),
    help="The queues for these waiting times too: 1m,1h or 4s..6s.",
)
AS_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Write it as JSON, in a form that stays.")
YES: Final = click.option("--yes", is_flag=True, help="Do not ask.")


class TopologyCommands(BusCommands):
    """The group's own commands."""

    usual = "plan"


@click.group(
    cls=TopologyCommands,
    epilog="""\b
Examples:
  rabbitevents topology plan shop.inventory:bus            what is to be changed
  rabbitevents topology apply shop.inventory:bus           add what is missing
  rabbitevents topology apply shop.inventory:bus --prune   remove stale bindings
  rabbitevents topology export shop.inventory:bus > shop.json

\b
Exit codes:
  0  all is as the bus wants it
  2  something is written wrong, or could not be seen or done
  3  something is to be changed""",
)
def topology() -> None:
    """Compare what a bus wants at its broker with what stands there.

    Everything is done by AMQP, as the user of the bus's URL; what stands is
    seen over HTTP, in RabbitMQ's management API.
    """


def confirm(question: str) -> None:
    """Ask. Raises `click.UsageError` where nobody is there to answer, and `click.Abort` for a no."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise click.UsageError("nobody is here to answer, and nothing was changed: say --yes") from None
    if not agreed:
        raise ConfigurationError("nothing was changed")

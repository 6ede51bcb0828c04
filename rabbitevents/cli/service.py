"""``rabbitevents run``: a bus as a service, in one process or in several."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import click
import msgspec

from rabbitevents import Bus, ConfigurationError
from rabbitevents.cli.console import DEBUG
from rabbitevents.cli.reference import BusReference
from rabbitevents.cli.settings import Settings
from rabbitevents.logs import Form

MOST_WORKERS: Final = 256
MOST_SECONDS: Final = 86_400.0
LEAST_HANG: Final = 3.0


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read a number of seconds, up to a day. What is no number (or nan) is refused."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MOST_SECONDS:
        raise click.BadParameter(f"{value[:40]!r} is no number of seconds from 0 to {MOST_SECONDS:,.0f}", ctx, param)
    return seconds


def _hang(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    seconds = _seconds(ctx, param, value)
    if seconds is not None and 0 < seconds < LEAST_HANG:
        raise click.BadParameter(
            f"{seconds:g} s is what a busy machine takes: say {LEAST_HANG:g} or more, or 0", ctx, param
        )
    return seconds


_SERVING = (
    click.option(
        "--grace",
        metavar="S",
        callback=_seconds,
        help="At a stop, give running handlers S seconds instead of what the bus says.",
    ),
    click.option(
        "--log",
        type=click.Choice(["text", "json"]),
        help="Write what is logged in this form, whatever the module has set up.",
    ),
    click.option(
        "--health",
        metavar="PORT",
        type=click.IntRange(0, 65535),
        help="Answer /live, /ready, /health and /metrics over HTTP on this port, of every address.",
    ),
)


def serving_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command be told how a bus is served: grace period, log and health."""
    for option in reversed(_SERVING):
        command = option(command)
    return command


@click.command(
    epilog="""\b
Examples:
  rabbitevents run shop.inventory:bus              the `bus` in shop/inventory.py
  rabbitevents run shop.inventory:make_bus         what a function there returns
  rabbitevents run shop.inventory:bus --workers 4  four processes share the queues
  rabbitevents run shop.inventory:bus --reload     while you write it

\b
A container runs it as its one process, with a stop timeout of the grace
period and 5 seconds:
  CMD ["rabbitevents", "run", "shop.inventory:bus", "--grace", "20",
       "--log", "json", "--health", "8080"]"""
)
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(1, MOST_WORKERS),
    default=1,
    help="Run N processes; one that crashes or hangs is replaced, after a growing pause (1).",
)
@click.option(
    "--hang",
    metavar="S",
    callback=_hang,
    help="Of several processes, replace one whose event loop does not turn for S seconds (10); 0 is never.",
)
@click.option("--reload", is_flag=True, help="Start anew whenever a *.py below the current folder changes.")
@serving_options
@click.option("--debug", is_flag=True, help="Show the traceback of what goes wrong.")
@click.option("--settings", "told", hidden=True, help="The settings of one of several processes, as JSON.")
@click.pass_context
def run(
    ctx: click.Context,
    reference: str,
    workers: int,
    hang: float | None,
    reload: bool,
    grace: float | None,
    log: Form | None,
    health: int | None,
    debug: bool,
    told: str | None,
) -> int:
    """Run the bus that MODULE:BUS names, until SIGTERM or Ctrl-C.

    On the first signal it takes nothing new, lets running handlers end within
    the grace period, confirms, and leaves with 0. On the second it gives back
    what runs, and leaves at once. What was not finished is delivered again.

    The module is imported from the current folder. BUS may also be a function
    without parameters that returns one. The event loop is uvloop's, where that
    is installed.
    """
    ctx.meta[DEBUG] = debug or bool(ctx.meta.get(DEBUG))
    if told is not None:
        return _as_told(told)
    settings = Settings(
        reference=reference, workers=workers, grace=grace, log=log, health=health, debug=ctx.meta[DEBUG]
    )
    if hang is not None:
        if workers == 1:
            raise click.UsageError("--hang is for several processes: add --workers, or leave it out")
        settings = msgspec.structs.replace(settings, hang=hang)
    if reload:
        return _reloading(settings)
    return _supervised(settings) if workers > 1 else _alone(settings)


def serving(
    ctx: click.Context, bus: Bus, *, grace: float | None = None, log: Form | None = None, health: int | None = None
) -> None:
    """Serve a bus as ``run`` does, in this process, until SIGTERM or Ctrl-C; as `serving_options` were told.

    Raises `ConfigurationError` for what is written wrong, and `BrokerUnavailableError` when no broker can be used.
    """
    from rabbitevents.cli.process import serve_bus

    debug = bool(ctx.meta.get(DEBUG))
    serve_bus(bus, Settings(reference="", grace=grace, log=log, health=health, debug=debug))


def _alone(settings: Settings) -> int:
    from rabbitevents.cli.process import serve

    serve(settings)
    return 0


def _as_told(text: str) -> int:
    try:
        settings = Settings.from_json(text)
    except msgspec.DecodeError as error:
        raise click.UsageError(f"--settings is for the processes that --workers starts: {error}") from error
    return _alone(settings)


def _supervised(settings: Settings) -> int:
    from rabbitevents.cli.supervisor import supervise

    return supervise(settings)


def _reloading(settings: Settings) -> int:
    if settings.workers > 1:
        raise click.UsageError("--reload runs one process: leave out --workers, or --reload")
    try:
        from rabbitevents.cli.reloading import reload
    except ModuleNotFoundError as error:
        if error.name != "watchfiles":
            raise
        raise ConfigurationError("--reload needs watchfiles: pip install 'rabbitevents[cli]' brings it") from error
    return reload(settings)

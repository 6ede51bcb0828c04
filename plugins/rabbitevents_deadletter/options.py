"""The arguments and options that the commands share, and what they come to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from rabbitevents import ConfigurationError
from rabbitevents.cli import BusReference
from rabbitevents_deadletter.selection import Selection, age
from rabbitevents_deadletter.targets import Target
from rabbitevents_deadletter.workbench import HOLD

T = TypeVar("T")

FILE: Final = click.Path(dir_okay=False, path_type=Path)
"""A file's name."""


class Commands(click.Group):
    """A group that knows what is meant by a bus without a command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant. Raises `click.UsageError`."""
        name = args[0]
        if ":" in name and not name.startswith("-"):
            raise click.UsageError(f"say what to do first: {ctx.command_path} list {name[:60]}", ctx)
        return super().resolve_command(ctx, args)


def target(command: Callable[..., T]) -> Callable[..., T]:
    """Have a command take MODULE:BUS, or --url and --queue; it gets them as a `Target` named ``where``."""

    @click.argument("reference", metavar="[MODULE:BUS]", required=False, type=BusReference())
    @click.option("--url", metavar="URL", help="Look at this broker, without a bus of yours; needs --queue.")
    @click.option(
        "--queue",
        "-q",
        "queues",
        metavar="NAME",
        multiple=True,
        help="Only this queue: its own name, or that of its dead letters. As often as you like.",
    )
    @click.option(
        "--hold",
        metavar="N",
        type=click.IntRange(1, HOLD),
        default=HOLD,
        help=f"Hold at most N messages at a time, with their bodies in memory ({HOLD}).",
    )
    @wraps(command)
    def called(*, reference: str | None, url: str | None, queues: tuple[str, ...], hold: int, **others: Any) -> T:
        where = Target(reference, url, queues, hold)
        where.check()
        return command(where=where, **others)

    return called


def _age(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    try:
        return None if value is None else age(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def selection(command: Callable[..., T]) -> Callable[..., T]:
    """Have a command take filters; it gets them as a `Selection` named ``selection``."""

    @click.option("--id", "ids", metavar="ID", multiple=True, help="The letter of this event. As often as you like.")
    @click.option(
        "--type", "types", metavar="NAME", multiple=True, help="Events of this type; * stands for any text: 'order.*'."
    )
    @click.option(
        "--error",
        "errors",
        metavar="NAME",
        multiple=True,
        help="Failed with this exception class, with or without its module; or the broker's reason: delivery_limit.",
    )
    @click.option("--older-than", metavar="AGE", callback=_age, help="Failed longer ago than 90s, 10m, 2h, 7d.")
    @click.option("--newer-than", metavar="AGE", callback=_age, help="Failed more recently than that.")
    @wraps(command)
    def called(
        *,
        ids: tuple[str, ...],
        types: tuple[str, ...],
        errors: tuple[str, ...],
        older_than: timedelta | None,
        newer_than: timedelta | None,
        **others: Any,
    ) -> T:
        meant = Selection(ids=ids, types=types, errors=errors, older_than=older_than, newer_than=newer_than)
        return command(selection=meant, **others)

    return called


def limit(default: int | None, what: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Have a command take a number of letters, over all queues."""
    shown = f" ({default})" if default is not None else ""
    return click.option(
        "--limit", metavar="N", type=click.IntRange(min=1), default=default, help=f"{what} at most N{shown}."
    )

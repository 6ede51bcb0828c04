"""The commands: ours, and those that installed packages bring, each imported when it is called.

A command that goes wrong ends here, in one line on stderr and with its exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from typing import Any, Final, NoReturn

import click

from rabbitevents import ConfigurationError, RabbitEventsError
from rabbitevents.cli.advice import advice
from rabbitevents.cli.codes import CRASHED, INTERRUPTED, WRONG
from rabbitevents.cli.console import DEBUG, one_line, out, reader_is_gone, say, story
from rabbitevents.cli.extras import COMMANDS, PACKAGE, commands, version_of, way_out

_OURS: Final = {
    "completion": "rabbitevents.cli.completion:completion",
    "demo": "rabbitevents.demo.command:demo",
    "doctor": "rabbitevents.cli.doctor:doctor",
    "explain": "rabbitevents.cli.explain:explain",
    "run": "rabbitevents.cli.service:run",
    "top": "rabbitevents.cli.top:top",
    "topology": "rabbitevents.cli.topology:topology",
    "version": "rabbitevents.cli.versions:version",
}


class Unusable(click.Command):
    """Stands in for a command that cannot be imported: says so when it is called, and in the list of commands."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            name,
            short_help=f"(cannot be used here: {reason})",
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )
        self.reason = reason

    def invoke(self, ctx: click.Context) -> NoReturn:
        """Refuse."""
        raise ConfigurationError(f"this command cannot be used here: {self.reason}")


class Wrong(click.ClickException):
    """What was written is wrong, or the broker is: one line, and exit code 2. ``debug`` shows what led to it."""

    exit_code = WRONG

    def __init__(self, message: str, *, debug: bool) -> None:
        super().__init__(message)
        self.debug = debug


class CommandLine(click.Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands: ours, and those from entry points."""
        return sorted({*_OURS, *commands()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command. Ours stand before others of the same name."""
        if cmd_name in _OURS:
            return _loaded(EntryPoint(cmd_name, _OURS[cmd_name], COMMANDS))
        found = commands().get(cmd_name)
        return None if found is None else _loaded(found)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant. Raises `click.UsageError`, which says what may have been meant."""
        name = args[0]
        if ctx.resilient_parsing or name.startswith("-") or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        raise click.UsageError(f"there is no command {name[:60]!r}; {self._meant(ctx, name)}", ctx)

    def _meant(self, ctx: click.Context, name: str) -> str:
        if ":" in name:
            return f"did you mean {ctx.command_path} run {name[:60]}?"
        there = self.list_commands(ctx)
        close = get_close_matches(name, there, n=1)
        return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(there)}"

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command. What it raises of ours is what was written wrong, or a broker that is not there."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            if reader_is_gone():
                raise  # click ends quietly then
            return _said(error)
        except (RabbitEventsError, BaseExceptionGroup) as error:
            line = _ours(error)
            if line is None:
                raise
            where = f"{ctx.invoked_subcommand}: " if ctx.invoked_subcommand else ""
            raise Wrong(f"{where}{line}", debug=bool(ctx.meta.get(DEBUG))) from error
        return result

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *rest: Any, **settings: Any
    ) -> NoReturn:
        """Call the command that ``args`` name, say in one line what went wrong, and exit."""
        settings["standalone_mode"] = False
        try:
            result = super().main(args, PACKAGE, *rest, **settings)
        except (click.Abort, KeyboardInterrupt):
            sys.exit(INTERRUPTED)
        except Exception as error:
            # Nothing is above us, and Python would show the passwords in the lines of source that a traceback quotes.
            sys.exit(_said(error))
        sys.exit(result if type(result) is int else 0)


def _loaded(entry: EntryPoint) -> click.Command:
    try:
        command = entry.load()
    except Exception as error:
        # Whatever is wrong with one package must not take the other commands away.
        hint = way_out(error) if isinstance(error, ImportError) else ""
        return Unusable(entry.name, one_line(f"importing {entry.module} failed with {error}{hint}"))
    if not isinstance(command, click.Command):
        return Unusable(entry.name, f"{entry.value} is no click command")
    return command


def _ours(error: RabbitEventsError | BaseExceptionGroup[BaseException]) -> str | None:
    """Return the line for an error of ours, or a group of nothing else; None for what is a defect."""
    if isinstance(error, RabbitEventsError):
        return one_line(error) + advice(error)
    ours, others = error.split(RabbitEventsError)
    if ours is None or others is not None:
        return None
    errors = _leaves(ours)
    return one_line(errors[0] if len(errors) == 1 else f"{len(errors)} errors, the first: {errors[0]}")


def _leaves(group: BaseExceptionGroup[RabbitEventsError]) -> list[RabbitEventsError]:
    found: list[RabbitEventsError] = []
    for each in group.exceptions:
        found.extend([each] if isinstance(each, RabbitEventsError) else _leaves(each))
    return found


def _said(error: Exception) -> int:
    """Say what ended a command; return its exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        say.print(error.format_message())
    elif isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else PACKAGE
        say.print(f"{path}: {one_line(error.format_message())} (see {path} --help)")
    elif isinstance(error, Wrong):
        if error.debug and error.__cause__ is not None:
            say.print(story(error.__cause__), end="")
        say.print(f"{PACKAGE} {one_line(error.format_message())}")
    elif isinstance(error, click.ClickException):
        say.print(f"{PACKAGE}: {one_line(error.format_message())}")
    else:
        say.print(story(error), end="")
    return error.exit_code if isinstance(error, click.ClickException) else CRASHED


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        out.print(f"{PACKAGE} {version_of(PACKAGE) or '(not installed)'}")
        ctx.exit()


@click.group(
    cls=CommandLine,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  rabbitevents run shop.inventory:bus              a service, until Ctrl-C
  rabbitevents run shop.inventory:bus --workers 4  in four processes
  rabbitevents explain shop.inventory:bus          what is wired
  rabbitevents doctor shop.inventory:bus           what is wrong at its broker
  rabbitevents top shop.inventory:bus              what goes on there
  rabbitevents topology plan shop.inventory:bus    what a start would change there
  rabbitevents demo                                a shop of services, without a broker
  rabbitevents completion --help                   let the shell complete all of this

\b
Exit codes:
  0    all is well; of a service, that it has drained
  1    a crash; its traceback is shown
  2    something is written wrong, or no broker can be used: one line says what
  3    doctor found something wrong; topology, something to change
  130  Ctrl-C""",
)
@click.option("--debug", is_flag=True, help="Show the traceback of what goes wrong.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show it.")
@click.pass_context
def command_line(ctx: click.Context, debug: bool) -> None:
    """Run services that handle events from RabbitMQ, and look after them."""
    ctx.meta[DEBUG] = debug

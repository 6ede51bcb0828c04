"""Groups of commands that are told a bus."""

from __future__ import annotations

import click


class BusCommands(click.Group):
    """A group whose commands take MODULE:BUS, and that knows what is meant by a bus without a command."""

    usual: str = "list"
    """What is proposed to whoever says no command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant. Raises `click.UsageError`."""
        if ":" in args[0] and not args[0].startswith("-"):
            raise click.UsageError(f"say what to do first: {ctx.command_path} {self.usual} {args[0][:60]}", ctx)
        return super().resolve_command(ctx, args)

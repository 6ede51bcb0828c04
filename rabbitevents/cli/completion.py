"""``rabbitevents completion``: what a shell needs to complete our commands."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from rabbitevents.cli.console import out
from rabbitevents.cli.extras import PACKAGE

_VARIABLE: Final = "_RABBITEVENTS_COMPLETE"

_COLONS: Final = "COMP_WORDBREAKS=${COMP_WORDBREAKS//:}  # MODULE:BUS is one word"
"""Bash ends words at colons (Bash Reference Manual, COMP_WORDBREAKS), and would complete nothing after one."""


@click.command(
    epilog="""\b
Once, in the file that the shell reads when it starts:
  bash  ~/.bashrc                      eval "$(rabbitevents completion bash)"
  zsh   ~/.zshrc                       eval "$(rabbitevents completion zsh)"
  fish  ~/.config/fish/config.fish     rabbitevents completion fish | source"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets a shell complete commands.

    Options and MODULE:BUS too. The script is click's own: it calls rabbitevents with _RABBITEVENTS_COMPLETE set.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    out.print(kind(click.Command(PACKAGE), {}, PACKAGE, _VARIABLE).source())
    if shell == "bash":
        out.print(_COLONS)

"""The command line, and what authors of its commands use.

A package brings a command by an entry point of the group ``rabbitevents.commands``, which names a click command::

    [project.entry-points."rabbitevents.commands"]
    depths = "our_tools.depths:depths"

It is imported when it is called, or listed in ``rabbitevents --help``, and not before::

    @click.command()
    @click.argument("reference", metavar="MODULE:BUS", type=BusReference())
    def depths(reference: str) -> None:
        '''Say how many events wait in each queue of a bus.'''
        for name, waiting in run(looked_up(load_bus(reference))):
            out.print(name, waiting)

Whatever it raises of the tree of `RabbitEventsError` ends it with that text as one line on stderr and the exit code 2;
Ctrl-C ends it with 130; an int that it returns is its exit code.
"""

from rabbitevents.cli.console import out, say
from rabbitevents.cli.groups import BusCommands
from rabbitevents.cli.loop import run
from rabbitevents.cli.reference import BusReference, load_bus
from rabbitevents.cli.service import serving, serving_options

__all__ = ["BusCommands", "BusReference", "load_bus", "out", "run", "say", "serving", "serving_options"]

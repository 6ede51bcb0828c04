"""One service in a process of its own: ``python -m rabbitevents.demo.worker``, which the crew starts.

A service of a user's would be ``bus.run()`` or ``rabbitevents run``. This one learns from a line of standard input what
it is, says when it is ready, and also leaves when standard input ends: nobody is left to stop it then.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import msgspec

from rabbitevents import RabbitEventsError
from rabbitevents.demo.crew import READY, Assignment
from rabbitevents.demo.quiet import quiet
from rabbitevents.demo.services import opened
from rabbitevents.testing import EmbeddedBroker


async def serve(assignment: Assignment) -> None:
    """Run a service until SIGTERM, or until standard input ends."""
    name, folder = assignment.service, Path(assignment.folder)
    async with opened(assignment.settings, folder, EmbeddedBroker(), name=name, say=_leave_unsaid) as site:
        ledger = site.ledger(name)
        bus = site.bus(name, ledger)
        loop = asyncio.get_running_loop()

        def leave() -> None:
            loop.remove_reader(sys.stdin)
            bus.ask_to_stop()

        loop.add_reader(sys.stdin, leave)
        try:
            await bus.serve(started=_say_ready)
        finally:
            await ledger.close()


def _leave_unsaid(line: str) -> None:
    """Say nothing of a collector that is away: the demonstration itself does, once for all processes."""


def _say_ready() -> None:
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()


def main() -> int:
    """Run the service that standard input names; return the exit code."""
    assignment = msgspec.json.decode(sys.stdin.buffer.readline(), type=Assignment)
    logging.basicConfig(level=logging.WARNING, format=f"{assignment.service}: %(levelname)s: %(message)s")
    try:
        with quiet():
            asyncio.run(serve(assignment))
    except RabbitEventsError as error:
        print(f"{assignment.service}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

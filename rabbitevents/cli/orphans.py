"""Processes that others have left behind: as process 1 of a container we inherit them, and take up their exit codes."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress


def take_up(own: Collection[int]) -> None:
    """Take up the exit code of every process that has ended, save for our ``own``: somebody waits for those.

    Until somebody does, a process that has ended stays in the kernel's table, which is finite.
    """
    while (ended := _one_that_ended()) is not None and ended not in own:
        with suppress(ChildProcessError):
            os.waitpid(ended, os.WNOHANG)


def _one_that_ended() -> int | None:
    """Return the id of a child that has ended, and leave it as it is: whose it is must be known before it is gone."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None

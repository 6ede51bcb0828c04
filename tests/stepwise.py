"""Changes of a topology that processes make which are killed on the way, one after the other."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncGenerator
from typing import Final

from tests.documents import CHECKOUT
from tests.migrated import NOTHING
from tests.scale import WHOLE
from tests.test_cli import environment

MOST: Final = 1 if WHOLE else 5
"""So many steps one of them does at most, before it is killed."""

NOW_AND_THEN: Final = 6 if WHOLE else 12
"""After so many steps something else happens meanwhile: the broker restarts, replicas are rolled out."""


async def killed_on_the_way(*words: str) -> AsyncGenerator[list[str]]:
    """Have ``python -m`` these words, and a number of steps, until nothing is left to do; yield what each has done.

    One that ended without a step, as it should not, yields nothing of it: an empty list.
    """
    while True:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *words, str(random.randint(1, MOST))),
            cwd=CHECKOUT,
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await asyncio.wait_for(process.communicate(), 90)
        done = printed.decode().splitlines()
        if done[-1:] == [NOTHING]:
            if done[:-1]:
                yield done[:-1]
            return
        yield done

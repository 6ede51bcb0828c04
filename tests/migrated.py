"""A process that makes a queue anew and is killed after some steps: ``python -m tests.migrated URL HTTP LIMIT STEPS``.

It prints each step, and "nothing to do" when none is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from rabbitevents.operations.moving.acting import Done, migrate
from rabbitevents.operations.planning import at_work
from tests.operating import shop

QUEUE = "inventory.note"
NOTHING = "nothing to do"
"""What is printed when no step is left."""
INTERVAL = 0.6
"""Seconds between two looks: this node's statistics are half a second old at most."""


async def main(url: str, http: str, limit: int, steps: int) -> None:
    """Do so many steps, and be killed."""
    async with at_work(shop(url, delivery_limit=limit), http) as site:
        wanted = site.wanted.queue(QUEUE)
        assert wanted is not None
        async for each in migrate(site, wanted, within=60, interval=INTERVAL):
            if isinstance(each, Done):
                print(each.step.what if not each.lost else f"LOST {each.lost}", flush=True)
                steps -= 1
            if isinstance(each, Done) and not steps:
                os.kill(os.getpid(), signal.SIGKILL)
    print(NOTHING, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))

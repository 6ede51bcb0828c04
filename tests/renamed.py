"""A service whose handler is renamed, of before and after: ``python -m tests.renamed URL LEDGER old`` or ``new``.

And who leads over, killed after some steps: ``python -m tests.renamed URL HTTP migrate STEPS``, which prints each step,
and "nothing to do" when none is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Delivery, Plugin, Router
from rabbitevents.operations.moving.acting import Done, migrate
from rabbitevents.operations.moving.beforehand import renaming_of
from rabbitevents.operations.planning import at_work
from rabbitevents_deadletter import DeadLetter
from rabbitevents_retry import Retry
from tests.migrated import INTERVAL, NOTHING
from tests.operating import StockReserved

OLD, NEW = "inventory.write_down", "inventory.note"


def names(generation: str) -> dict[str, Any]:
    """What the decorator is told before and after the rename."""
    return {"name": "write_down"} if generation == "old" else {"name": "note", "was": OLD}


class Ledger:
    """What handlers did, by whichever process: a line each, written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open = asyncio.Event()
        """Set but while handlers of this process wait."""
        self.open.set()

    def write(self, order_id: str, generation: str) -> None:
        """Add a line."""
        with self.path.open("a") as file:
            file.write(f"{order_id} {generation} {os.getpid()}\n")

    def begun(self) -> None:
        """Say that this process is at work."""
        with self.path.with_suffix(".begun").open("a") as file:
            file.write(f"{os.getpid()}\n")

    def has_begun(self, process: int) -> bool:
        """Whether a process is at work."""
        path = self.path.with_suffix(".begun")
        return path.exists() and str(process) in path.read_text().split()

    @property
    def lines(self) -> list[list[str]]:
        """The event, the generation and the process of each effect."""
        return [line.split() for line in self.path.read_text().splitlines()] if self.path.exists() else []


def service(url: str, ledger: Ledger, generation: str, *plugins: Plugin, **settings: Any) -> Bus:
    """The service, of which every tenth event fails at first."""
    router = Router("inventory")

    @router.on(StockReserved, **names(generation))
    async def note(reserved: StockReserved, delivery: Delivery) -> None:
        if int(reserved.order_id) % 10 == 3 and delivery.attempt == 1:
            raise ValueError("not yet")
        if int(reserved.order_id) % 1000 == 999:
            raise LookupError("never")
        await ledger.open.wait()
        ledger.write(reserved.order_id, generation)

    retry = Retry(stop=stop_after_attempt(2), wait=wait_fixed(0.4), inline_below=0)
    told: dict[str, Any] = {"grace": 5, **settings}
    return Bus(url, router, plugins=[DeadLetter(), retry, *plugins], **told)


async def lead_over(url: str, http: str, steps: int) -> None:
    """Do so many steps, and be killed."""
    async with at_work(service(url, Ledger(Path(os.devnull)), "new"), http) as site:
        renaming = renaming_of(site, site.bus.subscriptions[0])
        async for each in migrate(site, renaming, within=60, interval=INTERVAL):
            if isinstance(each, Done):
                print(each.step.what if not each.lost else f"LOST {each.lost}", flush=True)
                steps -= 1
            if isinstance(each, Done) and not steps:
                os.kill(os.getpid(), signal.SIGKILL)
    print(NOTHING, flush=True)


if __name__ == "__main__":
    if sys.argv[3] == "migrate":
        asyncio.run(lead_over(sys.argv[1], sys.argv[2], int(sys.argv[4])))
    else:
        here = Ledger(Path(sys.argv[2]))
        asyncio.run(service(sys.argv[1], here, sys.argv[3]).serve(started=here.begun))

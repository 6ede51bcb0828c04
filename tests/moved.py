"""A process that moves what is in a queue and is killed on the way: ``python -m tests.moved URL FROM TO NUMBER``.

It is killed once so many are moved.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from rabbitevents.operations.moving.contents import move
from tests.operating import shop


async def main(url: str, source: str, target: str, number: int) -> None:
    """Move them."""
    async for moved in move(shop(url), source, target):
        if moved >= number:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))

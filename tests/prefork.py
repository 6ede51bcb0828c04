"""A process that forks as a pre-forking server does: ``python -m tests.prefork MODE URL``.

It prints what was confirmed, one order a line, and forgets to close.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from rabbitevents import Fact, Host, Plugin
from rabbitevents.facts import ConnectionLost
from rabbitevents.sync import SyncBus
from tests.shop import OrderPlaced

MODE, URL = sys.argv[1:3]

# What this process is for; from Python 3.12 on it is warned about.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


class Noted(Plugin):
    """Says when a connection breaks, and when the only one is left in order."""

    @asynccontextmanager
    async def lifespan(self, host: Host) -> AsyncGenerator[None]:
        yield
        if MODE == "only":
            os.write(1, b"left\n")

    def observe(self, fact: Fact) -> None:
        if isinstance(fact, ConnectionLost):
            os.write(1, b"lost\n")


bus = SyncBus(URL, plugins=[Noted()], unroutable="ignore")


def publish(order: str) -> None:
    """Publish, and say that it was confirmed, in one write."""
    bus.publish(OrderPlaced(order))
    os.write(1, f"{order}\n".encode())


def workers(number: int) -> None:
    """Fork, and wait for the children: each publishes from two threads at once, and ends as a worker does."""
    for child in range(number):
        if os.fork() == 0:
            threads = [threading.Thread(target=publish, args=(f"child-{child}-{i}",)) for i in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if child == 0:
                bus.close()
            sys.exit(0)
    for _ in range(number):
        _, status = os.wait()
        if status:
            os.write(1, f"a child ended with {status}\n".encode())


if MODE == "busy":
    publish("parent-before")
    stop = threading.Event()

    def keep_on() -> None:
        """Publish all the while, so that locks are held as the process forks."""
        while not stop.is_set():
            bus.publish(OrderPlaced("meanwhile"))

    meanwhile = threading.Thread(target=keep_on)
    meanwhile.start()
    workers(5)
    stop.set()
    meanwhile.join()
    publish("parent-after")
elif MODE == "preload":
    workers(3)
else:
    publish("only")

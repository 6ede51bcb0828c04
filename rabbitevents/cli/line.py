"""The line between a worker and its supervisor: what the two say to each other, and the worker's end of it.

A word is a packet. The worker's event loop says once a second that it turns, and how its bus is; the supervisor says when
to stop. A thread beside the loop says where the process is while the loop does not turn, which the loop cannot.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal

import msgspec

from rabbitevents import Bus, Health
from rabbitevents.bus import HARD_STOP
from rabbitevents.cli import logs
from rabbitevents.cli.codes import CRASHED
from rabbitevents.cli.place import place_of_main_thread
from rabbitevents.exposition import exposition

PACKET: Final = 262_144
"""Bytes that a word may have."""

BEAT: Final = 1.0
"""Seconds between two words of a worker."""

UNKNOWN_GRACE: Final = 30.0
"""Seconds that a worker has to stop which has not said its grace period yet."""

STOP: Final = b"stop"
HURRY: Final = b"hurry"
MEASURE: Final = b"measure"
"""What a supervisor says: drain; leave at once; write the metrics into the file that comes with this word."""


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker says. An empty one says only that its event loop turns."""

    grace: float | None = None
    """The grace period of the bus, in seconds, once it runs."""
    health: Health | None = None
    phase: Literal["drains", "leaves"] | None = None
    """It has begun to drain; its event loop has ended, and the process is about to."""
    place: str | None = None
    """Where the process is, though its event loop does not turn. This alone is said by another thread than the loop's."""


class Lifeline:
    """A worker's end of the line. It is there before the module is imported, which may hang too."""

    def __init__(self, descriptor: int, outputs: tuple[int, int] | None = None) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._outputs = outputs
        self._turns = 0
        self._asked = False
        self._bus: Bus | None = None
        self._tells_health = False
        self._measuring: threading.Thread | None = None
        threading.Thread(target=self._watch, name="rabbitevents lifeline", daemon=True).start()

    def hold(self, bus: Bus, *, health: bool) -> None:
        """Say from now on that the loop turns, and how the bus is if ``health``; have the bus do what we are told.

        A signal from elsewhere lets the bus drain as the supervisor's word does, however often it comes: systemd and
        Heroku send it to all processes at once, and each of them is told by its supervisor too. Leaving at once is the
        supervisor's word alone.
        """
        self._bus, self._tells_health = bus, health
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._heard)
        loop.call_soon(self._take_signals, loop)  # once `Bus.serve`, which is next, has taken them
        self._beat(loop)

    def ready(self) -> None:
        """Say that the bus runs. A supervisor that is gone already is no matter: `_ended` is for that."""
        if self._bus is not None:
            self._say(Word(grace=self._bus.grace))

    def leaves(self) -> None:
        """Say that the event loop turns no more, as the process is about to end."""
        self._say(Word(phase="leaves"))

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turns += 1
        loop.call_later(BEAT, self._beat, loop)
        self._say(Word())  # by itself: a health of thousands of checks may be too long for a packet
        if self._bus is not None and self._tells_health:
            self._say(Word(health=self._bus.health()))

    def _say(self, word: Word) -> None:
        """Say something. What there is no room for is left out: the next word comes soon."""
        with suppress(OSError):
            self._socket.send(msgspec.json.encode(word))

    def _heard(self) -> None:
        try:
            said, files, _, _ = socket.recv_fds(self._socket, len(MEASURE), 1)
        except BlockingIOError:
            return
        except OSError:
            said, files = b"", []
        if said == MEASURE and files:
            self._measure(files[0])
        elif said:
            self._stop(at_once=said == HURRY)
        else:
            self._ended()

    def _stop(self, *, at_once: bool = False) -> None:
        if self._bus is None:
            return
        if not self._asked:
            self._asked = True
            self._say(Word(phase="drains"))
            self._bus.ask_to_stop()
        if at_once:
            self._bus.ask_to_stop()

    def _ended(self) -> None:
        """Stop when the supervisor has ended without a word, as by SIGKILL: nobody would ever stop this process."""
        asyncio.get_running_loop().remove_reader(self._socket)
        for ours, descriptor in enumerate(self._outputs or (), 1):
            os.dup2(descriptor, ours)  # nobody hands on what we write any more
        logs.log.warning("the supervisor is gone; stopping")
        self._stop()

    def _measure(self, file: int) -> None:
        """Write the metrics into ``file``, in a thread: collecting may wait. One at a time, whoever asks how often."""
        if self._measuring is not None and self._measuring.is_alive():
            os.close(file)
            return
        self._measuring = threading.Thread(target=_write, args=(exposition, file), daemon=True)
        self._measuring.start()

    def _watch(self) -> None:
        """Say where the process is when the loop has not turned for two beats, and every two beats, until nobody listens.

        It looks twice a beat: who hangs is killed after three beats at the earliest, and its place is said by then.
        Then leave, within the time that a stop may take, should the loop not do so.
        """
        gone, turns, still = select.poll(), -1, 0
        gone.register(self._socket, 0)
        while not gone.poll(BEAT * 500):
            still = still + 1 if self._turns == turns else 0
            turns = self._turns
            if still % 4 == 3:
                self._say(Word(place=place_of_main_thread()))
        time.sleep((UNKNOWN_GRACE if self._bus is None else self._bus.grace) + 2 * HARD_STOP)
        os._exit(CRASHED)


def _write(what: Callable[[], bytes], file: int) -> None:
    with open(file, "wb") as page, suppress(OSError):  # a supervisor that waits no longer
        try:
            page.write(what())
        except Exception:
            # Collectors are anybody's, and this thread has nobody above it; the supervisor sees a page without an end.
            logs.log.exception("the metrics could not be read")

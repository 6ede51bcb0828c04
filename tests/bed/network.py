"""Machines that are network namespaces: each has an address of its own, and any two of them can be cut apart.

All hang on one bridge, on which this process has an address too: it reaches each of them, and they reach each other.
It needs root, and the ``ip`` of iproute2. What a run that was killed has left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple, Self

_NAME = re.compile(r"\brbt(\d+)(?:n\d+|b)\b")


class NetworkError(Exception):
    """A network could not be made; the text is what ``ip`` said."""


class Host(NamedTuple):
    """A machine of it: the name of its namespace, and its address."""

    namespace: str
    address: str


class Network:
    """So many hosts on one bridge; they are there inside of ``with``. Raises NetworkError where that is not allowed."""

    def __init__(self, size: int) -> None:
        number = os.getpid()
        self._stem = f"rbt{number}"
        self._prefix = f"10.213.{number % 250 + 1}"
        self.hosts: list[Host] = [Host(f"{self._stem}n{each}", f"{self._prefix}.{each}") for each in range(1, size + 1)]
        self._cuts: set[tuple[Host, Host]] = set()

    def cut(self, one: Host, other: Host) -> None:
        """Have nothing pass between two hosts, either way; what passes between each of them and all others still does."""
        for here, there in ((one, other), (other, one)):
            _ip("-n", here.namespace, "route", "add", "blackhole", f"{there.address}/32")
            self._cuts.add((here, there))

    def heal(self) -> None:
        """Have everything pass again."""
        while self._cuts:
            here, there = self._cuts.pop()
            _ip("-n", here.namespace, "route", "del", "blackhole", f"{there.address}/32")

    def __enter__(self) -> Self:
        _sweep()
        try:
            self._make()
        except NetworkError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        names = [host.namespace for host in self.hosts]
        # The cables by themselves: a namespace stays for minutes where a connection in it was cut.
        for words in (
            *(("link", "del", name) for name in (*names, f"{self._stem}b")),
            *(("netns", "del", n) for n in names),
        ):
            with contextlib.suppress(NetworkError):
                _ip(*words)

    def _make(self) -> None:
        bridge = f"{self._stem}b"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{self._prefix}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for name, address in self.hosts:
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")


def _sweep() -> None:
    """Remove what runs have left behind that are gone."""
    for listing, delete in ((("netns", "list"), ("netns", "del")), (("-o", "link", "show"), ("link", "del"))):
        for found in _NAME.finditer(_ip(*listing)):
            if not Path("/proc", found[1]).exists():
                with contextlib.suppress(NetworkError):
                    _ip(*delete, found[0])


def _ip(*words: str) -> str:
    command = ["ip", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        raise NetworkError("there is no ip (iproute2) here") from None
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout

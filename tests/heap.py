"""What a process's memory is made of: what is in use, and what its allocators have and keep for the next time.

CPython gives what is up to 512 bytes out of arenas of its own, of 1 MiB; all that is larger, and all of C, is glibc's malloc.
Neither gives back to the system what is not at an edge: a page stays as long as one thing in it lives.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

import msgspec


class Heap(msgspec.Struct, frozen=True):
    """Of one process, at one moment, in KiB."""

    in_use_kib: float
    """What somebody has asked for, and not given back: of Python's arenas, and of malloc."""
    small_kib: float
    """That part of it which is in Python's arenas."""
    arenas_kib: float
    """Python's arenas."""
    malloc_kib: float
    """What malloc has from the system."""
    anonymous_kib: float
    """What is resident of all this, with stacks; files that are mapped are not in it."""


_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo2(ctypes.Structure):
    """As glibc's malloc.h has it, in bytes."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def heap() -> Heap:
    """Count it. glibc 2.33 or newer, and CPython with its own allocator."""
    stats = _python()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    small = _number(r"# bytes in allocated blocks\s+=\s+([\d,]+)", stats)
    arenas = _number(r"arenas \* \d+ bytes/arena\s+=\s+([\d,]+)", stats)
    status = Path("/proc/self/status").read_text()
    return Heap(
        in_use_kib=(small + info.uordblks + info.hblkhd) / 1024,
        small_kib=small / 1024,
        arenas_kib=arenas / 1024,
        malloc_kib=(info.arena + info.hblkhd) / 1024,
        anonymous_kib=_number(r"RssAnon:\s+(\d+)", status),
    )


def _python() -> str:
    """Return what CPython says of its arenas. It says so on the descriptor 2 alone: what a thread logs meanwhile is lost."""
    file, stderr = os.memfd_create("heap"), os.dup(2)
    try:
        os.dup2(file, 2)
        vars(sys)["_debugmallocstats"]()
        os.dup2(stderr, 2)
        os.lseek(file, 0, os.SEEK_SET)
        return os.read(file, 1 << 20).decode()
    finally:
        os.dup2(stderr, 2)
        os.close(file)
        os.close(stderr)


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"nothing in {len(text)} characters is like {pattern}")
    return float(found[1].replace(",", ""))

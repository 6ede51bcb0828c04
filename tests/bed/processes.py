"""Processes that cannot outlive the test run, however it ends."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Linux ends such a process when the *thread* that started it ends, not the whole parent (prctl(2)): a node started
# from a thread of asyncio.to_thread would die with the event loop. This one thread lives as long as we do.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="test-bed")


def spawn(command: Sequence[str], environment: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own; the kernel kills it when this process is gone, be it by SIGKILL.

    What it prints is appended to `output`. The promise holds for the process itself, through every exec, and not
    for its children. It runs on one processor until `unpin`: RabbitMQ's boot is a single thread of work that is handed
    from thread to thread, and takes 2.2 s on one processor of a virtual machine, but 5 s on two.
    """
    return _starter.submit(_start_pinned, command, environment, output).result()


def unpin(pid: int) -> None:
    """Let every thread of a process run on all processors that are ours."""
    processors = os.sched_getaffinity(0)
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), processors)


def suspend(pid: int) -> None:
    """Stop a process by SIGSTOP, and wait until all of its threads stand: one that is busy runs on for a while."""
    os.kill(pid, signal.SIGSTOP)
    while any(_state(thread) not in "TtZX" for thread in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.001)


def _state(thread: Path) -> str:
    """Return the letter that proc(5) has for a thread's state; X for one that has ended meanwhile."""
    try:
        return (thread / "stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _start_pinned(command: Sequence[str], environment: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {random.choice(list(processors))})  # of this thread, and what it starts inherits it
    try:
        return _start(command, environment, output)
    finally:
        os.sched_setaffinity(0, processors)


def _start(command: Sequence[str], environment: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("ab") as printed:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

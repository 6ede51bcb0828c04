"""Very many dead letters: all of them are seen, what was shown is what is acted on, and memory does not grow with them.

``DEAD_LETTERS=200000`` says how many; a few thousand are more than two windows of a look, and take seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import pytest

from rabbitevents import Bus, Message, Properties
from tests.bed.rabbitmq import RabbitNode
from tests.deadletters import DEAD, QUEUE, fill, raw, ready, until

ROOT = Path(__file__).parent.parent
LETTERS = int(os.environ.get("DEAD_LETTERS", "3000"))
MOST = 80
"""Megabytes that a command may take; 44 of them are the interpreter and its libraries."""


COMMAND = """
import atexit, pathlib, runpy, sys

def tell():
    [most] = [l for l in pathlib.Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")]
    sys.stderr.write(f"{most.split()[1]} kB at most")

atexit.register(tell)
runpy.run_module("rabbitevents", run_name="__main__", alter_sys=True)
"""
"""`rabbitevents`, which says at its end how much memory it had (what `wait4` says is its parent's, if that had more)."""


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    said: str
    seconds: float
    megabytes: float


async def dlq(
    url: str, *arguments: str, asked: asyncio.Event | None = None, answer: asyncio.Event | None = None
) -> Ran:
    """Run `rabbitevents dlq` to its end; where it asks, say so, and answer yes once that is wanted."""
    return await asyncio.to_thread(_dlq, url, arguments, asyncio.get_running_loop(), asked, answer)


def _dlq(
    url: str,
    arguments: tuple[str, ...],
    loop: asyncio.AbstractEventLoop,
    asked: asyncio.Event | None,
    answer: asyncio.Event | None,
) -> Ran:
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    begun, before = perf_counter(), b""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "dlq", *arguments, "--url", url, "--queue", QUEUE],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    if asked is not None and answer is not None:
        while not before.endswith(b"[y/N]:"):  # the space after it may go to stdout, as in click 8.2
            more = process.stderr.read(1)
            assert more, f"it ended before it asked:\n{before.decode()}"
            before += more
        loop.call_soon_threadsafe(asked.set)
        asyncio.run_coroutine_threadsafe(answer.wait(), loop).result()
        process.stdin.write(b"y\n")
    process.stdin.close()
    out, said = process.stdout.read().decode(), (before + process.stderr.read()).decode()
    process.stdout.close()
    process.stderr.close()
    kilobytes = int(said.removesuffix(" kB at most").rpartition("\n")[2])
    ran = Ran(process.wait(), out, said, perf_counter() - begun, kilobytes / 1024)
    print(f"{arguments[0]}: {ran.seconds:.1f} s, {ran.megabytes:.0f} MB")
    return ran


def letter(number: int) -> Message:
    """A dead letter; each tenth died of something else."""
    error = "shop.Timeout" if number % 10 == 0 else "shop.Refused"
    failed_at = f"2026-05-01T11:00:00.{number % 1_000_000:06}+00:00"
    properties = Properties(
        type="order.placed",
        message_id=f"id-{number}",
        headers={"dead-letter-error": error, "dead-letter-failed-at": failed_at, "dead-letter-traceback": "x" * 500},
    )
    return raw(b'{"order_id": "o-%d"}' % number, queue=DEAD, properties=properties)


async def send(url: str, numbers: range) -> None:
    """Publish letters to the dead letter queue, in order."""
    async with Bus(url, declare="none") as bus:
        for at in range(numbers.start, numbers.stop, 500):
            await asyncio.gather(*(bus.send(letter(number)) for number in numbers[at - numbers.start :][:500]))
        await until(bus, numbers.stop)


async def order_of(url: str, queue: str, number: int) -> list[int]:
    """The numbers of the first messages in a queue."""
    async with Bus(url, declare="none") as bus, bus.browse(queue, hold=number) as look:
        return [int(str(each.properties.message_id).removeprefix("id-")) async for each in look]


@pytest.mark.timeout(900)
async def test_all_of_very_many_are_listed_found_replayed_and_discarded_in_bounded_memory(
    rabbit_url: str, rabbit_node: RabbitNode
) -> None:
    await fill(rabbit_url, 0)
    await send(rabbit_url, range(LETTERS))
    tenth = LETTERS // 10

    listed = await dlq(rabbit_url, "list", "--by", "error", "--json")
    shown = await dlq(rabbit_url, "show", "--id", f"id-{LETTERS - 1}")
    replayed = await dlq(rabbit_url, "replay", "--error", "Timeout")
    kept = await order_of(rabbit_url, DEAD, 999)
    asked, answer = asyncio.Event(), asyncio.Event()
    discarding = asyncio.ensure_future(dlq(rabbit_url, "discard", asked=asked, answer=answer))
    await asked.wait()
    async with Bus(rabbit_url, declare="none") as bus:
        for number in (1, 2, LETTERS):  # two of them are events that were counted, as other letters
            await bus.send(msg_of_another_death(number))
        await until(bus, LETTERS - tenth + 3)
    answer.set()
    discarded = await discarding

    [summary] = json.loads(listed.out)
    assert {group["error"]: group["count"] for group in summary["groups"]} == {
        "shop.Refused": LETTERS - tenth,
        "shop.Timeout": tenth,
    }
    assert f"id-{LETTERS - 1}" in shown.out
    assert f"{tenth:,} replayed, {LETTERS - tenth:,} not meant" in replayed.said
    assert f"{LETTERS - tenth:,} would be discarded" in discarded.said
    assert f"{LETTERS - tenth:,} discarded, 3 not meant" in discarded.said
    assert [each.code for each in (listed, shown, replayed, discarded)] == [0] * 4
    assert kept == [number for number in range(2_000) if number % 10][: len(kept)]
    assert await order_of(rabbit_url, QUEUE, 500) == list(range(0, LETTERS, 10))[:500]
    assert await ready(rabbit_url, QUEUE) == tenth
    assert await order_of(rabbit_url, DEAD, 10) == [1, 2, LETTERS]
    assert max(each.megabytes for each in (listed, shown, replayed)) < MOST


def msg_of_another_death(number: int) -> Message:
    """A letter of the same event that died at another time."""
    properties = Properties(
        type="order.placed",
        message_id=f"id-{number}",
        headers={"dead-letter-error": "shop.Refused", "dead-letter-failed-at": "2026-05-02T11:00:00+00:00"},
    )
    return raw(b'{"order_id": "o-%d"}' % number, queue=DEAD, properties=properties)

"""Does the judge see? Defects of one line, built into a copy of the sources, each of which must turn it red."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from tests.chaos.plan import Scenario
from tests.chaos.run import one, say
from tests.chaos.world import ROOT, Servers

TRIES = 3
"""So often a scenario is run: whether a defect shows is a matter of the moment."""


class Mutation(msgspec.Struct, frozen=True):
    """A defect: in ``file``, ``old`` (there once) becomes ``new``. ``red`` is what the judge must count."""

    name: str
    file: str
    old: str
    new: str
    scenario: Scenario
    red: str


MUTATIONS = (
    Mutation(
        "acknowledged before it is handled",
        "rabbitevents/consuming/workers.py",
        "        work.state, work.since = State.RUNNING, now\n",
        "        work.state, work.since = State.RUNNING, now; self._settling.settle(delivery, Verdict.ACK)\n",
        Scenario("handle", ("service-killed",), 4),
        "lost",
    ),
    Mutation(
        "confirms are not waited for",
        "rabbitevents/brokers/rabbitmq/publisher.py",
        "                answer = await lane.publish(message, properties, deadline)\n",
        "                lane.publish(message, properties, deadline); answer = Answer.CONFIRMED\n",
        Scenario("handle", ("cut-in-mid-frame",), 8),
        "lost",
    ),
    Mutation(
        "a retry's copy is not waited for",
        "rabbitevents/consuming/settling.py",
        "        try:\n            await self._forward(message)\n        except EncodeError as error:\n",
        "        try:\n            __import__('asyncio').ensure_future(self._forward(message))\n        except EncodeError as error:\n",
        Scenario("retries", ("memory-alarm", "service-killed"), 3),
        "lost",
    ),
    Mutation(
        "the outbox is marked before the broker has confirmed",
        "plugins/rabbitevents_outbox/tenure.py",
        "        results = await self._host.send_many(messages)\n",
        "        await self._shards.done(self.lease, [row.id for row in sound], None); "
        "results = await self._host.send_many(messages)\n",
        Scenario("transactions", ("memory-alarm", "service-killed"), 4),
        "lost",
    ),
    Mutation(
        "marked as done before it is handled",
        "plugins/rabbitevents_idempotency/plugin.py",
        "suspected(proceed, claims, lease, claim)\n            return await self._handle(proceed, claims, lease, claim.fence)\n",
        "suspected(proceed, claims, lease, claim)\n            await claims.complete(lease); "
        "return await self._handle(proceed, claims, lease, claim.fence)\n",
        Scenario("idempotent", ("service-killed",), 4),
        "lost",
    ),
    Mutation(
        "a dead letter is let go before its replay is confirmed",
        "plugins/rabbitevents_deadletter/workbench/deadletters.py",
        "            await self._put(message)\n            if look is not None:\n"
        "                look.acknowledge(letter.delivery)\n",
        "            if look is not None:\n                look.acknowledge(letter.delivery)\n"
        "            await self._put(message)\n",
        Scenario("replayed", ("memory-alarm", "service-killed"), 4),
        "lost",
    ),
    Mutation(
        "a delayed event does not wait",
        "rabbitevents/publishing/delay.py",
        "        if message.after is None or message.after <= timedelta():\n",
        "        if True:\n",
        Scenario("delayed", ("link-reset",), 1),
        "unexpected",
    ),
    Mutation(
        "an order is not kept",
        "rabbitevents/consuming/workers.py",
        "        if self._lanes is None or broker is None or copy is None or copy.after is None:\n",
        "        if True:\n",
        Scenario("ordered", ("service-killed",), 2),
        "inversions",
    ),
)


def mutant(mutation: Mutation, folder: Path) -> Path:
    """Copy the sources into a folder, and build the defect in. Raises ValueError where its place is not there once."""
    for name in ("rabbitevents", "plugins", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / mutation.file
    text = file.read_text()
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: its place in {mutation.file} is there {text.count(mutation.old)} times")
    file.write_text(text.replace(mutation.old, mutation.new))
    return folder


async def selftest(seed: int, only: Sequence[str] = ()) -> int:
    """Run each mutant until it is red, at most `TRIES` times; print what was seen, and return 1 where one stayed green."""
    found: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        servers = Servers(stack, os.environ.get("RABBITEVENTS_TEST_ROOT"))
        for mutation in MUTATIONS:
            if only and not any(word in mutation.name for word in only):
                continue
            seen: dict[str, Any] = {"red": False}
            for again in range(TRIES):
                with tempfile.TemporaryDirectory() as folder:
                    sources = mutant(mutation, Path(folder))
                    count = await one(servers, mutation.scenario, f"{seed} {again} {mutation.name}", sources)
                say(count, again + 1, TRIES)
                seen = {
                    "red": getattr(count.verdict, mutation.red) > 0,
                    "tries": again + 1,
                    mutation.red: getattr(count.verdict, mutation.red),
                }
                if count.folder:
                    shutil.rmtree(count.folder, ignore_errors=True)
                if seen["red"]:
                    break
            found[mutation.name] = seen
            print(f"{mutation.name}: {seen}", file=sys.stderr, flush=True)
    print(json.dumps({"mutations": found, "seen": sum(each["red"] for each in found.values()), "of": len(found)}))
    return 0 if all(each["red"] for each in found.values()) else 1

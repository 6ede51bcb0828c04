"""Run the programs of the wire contract in each language: they publish to a bus, and receive from it.

``python -m tests.other_languages [go java node python]`` writes each page's block into a folder, has the language's own
tool fetch the client library, and runs it against a RabbitMQ of its own. A language is skipped only where its tool is
not here, or cannot fetch the library. Needs a network, which ``make test`` does not.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from attrs import frozen

from rabbitevents import Bus, Event, Router, event
from tests.bed.rabbitmq import RabbitNode
from tests.documents import CHECKOUT, blocks
from tests.follow import BROKER
from tests.shop import eventually

CONTRACT = CHECKOUT / "docs" / "wire-contract.md"

FETCHING = 600.0
"""Seconds that fetching a client library may take."""


@event("order.placed")
@frozen
class OrderPlaced:
    order_id: str
    quantity: int


class NotHereError(Exception):
    """A language whose tool is not here, or which cannot fetch its library."""


class Language(NamedTuple):
    """One language: how its blocks are fenced, what they are called, and what makes commands of them."""

    fence: str
    app: str
    tools: tuple[str, ...]
    prepare: Callable[[Path], Awaitable[tuple[Sequence[str], Sequence[str]]]]
    """Fetches and builds in the folder of the two programs; returns the commands that publish and consume."""


def programs(fence: str) -> dict[str, str]:
    """Return a language's programs on the page, by their file names."""
    found = [block.text for block in blocks(CONTRACT, fence)]
    return {text.split("\n", 1)[0].lstrip("/# "): text for text in found}


async def check(language: Language, url: str, folder: Path) -> None:
    """Run a language's two programs with the broker at ``url``. Raises AssertionError, and `NotHereError`."""
    for name, text in programs(language.fence).items():
        (folder / name).write_text(text.replace(BROKER, url))
    publish, consume = await language.prepare(folder)
    router, came = Router("shop"), list[Event[OrderPlaced]]()

    @router.on(OrderPlaced)
    async def note(order: Event[OrderPlaced]) -> None:
        came.append(order)

    async with Bus(url, router) as bus:
        await run(publish, folder)
        await eventually(lambda: len(came) == 1, f"an event from {publish}")
        assert came[0].payload == OrderPlaced(f"{language.app}-1", 2)
        assert (came[0].type, came[0].version) == ("order.placed", 1)
        assert came[0].metadata.source == f"{language.app}-shop"
        await receives(bus, consume, folder, f"{language.app}-shop.orders")


async def receives(bus: Bus, command: Sequence[str], folder: Path, queue: str) -> None:
    """Run a consumer, publish at once and with a delay, and wait until it says that it got both."""
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while (depth := await bus.depth(queue)) is None or not depth.consumers:
                assert process.returncode is None, f"{command} ended with {process.returncode}"
                await asyncio.sleep(0.05)
            now = await bus.publish(OrderPlaced("now", 1))
            later = await bus.publish(OrderPlaced("later", 1), delay=timedelta(milliseconds=500))
            for sent in (now, later):
                line = (await process.stdout.readline()).decode()
                assert line.startswith(f"order.placed 1 {sent.id} "), line
                assert sent.payload.order_id in line
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    for _ in range(200):  # until the broker has seen that it is gone: what was not acknowledged is there again then
        if (left := await bus.depth(queue)) is not None and not left.consumers:
            assert left.ready < 2, f"{command} acknowledges nothing"  # of the last one the word may be on its way
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{command} is gone, and the broker has its consumer still")


async def run(command: Sequence[str], folder: Path, seconds: float = 60.0) -> str:
    """Run a command to its end, and return what it printed. Raises AssertionError where it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(seconds):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = printed.decode(errors="replace")
    assert process.returncode == 0, f"{' '.join(command)} ended with {process.returncode}:\n{text[-2000:]}"
    return text


async def fetch(command: Sequence[str], folder: Path) -> None:
    """Have a language's tool fetch what is needed. Raises `NotHereError`."""
    try:
        await run(command, folder, FETCHING)
    except (AssertionError, TimeoutError) as error:
        raise NotHereError(f"{' '.join(command[:3])} could not fetch the library: {str(error)[-400:]}") from error


async def _go(folder: Path) -> tuple[Sequence[str], Sequence[str]]:
    for name in ("publish", "consume"):
        (folder / name).mkdir()
        shutil.move(folder / f"{name}.go", folder / name)
    (folder / "go.mod").write_text("module example\n\ngo 1.21\n")
    await fetch(["go", "mod", "tidy"], folder)
    await run(["go", "build", "-o", "bin/", "./..."], folder, FETCHING)
    return ["bin/publish"], ["bin/consume"]


_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>example</groupId><artifactId>example</artifactId><version>1</version><dependencies><dependency>
<groupId>com.rabbitmq</groupId><artifactId>amqp-client</artifactId><version>5.25.0</version>
</dependency></dependencies></project>
"""


async def _java(folder: Path) -> tuple[Sequence[str], Sequence[str]]:
    (folder / "pom.xml").write_text(_POM)
    await fetch(["mvn", "-q", "-B", "dependency:build-classpath", "-Dmdep.outputFile=classpath"], folder)
    java = ["java", "-cp", (folder / "classpath").read_text().strip()]
    return [*java, "Publish.java"], [*java, "Consume.java"]


async def _node(folder: Path) -> tuple[Sequence[str], Sequence[str]]:
    (folder / "package.json").write_text('{"name": "example", "private": true}\n')
    await fetch(["npm", "install", "--no-audit", "--no-fund", "amqplib"], folder)
    return ["node", "publish.js"], ["node", "consume.js"]


async def _python(folder: Path) -> tuple[Sequence[str], Sequence[str]]:
    python = str(folder / "venv" / "bin" / "python")
    await run([sys.executable, "-m", "venv", "venv"], folder)
    await fetch([python, "-m", "pip", "install", "-q", "pika"], folder)
    return [python, "publish.py"], [python, "consume.py"]


async def here(folder: Path) -> tuple[Sequence[str], Sequence[str]]:
    """Take this interpreter, which has pika already."""
    return [sys.executable, "publish.py"], [sys.executable, "consume.py"]


LANGUAGES = {
    "go": Language("go", "go", ("go",), _go),
    "java": Language("java", "java", ("java", "mvn"), _java),
    "node": Language("javascript", "node", ("node", "npm"), _node),
    "python": Language("py", "pika", (), _python),
}


async def main(names: Sequence[str]) -> int:
    """Check each of the languages, and say what became of each; return how many failed."""
    outcomes = {"passed": 0, "failed": 0, "skipped": 0}
    with RabbitNode() as node:
        for name in names or LANGUAGES:
            language = LANGUAGES[name]
            url = node.add_vhost()
            try:
                missing = [tool for tool in language.tools if shutil.which(tool) is None]
                if missing:
                    raise NotHereError(f"{', '.join(missing)} not here")
                with tempfile.TemporaryDirectory() as folder:
                    await check(language, url, Path(folder))
                outcome, why = "passed", ""
            except NotHereError as error:
                outcome, why = "skipped", f": {error}"
            except (AssertionError, TimeoutError) as error:
                outcome, why = "failed", f": {error}"
            outcomes[outcome] += 1
            print(f"{name}: {outcome}{why}", flush=True)
    print(", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()))
    return outcomes["failed"]


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))

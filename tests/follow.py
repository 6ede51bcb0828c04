"""Follow a page literally: write its files, run its lines, type its commands, and compare what is seen."""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import os
import re
import shlex
import signal
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from tests.documents import CHECKOUT, Block, blocks

BROKER = "amqp://localhost"
"""The broker that the pages name; `follow` puts the one that there is in its place."""

MANAGEMENT = "http://localhost:15672"
"""Where the pages say that its management API is."""

TYPED = ("python", "pytest", "rabbitevents")
"""Commands that are run, not only looked up."""

SERVERS = ("rabbitevents run", "python manage.py relay_events")
"""Commands that go on until Ctrl-C."""

FINDS = ("rabbitevents doctor", "rabbitevents topology plan")
"""Commands that end with 3 where they have found something."""

PATIENCE = 60.0
"""Seconds for a command to end, or for a line to be printed."""

_VARYING = (
    (re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\b"), "<time>"),
    (re.compile(r"\(pid \d+, (asyncio|uvloop)\)"), "(pid 1, asyncio)"),
    (re.compile(r"\bamqp://(\w+@)?[\w.-]+:\d+/[\w-]*"), "amqp://localhost:5672/"),
    (re.compile(r"\bhttp://(127\.0\.0\.1|localhost):\d+"), MANAGEMENT),
    (re.compile(r"\b\d+\.\d+ ?s\b"), "0.00s"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<id>"),
)


async def follow(page: Path, folder: Path, url: str | None = None, http: str = MANAGEMENT) -> None:
    """Do what ``page`` says, in ``folder``, with the broker at ``url``. Raises AssertionError where it is not so.

    ``http`` is where the broker's management API is, for pages that ask it.
    """
    reader = _Reader(folder, url, http, plain=not any("asyncio_mode" in block.text for block in blocks(page)))
    try:
        for block in blocks(page):
            await reader.take(block)
    finally:
        await reader.leave()
    reader.check_every_file_was_used()


class _Reader:
    """Somebody who reads a page and does what it says."""

    def __init__(self, folder: Path, url: str | None, http: str, *, plain: bool) -> None:
        self._folder = folder
        self._url = url
        self._http = http
        self._namespace: dict[str, Any] = {"__name__": "page"}
        self._files: dict[str, str] = {}
        self._typed: list[str] = []
        self._imported: set[str] = set()
        self._printed: list[str] = []
        self._terminals: list[_Terminal] = []
        self._environment = environment(folder)
        if plain:  # whose reader needs no pytest-asyncio
            self._environment["PYTEST_ADDOPTS"] = "-p no:asyncio"

    async def take(self, block: Block) -> None:
        """Do what one block says."""
        if block.language != "text":
            self._printed = []
        if block.file is not None:
            self._write(block, block.file)
        elif block.language == "python":
            await self._run_lines(block)
        elif block.language == "console":
            for command, expected in block.commands:
                await self._type(command, expected, block)
        elif block.language == "text":
            await self._look(block)

    def _real(self, text: str) -> str:
        text = text.replace(MANAGEMENT, self._http)
        return text if self._url is None else re.sub(rf"{BROKER}(?=[\s'\"]|$)", self._url, text)

    def _write(self, block: Block, name: str) -> None:
        before = self._files.get(name, "") if block.goes_on else ""
        self._files[name] = before + self._real(block.text)
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._files[name])

    async def _run_lines(self, block: Block) -> None:
        """Run lines as the body of a coroutine would run; their names stay for the page's next block."""
        code = compile(self._real(block.code), str(block.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True)
        sys.path.insert(0, str(self._folder))
        modules = set(sys.modules)
        try:
            with redirect_stdout(io.StringIO()) as printed:
                result = eval(code, self._namespace)  # with await on its top level, the code is a coroutine
                if inspect.isawaitable(result):
                    await asyncio.wait_for(result, PATIENCE)
        finally:
            sys.path.remove(str(self._folder))
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(str(self._folder)):
                    del sys.modules[name]
                    self._imported.add(name)
        self._printed = printed.getvalue().splitlines()

    async def _type(self, command: str, expected: list[str], block: Block) -> None:
        if shlex.split(command)[0] not in TYPED:
            return
        self._typed.append(command)
        terminal = _Terminal(self._real(command), block)
        await terminal.open(self._folder, self._environment)
        if command.startswith(SERVERS):
            self._terminals.append(terminal)
            await self._watch(expected)
        else:
            assert_alike(await terminal.all_lines(), expected, block.place)

    async def _look(self, block: Block) -> None:
        if self._terminals:
            await self._watch(block.text.splitlines())
        elif self._printed:
            assert_alike(self._printed, block.text.splitlines(), block.place)
        self._printed = []

    async def _watch(self, lines: list[str]) -> None:
        """See these lines in the terminal that was opened last; ``^C`` is typed."""
        terminal = self._terminals[-1]
        for line in lines:
            if line == "^C":
                terminal.interrupt()
            else:
                await terminal.see(line)
        if "^C" in lines:
            await terminal.ended()
            self._terminals.remove(terminal)

    async def leave(self) -> None:
        """Close the terminals that are still at work."""
        for terminal in self._terminals:
            await terminal.close()

    def check_every_file_was_used(self) -> None:
        """Raise AssertionError if the page has a file that nothing ran or imported."""
        assert not self._terminals, "the page leaves a terminal at work: it lacks a ^C"
        unused = [
            name
            for name in self._files
            if name.endswith(".py")
            and name.removesuffix(".py").replace("/", ".") not in self._imported
            and not any(name in command for command in self._typed)
            and not list((self._folder / name).parent.glob(f"__pycache__/{Path(name).stem}.*"))
        ]
        assert not unused, f"nothing on the page runs {', '.join(unused)}"


class _Terminal:
    """A command at work, and what it prints."""

    def __init__(self, command: str, block: Block) -> None:
        self._command = command
        self._block = block
        self._process: asyncio.subprocess.Process | None = None
        self._seen: list[str] = []
        self._passed: list[str] = []
        self._skipping = False

    async def open(self, folder: Path, environment: dict[str, str]) -> None:
        """Start the command."""
        self._process = await asyncio.create_subprocess_exec(
            *shlex.split(self._command),
            cwd=folder,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def all_lines(self) -> list[str]:
        """Wait for the end; return what was printed. Raises AssertionError for a command that fails."""
        try:
            output, _ = await asyncio.wait_for(self._running.communicate(), PATIENCE)
        except TimeoutError:
            await self.close()
            raise AssertionError(f"{self._block.place}: {self._command!r} does not end") from None
        text = output.decode()
        fine = (0, 3) if self._command.startswith(FINDS) else (0,)
        assert self._running.returncode in fine, f"{self._block.place}: {self._command!r} failed:\n{text}"
        return text.splitlines()

    async def see(self, expected: str) -> None:
        """Read the next line, which is this one. After ``...``, wait for it, or find it in what that stood for."""
        if expected == "...":
            self._skipping = True
            return
        passed = next((line for line in self._passed if alike(line, expected)), None)
        if passed is not None:
            self._passed.remove(passed)
            return
        while not alike(line := await self._next(expected), expected):
            assert self._skipping, f"{self._block.place}: the page says {expected!r}, printed is {line!r}"
            self._passed.append(line)
        self._skipping = False

    async def _next(self, expected: str) -> str:
        assert self._running.stdout is not None
        with suppress(TimeoutError):
            raw = await asyncio.wait_for(self._running.stdout.readline(), PATIENCE)
            if raw:
                self._seen.append(raw.decode().rstrip("\n"))
                return self._seen[-1]
        raise AssertionError(f"{self._block.place}: {expected!r} is not printed; there is\n" + "\n".join(self._seen))

    def interrupt(self) -> None:
        """Type Ctrl-C."""
        os.killpg(self._running.pid, signal.SIGINT)

    async def ended(self) -> None:
        """Wait for the end after Ctrl-C; nothing more is printed."""
        rest = await asyncio.wait_for(self._running.communicate(), PATIENCE)
        assert self._skipping or not rest[0], f"{self._block.place}: also printed is\n{rest[0].decode()}"
        code = self._running.returncode
        assert code == 0, f"{self._block.place}: {self._command!r} ended with {code}"

    async def close(self) -> None:
        """End it, whatever it does."""
        with suppress(ProcessLookupError):
            os.killpg(self._running.pid, signal.SIGKILL)
        await self._running.wait()


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a reader whose ``python``, ``pytest`` and ``rabbitevents`` are this checkout's.

    RABBITEVENTS_TEST_BIN names the ``bin`` folder of another environment, in which the wheel is installed.
    """
    given = os.environ.get("RABBITEVENTS_TEST_BIN")
    without = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO", "PYTHON", "PYTEST"))}
    common = {**without, "PYTHONUNBUFFERED": "1", "COLUMNS": "80", "NO_COLOR": "1"}
    if given is not None:
        return {**common, "PATH": f"{given}:{os.environ['PATH']}"}
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    for name, arguments in (("python", ""), ("pytest", "-m pytest"), ("rabbitevents", "-m rabbitevents")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        tool.chmod(0o755)
    sources = f"{CHECKOUT}:{CHECKOUT / 'plugins'}"
    return {**common, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": sources}


# --- what is printed, and what the page says of it ---


def alike(line: str, expected: str) -> bool:
    """Say whether a line is the one on the page; ``...`` there stands for anything, times and ids differ."""
    pattern = ".*".join(re.escape(_steady(part)) for part in expected.rstrip().split("..."))
    return re.fullmatch(pattern, _steady(line.rstrip())) is not None


def _steady(line: str) -> str:
    for varying, steady in _VARYING:
        line = varying.sub(steady, line)
    return line


def assert_alike(printed: list[str], expected: list[str], place: str) -> None:
    """Raise AssertionError if other lines were printed; a line ``...`` on the page stands for any number of them."""
    at = 0
    skipping = False
    for line in expected:
        if line == "...":
            skipping = True
            continue
        while skipping and at < len(printed) and not alike(printed[at], line):
            at += 1
        skipping = False
        seen = printed[at] if at < len(printed) else "(nothing more)"
        assert alike(seen, line), f"{place}: the page says {line!r}, printed is {seen!r}, of\n" + "\n".join(printed)
        at += 1
    assert skipping or at == len(printed), f"{place}: also printed is\n" + "\n".join(printed[at:])

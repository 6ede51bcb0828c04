"""What contenders need before they can run: their packages and programs, made once, below ``.work/benchmarks``.

Each language has a builder. It says what is missing on this machine; it does nothing while neither its sources nor its
tools have changed; and it leaves behind what each contender says about its versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.field import CONTENDERS, HERE, ROOT, SOURCES, Contender

STAMP = "stamp"
MAVEN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"


class MissingError(Exception):
    """A contender cannot run here; the text is why."""


@dataclass(frozen=True)
class Builder:
    """How the contenders of a language are made."""

    tools: Sequence[str]
    """Programs that have to be there."""
    sources: Callable[[], Iterable[Path]]
    build: Callable[[Path], None]


def _run(words: Sequence[str | Path], cwd: Path = ROOT) -> None:
    done = subprocess.run(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = " / ".join(done.stdout.strip().splitlines()[-3:])
        raise MissingError(f"{Path(words[0]).name} has failed: {last}")


TOLD = tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements() -> list[str]:
    """Return what the Python contenders need, this library's own dependencies among it."""
    extras = TOLD["project"]["optional-dependencies"]
    return [
        *TOLD["project"]["dependencies"],
        *extras["redis"],
        *extras["otel"],
        *TOLD["dependency-groups"]["benchmarks"],
    ]


def _python(folder: Path) -> None:
    base = os.path.realpath(sys.executable)
    _run([base, "-m", "venv", "--clear", folder / "venv"])
    pip: list[str | Path] = [
        folder / "venv" / "bin" / "python",
        "-m",
        "pip",
        "-qq",
        "--disable-pip-version-check",
        "install",
    ]
    pinned = ("--constraint", ROOT / "constraints-dev.txt", "--constraint", SOURCES / "python" / "constraints.txt")
    _run([*pip, *pinned, *requirements()])
    _say_our_version(next((folder / "venv" / "lib").glob("python*/site-packages")))


def _say_our_version(packages: Path) -> None:
    """Say which version of this library is there, which some of it asks for: its code is taken from the checkout."""
    told = TOLD["project"]
    metadata = packages / f"{told['name']}-{told['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {told['name']}\nVersion: {told['version']}\n")


def _c(folder: Path) -> None:
    source = SOURCES / "c" / "librabbitmq_.c"
    _run(["gcc", "-O2", "-Wall", "-D_GNU_SOURCE", "-o", folder / "librabbitmq_", source, "-lrabbitmq"])


def _go(folder: Path) -> None:
    _run(["go", "build", "-trimpath", "-o", folder / "contenders", "."], SOURCES / "go")


def _java(folder: Path) -> None:
    shutil.rmtree(folder / "lib", ignore_errors=True)
    _run(["mvn", "-q", "-B", "-f", SOURCES / "java" / "pom.xml", MAVEN, f"-DoutputDirectory={folder / 'lib'}"])
    sources = sorted((SOURCES / "java").glob("*.java"))
    _run(["javac", "-nowarn", "-d", folder / "classes", "-cp", f"{folder / 'lib'}/*", *sources])


def _node(folder: Path) -> None:
    for name in ("package.json", "package-lock.json", "amqplib_.js"):
        shutil.copy(SOURCES / "node" / name, folder)
    _run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], folder)


BUILDERS: Mapping[str, Builder] = {
    "python": Builder(
        (),
        lambda: [ROOT / "constraints-dev.txt", ROOT / "pyproject.toml", SOURCES / "python" / "constraints.txt"],
        _python,
    ),
    "c": Builder(("gcc",), (SOURCES / "c").iterdir, _c),
    "go": Builder(("go",), (SOURCES / "go").iterdir, _go),
    "java": Builder(("java", "javac", "mvn"), (SOURCES / "java").iterdir, _java),
    "node": Builder(("node", "npm"), (SOURCES / "node").iterdir, _node),
}


def _fingerprint(builder: Builder) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(
        "".join(os.path.realpath(shutil.which(tool) or "") for tool in (*builder.tools, sys.executable)).encode()
    )
    for source in sorted(builder.sources()):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def made(language: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Make what a language's contenders need, unless it is there, and return each one's versions, by its name.

    Raises MissingError with what this machine lacks.
    """
    builder = BUILDERS[language]
    if lacking := [tool for tool in builder.tools if shutil.which(tool) is None]:
        raise MissingError(f"{', '.join(lacking)} is not installed")
    folder = HERE / language
    stamp, now = folder / STAMP, _fingerprint(builder)
    if stamp.exists() and (there := json.loads(stamp.read_text()))["made from"] == now:
        return dict(there["versions"])
    say(f"making the contenders in {language}, which takes a minute or so the first time")
    folder.mkdir(parents=True, exist_ok=True)
    builder.build(folder)
    versions = {each.name: _versions(each) for each in CONTENDERS if each.language == language}
    stamp.write_text(json.dumps({"made from": now, "versions": versions}))
    return versions


def _versions(contender: Contender) -> dict[str, str]:
    words = [*contender.command, "versions"]
    done = subprocess.run(words, cwd=ROOT, env=contender.environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"{contender.name} does not start: {' / '.join(done.stderr.strip().splitlines()[-3:])}")
    return dict(json.loads(done.stdout))

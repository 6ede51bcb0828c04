"""Those that we are compared with, and their environment: ``.work/chaos`` of the checkout, made when it is first needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.chaos.loads import Load

_ROOT = Path(__file__).parents[2]
_NEEDS = _ROOT / "benchmarks" / "peers" / "requirements.txt"

PEERS: Final[Mapping[str, Load]] = {
    name: Load(f"benchmarks.peers.{module}", uses=frozenset({"peers"}))
    for name, module in (("aio-pika", "aio_pika_robust"), ("faststream", "faststream_"), ("celery", "celery_"))
}

COMPARED: Final = (
    "broker-killed",
    "service-killed",
    "connections-closed",
    "link-reset",
    "confirms-lost",
    "link-black-holed",
)
"""The faults that they can all meet."""


def environment() -> Path:
    """Return the interpreter of their environment; make it where it is not there, or of other versions."""
    folder = _ROOT / ".work" / "chaos"
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != _NEEDS.read_text():
        print(f"chaos: making {folder}, which takes about a minute", file=sys.stderr, flush=True)
        subprocess.run([os.path.realpath(sys.executable), "-m", "venv", "--clear", folder], check=True)
        pip: list[str | Path] = [
            python,
            "-m",
            "pip",
            "-qq",
            "--disable-pip-version-check",
            "install",
            "--requirement",
            _NEEDS,
        ]
        subprocess.run(pip, check=True)
        stamp.write_text(_NEEDS.read_text())
    return python


def versions() -> str:
    """Say which versions of them are compared."""
    pinned = dict(line.split("==") for line in _NEEDS.read_text().split() if "==" in line)
    return ", ".join(f"{name} {pinned[name]}" for name in ("aio-pika", "faststream", "celery", "kombu"))

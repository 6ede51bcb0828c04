"""What an event costs the client's processor, in two checkouts side by side: ``core_cost.py --against OTHER``.

    git worktree add ../before e3f0904
    python benchmarks/core_cost.py --against ../before

Three things are measured, each in a process of its own, the checkouts in turn (the first of a round is the second of
the next), and of each the median stands in the table; a ratio is the median of the rounds' ratios:

* ``consume``: a typed handler, prefetch 200; ``publish``: 100 tasks, each awaits its confirm; ``publish_many``: 500 at a
  time. No name inside of the library is used, so that both may be laid out as they like.
* What counts is the process's own CPU time (`time.process_time`), from the 1,000th event on.
* The other end is a **peer**, another process that speaks just enough AMQP: it delivers as the prefetch allows, and
  confirms what it has read at once. Then the same with **RabbitMQ**, a node of its own (left out by ``--no-rabbitmq``).
* One more run with the peer counts Python's calls (`sys.setprofile`): of all code, of the library, and of the event
  loop's callbacks (``Handle._run``), which is how often one thing handed over to another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MEASURES = ("consume", "publish", "publish_many")
COUNTED = 3_000
"""Events of a run that counts calls, which is slow; what it counts is the same each time."""


def run(checkout: Path, what: str, url: str, events: int, *options: str) -> dict[str, float]:
    """Measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(HERE / "cost_run.py"), str(checkout), what, url, str(events), *options],
        env=os.environ | {"PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'plugins'}"},
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    return dict(json.loads(done.stdout))


@contextmanager
def peer() -> Generator[str]:
    """Start a peer, and yield its URL."""
    words = [sys.executable, str(HERE / "cost_peer.py")]
    paths = f"{ROOT}{os.pathsep}{ROOT / 'plugins'}"
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"amqp://guest:guest@127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.kill()


def side_by_side(
    checkouts: Sequence[Path], rounds: int, one: Callable[[Path], Mapping[str, float]]
) -> dict[str, list[list[float]]]:
    """Measure both, in turn, and return each figure's values: a list a checkout."""
    figures: dict[str, list[list[float]]] = {}
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        found = {which: one(checkouts[which]) for which in order}
        for name in found[0]:
            both = figures.setdefault(name, [[], []])
            for which in (0, 1):
                both[which].append(found[which][name])
    return figures


def compared(figures: Mapping[str, list[list[float]]]) -> dict[str, dict[str, float]]:
    """Return medians, and the median of the rounds' ratios."""
    return {
        name: {
            "old": median(old),
            "new": median(new),
            "ratio": median(b / a if a else 1.0 for a, b in zip(old, new, strict=True)),
        }
        for name, (old, new) in figures.items()
    }


def everything(told: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Measure all that was asked for: by the other end and what is measured, then by figure."""
    checkouts = (Path(told.against).resolve(), ROOT)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for what in MEASURES:
        with peer() as url:

            def one(checkout: Path, *options: str, what: str = what, url: str = url) -> dict[str, float]:
                return run(checkout, what, url, told.events, *options)

            def counted(checkout: Path, what: str = what, url: str = url) -> dict[str, float]:
                return run(checkout, what, url, COUNTED, "--count")

            found[f"peer, {what}"] = compared(side_by_side(checkouts, told.rounds, one))
            found[f"peer, {what}"] |= compared(side_by_side(checkouts, 1, counted))
    if not told.no_rabbitmq:
        found |= with_rabbitmq(checkouts, told)
    return found


def with_rabbitmq(checkouts: Sequence[Path], told: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Measure the CPU time with a node of its own, each time in a virtual host of its own."""
    sys.path[:0] = [str(ROOT)]
    from tests.bed.rabbitmq import RabbitNode

    found: dict[str, dict[str, dict[str, float]]] = {}
    with RabbitNode() as node:
        for what in MEASURES:

            def one(checkout: Path, what: str = what) -> dict[str, float]:
                url = node.add_vhost()
                try:
                    return run(checkout, what, url, told.events, "--fill")
                finally:
                    node.delete_vhost(url)

            found[f"RabbitMQ {node.version}, {what}"] = compared(side_by_side(checkouts, told.rounds, one))
    return found


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| | a figure an event | old | new | ratio |", "|---|---|---|---|---|"]
    names = {"cpu_us": "CPU us", "calls": "calls", "ours": "calls of ours", "handed_over": "callbacks of the loop"}
    for where, figures in found.items():
        lines += [
            f"| {where} | {names[name]} | {each['old']:.2f} | {each['new']:.2f} | {each['ratio']:.2f} |"
            for name, each in figures.items()
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="core_cost.py", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--against", metavar="CHECKOUT", required=True, help="the other, older checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--no-rabbitmq", action="store_true")
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    found = everything(told)
    print(json.dumps(found) if told.json else table(found))


if __name__ == "__main__":
    main()

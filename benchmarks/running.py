"""A run: what is built first, then all trials, round after round, each round beginning with another contender."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.building import MissingError, made
from benchmarks.cases import Case, Figure, Trial
from benchmarks.field import BY_NAME, OURS, ROOT, in_turn
from benchmarks.stage import ContenderError, Stage, stage


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    cases: Sequence[Case]
    rounds: int
    seconds: float
    """About how long a role lasts."""
    limit: float = math.inf
    """Seconds in which it has to be over: nothing begins that may last longer, going by the longest so far."""
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    """What is no part of it, and why."""


@dataclass
class Run:
    """What has come of it so far."""

    left_out: dict[str, str]
    figures: list[Figure] = field(default_factory=list[Figure])
    failed: list[str] = field(default_factory=list[str])
    versions: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])


def measured(plan: Plan, console: Console) -> dict[str, Any]:
    """Run a plan, and return the report: figures, versions, the machine, what was left out and what has failed."""
    run = Run(dict(plan.left_out))
    _build(plan, run, console)
    began, load = time.monotonic(), os.getloadavg()[0]
    with stage(with_redis=any(case.name == "chain" for case in plan.cases)) as place:
        broker = place.version
        place.until = began + plan.limit
        _all(plan, place, run, console, place.until)
    return {
        "machine": machine(),
        "broker": broker,
        "load": f"{load:.1f} to {os.getloadavg()[0]:.1f}",
        "commit": commit(),
        "role_seconds": plan.seconds,
        "versions": run.versions,
        "left_out": run.left_out,
        "failed": run.failed,
        "figures": run.figures,
    }


def _build(plan: Plan, run: Run, console: Console) -> None:
    """Make what the contenders need; those that cannot be made are left out."""
    names = {name for case in plan.cases for name, _ in case.trials}
    names |= {BY_NAME[name].feeder for name in names} - {""}
    for language in dict.fromkeys(BY_NAME[name].language for name in names):
        mine = [name for name in names if BY_NAME[name].language == language]
        try:
            versions = made(language, lambda text: console.print(text, highlight=False))
        except MissingError as error:
            run.left_out |= {name: str(error) for name in mine}
        else:
            run.versions |= {name: versions[name] for name in mine}
    for name in run.versions:
        if name.startswith(OURS):
            run.versions[name]["rabbitevents"] += f" of {commit()}"


def _rounds(plan: Plan, run: Run) -> Iterator[tuple[int, Case, str, Trial]]:
    """Yield everything that is to be done, in order."""
    for number in range(plan.rounds):
        for case in plan.cases:
            if case.once and number:
                continue
            able = [(name, trial) for name, trial in case.trials if name in run.versions]
            for name, trial in in_turn(able, number):
                yield number, case, name, trial


def _all(plan: Plan, place: Stage, run: Run, console: Console, deadline: float) -> None:
    """Do one trial after the other, until the time is over or somebody breaks it off: what is measured by then counts."""
    todo = list(_rounds(plan, run))
    done, why, longest = 0, "no time for it", 0.0
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress, suppress(KeyboardInterrupt):
        bar = progress.add_task("", total=len(todo))
        for number, case, name, trial in todo:
            began = time.monotonic()
            if began + longest > deadline:
                break
            progress.update(bar, completed=done, description=f"round {number + 1}, {case.name}, {name}")
            why = "broken off before it"
            try:
                run.figures += [figure | {"round": number} for figure in trial(place, plan.seconds)]
            except ContenderError as error:
                if time.monotonic() > deadline:
                    why = "no time for it"
                    break
                run.failed.append(f"{name}, {case.name}: {error}")
                progress.console.print(f"{name}, {case.name}: {error}", highlight=False, markup=False)
            done, why, longest = done + 1, "no time for it", max(longest, time.monotonic() - began)
    run.left_out |= {f"{name} in the case {case.name}": why for number, case, name, _ in todo[done:] if number == 0}


def machine() -> dict[str, Any]:
    """Say what this runs on."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.partition(": ")[2] for line in told.splitlines() if line.startswith("model name")), "")
    processors = len(os.sched_getaffinity(0))
    text = f"{processors} processors{f' ({model})' if model else ''}, {platform.machine()}, Linux {platform.release().partition('-')[0]}"
    return {"processors": processors, "text": text}


def commit() -> str:
    """Return the checkout's commit, or that there is none."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"

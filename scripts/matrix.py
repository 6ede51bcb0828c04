"""Run the tests on the versions that users have, a cell at a time, and write the table: `matrix.py [CELL...]`.

A cell is a Debian with its Python and its RabbitMQ, and what is different in there: other versions of what the library
depends on, another event loop, a cluster. Each runs in a root folder of its Debian below .work/, in a clone of HEAD,
for LIMIT seconds at most: the tests are broken off before, and what they have shown counts. What failed runs once more,
alone: it counts as failed if it fails again, and as "alone" if not. What was seen is kept in docs/matrix.json, and
shown in docs/matrix.md.

Without names, every cell runs that was not seen whole with HEAD's sources: what was broken off goes on where it was.
TESTS in the environment names a part of the tests: it has a row of its own, until the whole cell runs, which is due
still. What failed in one row and passes in a later one of its cell did not fail. PROCESSES is how many run at a time.
`matrix.py --page` writes the page only, `--list` says what there is. It ends with 1 if one of its cells failed, be it
some runs ago. It needs root, as scripts/in-debian does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent.parent
SEEN = HERE / "docs" / "matrix.json"
PAGE = HERE / "docs" / "matrix.md"
LIMIT = int(os.environ.get("LIMIT", "3600"))
"""Seconds for a whole cell: its root folder, its environment, the tests, and what failed once more."""
AGAIN = LIMIT // 8
"""Seconds of these for what failed once more."""
WORKERS = int(os.environ.get("PROCESSES", "4"))
"""How many test processes run at a time."""
BESIDE = (("psycopg", "your own"),)
"""What no extra brings, and the library works with: each package, with what stands in place of a range."""

SOURCES = ("rabbitevents", "plugins", "tests", "pyproject.toml", "constraints-dev.txt")
BROKER = "$(grep -lE 'rabbit_(url|node|cluster)' tests/test_*.py)"
REDIS = "$(grep -lE 'redis_server|RedisServer' tests/test_*.py)"
EACH_VERSION = "-m each_version"
WHOLE = "RABBITEVENTS_MATRIX=1"
"""What lasts, and what repeats, does so as long and as often as it is promised: see tests/scale.py."""
PROCESSES = "tests/test_cli*.py tests/test_demo*.py tests/test_soc*.py tests/test_sup*.py tests/test_health.py"


def requirements() -> list[tuple[str, str]]:
    """Return what the library and its extras depend on: each package with its range, such as (attrs, >=24.3,<27)."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    of_extras = [each for needed in extras.values() for each in needed if not each.startswith("rabbitevents[")]
    found = [re.fullmatch(r"([a-z-]+)(?:\[.*\])?(.*)", each) for each in (*project["dependencies"], *of_extras)]
    return [(match[1], match[2]) for match in found if match]


def lowest() -> str:
    """Return the lowest version of each range, as pip takes them."""
    return " ".join(f"{name}=={re.findall(r'>=([^,]+)', versions)[0]}" for name, versions in requirements())


@dataclass(frozen=True, slots=True)
class Cell:
    """One place to run in.

    `install` are words for pip, after the versions of constraints-dev.txt were installed; `first` is a line of shell
    that runs before the tests, `tests` which files run (all of them, if not said), and `environ` their environment.
    """

    name: str
    debian: str
    what: str
    install: str = ""
    first: str = ":"
    tests: str = ""
    environ: str = ""


_VALKEY = """printf 'import valkey_as_redis\\n' >$(echo .venv/lib/python*/site-packages)/valkey_as_redis.pth
.venv/bin/python -m pip -qq uninstall -y redis
cp tests/bed/valkey_as_redis.py .venv/lib/python*/site-packages/
ln -sf /usr/bin/valkey-server .venv/bin/redis-server; export PATH=$PWD/.venv/bin:$PATH"""

CELLS = (
    Cell("python-3.11", "bookworm", "the pinned versions; long waits and many repetitions whole", environ=WHOLE),
    Cell("python-3.13", "trixie", "the pinned versions"),
    Cell("python-3.14", "sid", "the pinned versions"),
    Cell("lowest", "bookworm", "the lowest version of every range", f"{lowest()} --group dev"),
    Cell("newest", "sid", "the newest version in every range", "--upgrade --upgrade-strategy eager .[all,test]"),
    Cell("uvloop", "bookworm", "every test on uvloop", environ="RABBITEVENTS_TEST_LOOP=uvloop"),
    Cell(
        "no-uvloop",
        "bookworm",
        "uvloop is not installed: commands and their processes",
        first=".venv/bin/python -m pip -qq uninstall -y uvloop",
        tests=PROCESSES,
    ),
    Cell(
        "cluster-3.10",
        "bookworm",
        "a cluster of three nodes: the tests that use RabbitMQ",
        tests=BROKER,
        environ="RABBITEVENTS_TEST_CLUSTER=3",
    ),
    Cell(
        "cluster-4.3",
        "sid",
        "a cluster of three nodes: the tests that use RabbitMQ",
        tests=BROKER,
        environ="RABBITEVENTS_TEST_CLUSTER=3",
    ),
    *(
        Cell(
            f"versions-{version}",
            debian,
            "what rests on RabbitMQ's version: the tests marked so, all repetitions",
            tests=EACH_VERSION,
            environ=WHOLE,
        )
        for version, debian in (("3.10", "bookworm"), ("4.0", "trixie"), ("4.3", "sid"))
    ),
    Cell("django-6", "trixie", "Django 6: the tests that use Django", "django==6.*", tests="tests/test_django.py"),
    Cell("redis-6", "bookworm", "redis-py 6: the tests that use Redis", "redis==6.*", tests=REDIS),
    Cell("redis-7", "bookworm", "redis-py 7: the tests that use Redis", "redis==7.*", tests=REDIS),
    Cell("redis-8", "trixie", "redis-py 8: the tests that use Redis", "redis==8.*", tests=REDIS),
    Cell("valkey", "trixie", "Valkey and its client: the tests that use Redis", "valkey", _VALKEY, tests=REDIS),
)

# What runs inside. The tests' own settings forbid a cache; here it is what knows which tests to run once more.
# The environment is copied before a cell changes it, and the next cell of that Debian begins with the copy.
COMMANDS = """
make --silent debian
if [[ -d /srv/venv ]]; then cp -a /srv/venv .venv; fi
make --silent venv-dev
rm -rf /srv/venv /srv/venv-new
cp -a .venv /srv/venv-new
mv /srv/venv-new /srv/venv
if [[ -n '{packages}' ]]; then scripts/debian-packages {packages}; fi
if [[ -n '{install}' ]]; then .venv/bin/python -m pip -qq --disable-pip-version-check install {install}; fi
{first}
mkdir -p .work
.venv/bin/python - >.work/versions.json <<'END'
import importlib.metadata as metadata, json, platform
found = {{each.name.lower().replace('_', '-'): each.version for each in metadata.distributions()}}
print(json.dumps({{'python': platform.python_version(), **found}}))
END
for package in rabbitmq-server redis-server valkey-server postgresql; do
    dpkg-query -W -f '${{Package}} ${{Version}}\\n' $package || true
done >.work/servers 2>/dev/null
run() {{
    timeout --foreground --signal INT --kill-after 60 "$1" .venv/bin/python -m pytest -v -o addopts= --strict-markers \\
        --strict-config -o cache_dir=.work/cache "${{@:2}}" {tests}
}}
{environ}
status=0
run $(({seconds} - SECONDS)) --numprocesses {workers} --dist loadfile --no-loadscope-reorder --junitxml .work/first.xml || status=$?
echo $status >.work/status
if [[ $status != 0 ]]; then run {again} --last-failed --last-failed-no-failures none --junitxml .work/second.xml -rf; fi
"""


def sources() -> str:
    """Return what changes when a source does, as HEAD has them."""
    names = [f"HEAD:{name}" for name in SOURCES]
    done = subprocess.run(["git", "rev-parse", *names], cwd=HERE, capture_output=True, text=True, check=True)
    return "-".join(line[:7] for line in done.stdout.split())


def run(cell: Cell, part: str) -> dict[str, Any]:
    """Run a cell, or the ``part`` of its tests, and return what was seen. What it printed is in .work/matrix/CELL.log."""
    folder, log = HERE / ".work" / f"matrix-{cell.debian}", HERE / ".work" / "matrix" / f"{cell.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    inside = folder / "srv" / "rabbitevents" / ".work"
    shutil.rmtree(inside, ignore_errors=True)  # what the cell before had is not what this one saw
    packages = "valkey-server" if cell.name == "valkey" else ""
    commands = COMMANDS.format(
        install=cell.install,
        first=cell.first,
        tests=part or cell.tests,
        environ=f"export {cell.environ}" if cell.environ else ":",
        packages=packages,
        seconds=LIMIT - AGAIN - 120,
        again=AGAIN,
        workers=WORKERS,
    )
    began, ran = time.monotonic(), sources()
    environ = {**os.environ, "TESTS": "", "KEEP": "yes", "LIMIT": str(LIMIT), "COMMANDS": commands}
    with log.open("w") as said:
        command = [str(HERE / "scripts" / "in-debian"), cell.debian, str(folder)]
        status = subprocess.run(command, cwd=HERE, env=environ, stdout=said, stderr=said, check=False).returncode
    minutes = round((time.monotonic() - began) / 60, 1)
    print(f"{cell.name}: {minutes} min, status {status}; {log.relative_to(HERE)}", flush=True)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "sources": ran,
        "minutes": minutes,
        "part": part,
        "passes": passes(inside),
        **counts(inside),
        **versions(inside),
    }


def counts(inside: Path) -> dict[str, Any]:
    """Count from pytest's own reports what passed, what passed alone only, what failed and what was skipped."""
    first, second, status = (inside / name for name in ("first.xml", "second.xml", "status"))
    if not first.exists() or not status.exists():
        return {"finished": False}
    numbers = ElementTree.parse(first).getroot()[0].attrib
    bad, skipped = int(numbers["failures"]) + int(numbers["errors"]), int(numbers["skipped"])
    passed = int(numbers["tests"]) - bad - skipped
    again = cases(second, _passed) if second.exists() else set()
    failed = sorted(cases(first, _failed) - again)  # what was not run again, as the time was over, has failed as well
    return {
        "finished": status.read_text().strip() in ("0", "1") and (second.exists() or not bad),
        "passed": passed,
        "alone": len(cases(first, _failed)) - len(failed),
        "failed": failed,
        "skipped": skipped,
    }


def passes(inside: Path) -> list[str]:
    """Return the names of what passed, at the first time or alone."""
    reports = [inside / name for name in ("first.xml", "second.xml") if (inside / name).exists()]
    return sorted({name for report in reports for name in cases(report, _passed)})


def _passed(case: ElementTree.Element) -> bool:
    return len(case) == 0


def _failed(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def cases(report: Path, wanted: Callable[[ElementTree.Element], bool]) -> set[str]:
    """Return the names of the tests of a report that are wanted, but for what stands there when tests are broken off."""
    each = ElementTree.parse(report).getroot().iter("testcase")
    found = [case for case in each if case.attrib.get("classname", "pytest") != "pytest" and wanted(case)]
    return {f"{case.attrib['classname'].rpartition('.')[2]}::{case.attrib['name']}" for case in found}


def versions(inside: Path) -> dict[str, Any]:
    """Return the versions that were there: Python's, the servers', and those of what the library depends on."""
    if not (inside / "versions.json").exists():
        return {}
    found: dict[str, str] = json.loads((inside / "versions.json").read_text())
    servers = dict(line.split() for line in (inside / "servers").read_text().splitlines() if line.count(" ") == 1)
    upstream = {name: re.sub(r"^\d+:|[-+~].*", "", version) for name, version in servers.items()}
    wanted = ("python", "uvloop", "valkey", *(name for name, _ in (*requirements(), *BESIDE)))
    return {"servers": upstream, "versions": {name: found[name] for name in wanted if name in found}}


def merged(seen: dict[str, Any], cell: Cell, saw: dict[str, Any]) -> dict[str, Any]:
    """Return what is known now that a cell, or a part of it, was seen: the whole is in place of its parts."""
    now, part = set(saw.pop("passes")), saw["part"]
    others = {key: each for key, each in seen.items() if key.split()[0] != cell.name}
    parts = {key: mended(each, now) for key, each in seen.items() if part and key not in others}
    return {**others, **parts, f"{cell.name} {part}".strip(): saw}


def mended(saw: dict[str, Any], now: set[str]) -> dict[str, Any]:
    """Return what was seen before, without the failures of tests that pass ``now``."""
    still = [name for name in saw.get("failed", []) if name not in now]
    return (
        {**saw, "passed": saw["passed"] + len(saw["failed"]) - len(still), "failed": still} if "failed" in saw else saw
    )


def of(seen: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return what was seen of a cell: as a whole, and its parts."""
    return [seen[key] for key in sorted(seen) if key.split()[0] == name]


def page(seen: dict[str, Any]) -> str:
    """Return the page that says what was seen."""
    cells = [(cell, saw) for cell in CELLS for saw in of(seen, cell.name)]
    failed = [f"* `{cell.name}`: `{name}`\n" for cell, saw in cells for name in saw.get("failed", [])]
    rows = [row(cell, saw) for cell, saw in cells]
    return HEAD + table(CAPTIONS, rows) + (FAILED + "".join(failed) if failed else "") + RANGES + ranges(seen)


def row(cell: Cell, saw: dict[str, Any]) -> list[str]:
    """Return what the table says of a cell."""
    servers, python = saw.get("servers", {}), saw.get("versions", {}).get("python", "")
    store = servers.get("valkey-server" if cell.name == "valkey" else "redis-server", "")
    part = f"; of the tests `{saw['part']}`" if saw.get("part") else ""
    brokers = [servers.get("rabbitmq-server", ""), store, servers.get("postgresql", "")]
    what = [python, *brokers, saw["date"], cell.what + part]
    if "passed" not in saw:
        return [f"`{cell.name}`", "not finished", "", "", "", *what]
    until = "" if saw["finished"] else ", not finished"
    counted = [f"{saw['passed']}{until}", str(saw["alone"]), str(len(saw["failed"])), str(saw["skipped"])]
    return [f"`{cell.name}`", *counted, *what]


def ranges(seen: dict[str, Any]) -> str:
    """Return the table of what the library depends on: the range, and what was in it at its ends."""
    cells = ("lowest", "python-3.11", "newest")
    found = [dict(each for saw in of(seen, cell) for each in saw.get("versions", {}).items()) for cell in cells]
    wanted = [(name, f"`{versions}`") for name, versions in requirements()] + list(BESIDE)
    rows = [[f"`{name}`", versions, *(each.get(name, "") for each in found)] for name, versions in wanted]
    return table(("package", "range", *(f"`{cell}`" for cell in cells)), rows)


def table(captions: tuple[str, ...], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [captions, ["---"] * len(captions), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


CAPTIONS = (
    "cell",
    "passed",
    "alone",
    "failed",
    "skipped",
    "Python",
    "RabbitMQ",
    "Redis, Valkey",
    "PostgreSQL",
    "seen",
    "what is different",
)
HEAD = """# What it runs on

`make test-matrix` runs the tests in each of these places, and writes this page. They are Debian 12, Debian 13 and Debian
sid, each with its own Python, RabbitMQ, Redis and PostgreSQL; `make test-matrix CELL=lowest` runs one of them, and with
`TESTS=tests/test_retry.py` a part of its tests, which has a line of its own then.

*Alone* are tests that failed beside others on a busy machine, and passed when they ran once more by themselves. What
failed and passed in a later run, once it was mended, counts as passed.

What the operator's commands rest on differs between versions of RabbitMQ. Those tests have cells of their own, which take
minutes: `make test-versions` runs them on 3.10, 4.0 and 4.3.

"""
FAILED = "\nWhat failed:\n\n"
RANGES = """
## What it depends on

The ranges that `pip install rabbitevents` and its extras accept, and the versions that three of the cells had.

"""


def seen_before() -> dict[str, Any]:
    """Return what was seen up to now, by the cell's name."""
    return json.loads(SEEN.read_text()) if SEEN.exists() else {}


def main(names: list[str]) -> int:
    """Run the cells that are named, or those that were not seen with these sources; return the exit status."""
    if unknown := set(names) - {cell.name for cell in CELLS} - {"--list", "--page"}:
        print(f"matrix: no such cell: {', '.join(sorted(unknown))}; there are {', '.join(cell.name for cell in CELLS)}")
        return 2
    if "--list" in names:
        print("\n".join(f"{cell.name:14} {cell.debian:9} {cell.what}" for cell in CELLS))
        return 0
    now, seen, part = sources(), seen_before(), os.environ.get("TESTS", "")
    asked = [cell for cell in CELLS if cell.name in names or not names]
    for cell in asked:
        if not names and not part and is_whole(seen.get(cell.name, {}), now):
            continue
        saw = run(cell, part)
        seen = merged(seen_before(), cell, saw)  # another run may have been on another Debian meanwhile
        SEEN.write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(page(seen))
    PAGE.write_text(page(seen))
    return int(any(not saw["finished"] or saw["failed"] for cell in asked for saw in of(seen, cell.name)))


def is_whole(saw: dict[str, Any], now: str) -> bool:
    """Say whether a cell was seen to its end, with all of its tests and the sources that there are ``now``."""
    return bool(saw) and saw["finished"] and not saw.get("part") and saw["sources"] == now


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Every command that the documentation shows exists, with its options; and what is configured there fits together."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest

from rabbitevents.bus import HARD_STOP
from rabbitevents.cli.commands import command_line
from tests.documents import CHECKOUT, PAGES, Block, blocks, name_of

SHOWN = [block for page in PAGES for block in blocks(page, "sh", "console")]
yaml: Any = import_module("yaml")  # it has no types
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((CHECKOUT / "compose.yaml").read_text())

OTHERS = {
    "cd",
    "celery",
    "curl",
    "docker",
    "faststream",
    "journalctl",
    "kubectl",
    "mkdir",
    "pytest",
    "rabbitmqadmin",
    "rabbitmqctl",
    "redis-cli",
    "systemctl",
    "uvicorn",
}
"""Commands of others, which are known to exist, and no more is known of them."""


def typed(block: Block) -> list[list[str]]:
    """Return the commands of a block as words; what stands behind ``&&`` is one of its own, sudo is left out."""
    found: list[list[str]] = []
    for command, _ in block.commands:
        for part in re.split(r"\s+&&\s+", command):
            words = shlex.split(part, comments=True)
            found.append(words[1:] if words[0] == "sudo" else words)
    return found


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: block.place)
def test_every_command_exists(block: Block) -> None:
    problems = [(words, problem) for words in typed(block) if (problem := wrong(words, block))]

    assert problems == []


def wrong(words: list[str], block: Block) -> str:
    """Say what is wrong with a command; nothing if it is right."""
    checks: dict[str, Callable[[], str]] = {
        "rabbitevents": lambda: wrong_call(words[1:]),
        "make": lambda: wrong_target(words[1:]),
        "pip": lambda: wrong_extras(words[1:]),
        "python": lambda: wrong_program(words[1:], block),
        "python3": lambda: wrong_program(words[1:], block),
        "apt-get": lambda: "" if words[1] == "install" else "only installing is shown",
        ".": lambda: "" if words[1] == ".venv/bin/activate" else "there is nothing else to source",
    }
    if words[:2] == ["docker", "compose"]:
        return wrong_services(words[2:])
    if words[0] in checks:
        return checks[words[0]]()
    return "" if words[0] in OTHERS else f"nobody knows {words[0]!r}"


def wrong_call(arguments: list[str]) -> str:
    """Parse the arguments as ``rabbitevents`` does, without calling anything."""
    command: click.Command = command_line
    path = "rabbitevents"
    try:
        while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
            context = click.Context(command, info_name=path)
            name, found, arguments = command.resolve_command(context, arguments)
            assert found is not None
            command, path = found, f"{path} {name}"
        command.make_parser(click.Context(command, info_name=path)).parse_args(list(arguments))
    except click.UsageError as error:
        return error.format_message()
    return ""


def wrong_target(arguments: list[str]) -> str:
    there = re.findall(r"^([a-z0-9-]+):.*## ", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    wanted = [word for word in arguments if "=" not in word]
    return ", ".join(f"no target {word}" for word in wanted if word not in there)


def wrong_extras(arguments: list[str]) -> str:
    text = " ".join(arguments)
    extras = [extra for found in re.findall(r"rabbitevents\[([\w,]+)\]", text) for extra in found.split(",")]
    return ", ".join(f"no extra {extra}" for extra in extras if extra not in PROJECT["optional-dependencies"])


def wrong_program(arguments: list[str], block: Block) -> str:
    if arguments[0] == "-m":
        return "" if find_spec(arguments[1]) else f"no module {arguments[1]}"
    files = {other.file for other in blocks(block.page)}
    return "" if arguments[0] in files or (CHECKOUT / arguments[0]).exists() else f"no program {arguments[0]}"


def wrong_services(arguments: list[str]) -> str:
    files = [arguments[at + 1] for at, word in enumerate(arguments) if word == "-f"]
    wanted = [word for word in arguments if not word.startswith("-") and word not in files][1:]
    missing = [f"no file {name}" for name in files if not (CHECKOUT / name).is_file()]
    return ", ".join(missing + [f"no service {word}" for word in wanted if word not in COMPOSE["services"]])


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("rabbitevents run shop:bus --worker 4", "No such option"),
        ("rabbitevents rnu shop:bus", "there is no command 'rnu'"),
        ("make dmeo", "no target dmeo"),
        ("pip install 'rabbitevents[kafka]'", "no extra kafka"),
        ("python nowhere.py", "no program nowhere.py"),
        ("docker compose up rabbit", "no service rabbit"),
        ("docker compose -f compose.yml up", "no file compose.yml"),
        ("docker compose -f compose.yaml up rabbit", "no service rabbit"),
        ("rabitevents demo", "nobody knows 'rabitevents'"),
    ],
)
def test_a_wrong_command_is_found(command: str, problem: str) -> None:
    (words,) = typed(Block(CHECKOUT / "README.md", 1, "sh", command))

    assert problem in wrong(words, Block(CHECKOUT / "README.md", 1, "sh", command))


COMMANDS = CHECKOUT / "docs" / "reference" / "commands.md"


@pytest.mark.parametrize("name", ["run", "explain", "doctor", "demo", "dlq"])
def test_the_reference_names_every_option_and_no_other(name: str) -> None:
    sections = COMMANDS.read_text().split("\n## ")
    (section,) = (text for text in sections if text.startswith(f"rabbitevents {name}\n"))
    rows = "\n".join(line.partition(" | ")[0] for line in section.splitlines() if line.startswith("| `"))

    said = set(re.findall(r"(?<![\w-])--[a-z-]+", rows))

    assert said == options_of(command_line.get_command(click.Context(command_line), name)) - {"--help"}


def options_of(command: click.Command | None) -> set[str]:
    """Return the long options that a command shows in its help, those of its subcommands among them."""
    assert command is not None
    subcommands = command.commands.values() if isinstance(command, click.Group) else ()
    shown = [param for param in command.params if isinstance(param, click.Option) and not param.hidden]
    own = {option for param in shown for option in param.opts if option.startswith("--")}
    return own.union(*(options_of(each) for each in subcommands))


# --- what is configured --------------------------------------------------------------------------------------------


def test_every_service_of_compose_says_when_it_is_well_and_is_reachable_from_this_machine_alone() -> None:
    services = COMPOSE["services"]

    assert set(services) == {"rabbitmq", "redis", "postgres", "jaeger", "prometheus", "grafana"}
    assert [name for name, service in services.items() if "healthcheck" not in service] == []
    ports = [port for service in services.values() for port in service["ports"]]
    assert [port for port in ports if not re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)] == []
    assert len(set(ports)) == len(ports)
    used = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    assert {volume for volume in used if not volume.startswith("./")} == set(COMPOSE["volumes"])
    assert [volume for volume in used if volume.startswith("./") and not (CHECKOUT / volume).is_file()] == []


def test_compose_starts_the_version_of_jaeger_that_the_tests_ask() -> None:
    module = (CHECKOUT / "tests" / "jaeger" / "go.mod").read_text()
    built = re.search(r"github\.com/jaegertracing/jaeger v1\.(\d+)\.(\d+)", module)
    assert built is not None

    # One release has two names: as a Go module it is 1.76.0, as an image 2.13.0.
    assert COMPOSE["services"]["jaeger"]["image"] == f"jaegertracing/jaeger:2.{int(built[1]) - 63}.{built[2]}"


def test_the_ports_that_the_pages_name_are_those_of_compose() -> None:
    page = (CHECKOUT / "docs" / "howto" / "local.md").read_text()
    published = {port.split(":")[1] for service in COMPOSE["services"].values() for port in service["ports"]}

    assert set(re.findall(r"localhost:(\d+)", page)) == published


def test_what_compose_mounts_is_about_its_own_services() -> None:
    scraped = yaml.safe_load((CHECKOUT / "docs/compose/prometheus.yaml").read_text())["scrape_configs"]
    sources = yaml.safe_load((CHECKOUT / "docs/compose/datasources.yaml").read_text())["datasources"]
    targets = [target for job in scraped for config in job["static_configs"] for target in config["targets"]]
    hosts = {target.split(":")[0] for target in targets} | {
        source["url"].split("/")[2].split(":")[0] for source in sources
    }

    assert hosts - set(COMPOSE["services"]) == {"host.docker.internal"}


DEPLOYMENT = CHECKOUT / "docs" / "howto" / "deployment.md"


def grace_of(words: list[str]) -> float:
    assert wrong_call(words[1:]) == ""
    return float(words[words.index("--grace") + 1])


def test_the_platforms_give_more_time_to_stop_than_the_service_takes() -> None:
    (manifest,) = (yaml.safe_load(block.text) for block in blocks(DEPLOYMENT, "yaml"))
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (unit,) = (block.text for block in blocks(DEPLOYMENT, "ini"))
    started = re.findall(r"^ExecStart=/srv/shop/.venv/bin/(.*)$", unit, re.MULTILINE)[0]
    (image,) = (block.text for block in blocks(DEPLOYMENT, "dockerfile"))
    ran = yaml.safe_load(re.findall(r"^CMD (\[.*\])$", image, re.MULTILINE)[0])
    stop_timeout = re.findall(r"--stop-timeout (\d+)", DEPLOYMENT.read_text())[0]

    assert pod["terminationGracePeriodSeconds"] > grace_of(container["command"]) + HARD_STOP
    assert (
        int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0]) > grace_of(shlex.split(started)) + HARD_STOP
    )
    assert int(stop_timeout) > grace_of(ran) + HARD_STOP


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "toml", "yaml", "json")], ids=name_of)
def test_what_is_configured_on_a_page_can_be_read(page: Path) -> None:
    for block in blocks(page, "toml"):
        tomllib.loads(block.text)
    for block in blocks(page, "yaml", "json"):
        yaml.safe_load(block.text)

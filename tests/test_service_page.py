"""The service of docs/service.md, as it stands in docs/service: it runs, it type-checks, and its parts fit together."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

from rabbitevents import Bus, Event
from rabbitevents.bus import HARD_STOP
from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.otlp import Collector
from tests.bed.postgres import BINARIES, PostgresServer
from tests.bed.processes import spawn, unpin
from tests.bed.rabbitmq import RabbitNode
from tests.bed.redis import RedisServer
from tests.documents import CHECKOUT
from tests.follow import environment
from tests.shop import eventually

yaml: Any = import_module("yaml")  # it has no types

PAGE = CHECKOUT / "docs" / "service.md"
FOLDER = CHECKOUT / "docs" / "service"
PYTHON = sorted(FOLDER.glob("*.py"))
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
AROUND: dict[str, Any] = yaml.safe_load((CHECKOUT / "compose.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
PATIENCE = 60.0


# --- it runs -------------------------------------------------------------------------------------------------------


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(0.05)


class Shop:
    """The three services, each a process (of two workers, where the page says so), with the settings of compose.yaml."""

    def __init__(self, folder: Path, settings: dict[str, str], collector: Collector) -> None:
        self.settings = settings
        self.collector = collector
        self._folder = folder
        self._environment = {**environment(folder), **settings}
        self._environment["PYTHONPATH"] = f"{FOLDER}:{self._environment['PYTHONPATH']}"
        self.ports = {name: free_port() for name in ("web", "stock", "billing")}
        self.web = f"http://{LOOPBACK}:{self.ports['web']}"

    @contextmanager
    def running(self) -> Generator[None]:
        """Create the tables, start everything, and stop it with SIGTERM."""
        subprocess.run([sys.executable, "-m", "tables"], env=self._environment, check=True, timeout=PATIENCE)
        commands = {name: self._command(name) for name in self.ports}
        processes = {name: self._start(name, command) for name, command in commands.items()}
        try:
            for name in processes:
                wait_for(partial(self.is_ready, name), f"{name} to be ready, in {self._folder}")
            yield
        finally:
            for process in processes.values():
                process.terminate()
            codes = {name: process.wait(40) for name, process in processes.items()}
        codes["web"] += signal.SIGTERM  # uvicorn ends in order, and then by the signal that it got
        assert codes == dict.fromkeys(codes, 0), {name: self.said(name) for name in codes}

    def _command(self, name: str) -> list[str]:
        """Return what compose.yaml runs, with a port that is free here."""
        if name == "web":
            line = re.findall(r"^CMD (\[.*\])$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)[0]
            words: list[str] = yaml.safe_load(line)
            words = [LOOPBACK if word == "0.0.0.0" else word for word in words]
        else:
            words = COMPOSE["services"][name]["command"]
        words = [str(self.ports[name]) if word in ("8000", "8080") else word for word in words]
        return [sys.executable, "-m", *words]

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        process = spawn(command, {**self._environment, "OTEL_SERVICE_NAME": name}, self._folder / name)
        unpin(process.pid)
        return process

    def said(self, name: str) -> str:
        return (self._folder / name).read_text()[-3000:]

    def is_ready(self, name: str) -> bool:
        path = "/bus/ready" if name == "web" else "/ready"
        try:
            return httpx.get(f"http://{LOOPBACK}:{self.ports[name]}{path}").is_success
        except httpx.TransportError:
            return False

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.web}{path}").raise_for_status().json()

    def metrics(self, name: str) -> str:
        """Return the page that Prometheus asks for."""
        path = "/metrics/" if name == "web" else "/metrics"
        return httpx.get(f"http://{LOOPBACK}:{self.ports[name]}{path}").raise_for_status().text

    def order(self, article: str, quantity: int = 1) -> str:
        answer = httpx.post(f"{self.web}/orders", json={"article": article, "quantity": quantity})
        order_id: str = answer.raise_for_status().json()["order_id"]
        return order_id


@pytest.fixture(scope="module")
def shop(rabbit_node: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The service of the page, at work: starting its five processes takes longer than all that is asked of it."""
    if not BINARIES or shutil.which("redis-server") is None:
        pytest.skip("PostgreSQL and Redis are needed, and not both are installed here")
    url = rabbit_node.add_vhost()
    with PostgresServer() as postgres, RedisServer() as redis, Collector() as collector:
        settings = {
            "AMQP_URL": url,
            "DATABASE_URL": postgres.url(),
            "REDIS_URL": redis.url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        }
        made = Shop(tmp_path_factory.mktemp("shop"), settings, collector)
        with made.running():
            yield made
    rabbit_node.delete_vhost(url)


async def test_an_order_is_reserved_paid_traced_and_counted(shop: Shop) -> None:
    order = shop.order("lamp", 2)
    too_many = shop.order("chair", 2)

    await eventually(lambda: shop.get(f"/orders/{order}")["receipt"] is not None, "the receipt")
    await eventually(lambda: shop.get(f"/orders/{too_many}")["reserved"] is False, "the chairs")

    assert shop.get(f"/orders/{order}")["reserved"] is True
    assert shop.get(f"/orders/{too_many}")["receipt"] is None
    assert "messaging_client_sent_messages_total" in shop.metrics("web")
    assert 'rabbitevents_worker_answered{worker="2"}' in shop.metrics("stock")
    assert "messaging_client_consumed_messages_total" in shop.metrics("billing")
    await eventually(
        lambda: {"web", "stock", "billing"} in services_by_trace(shop.collector), "one trace through all of them"
    )


def services_by_trace(collector: Collector) -> list[set[str]]:
    found: dict[str, set[str]] = {}
    for span in collector.spans:
        found.setdefault(span.trace, set()).add(span.service)
    return list(found.values())


async def test_an_event_that_comes_again_takes_nothing_from_the_shelf_again(shop: Shop) -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        placed_class: Any = import_module("events").OrderPlaced
    finally:
        sys.path.remove(str(FOLDER))
        del sys.modules["events"]

    async with Bus(shop.settings["AMQP_URL"], name="test") as bus:
        placed: Event[Any] = await bus.publish(placed_class("o-1", "lamp", 60))
        await eventually(lambda: shop.get("/orders/o-1")["receipt"] is not None, "the receipt")
        await bus.publish_many([placed] * 5)  # there were 100 lamps: a second handling would find too few
        await bus.publish(placed_class("o-2", "chair", 1))
        await eventually(lambda: shop.get("/orders/o-2")["receipt"] is not None, "the receipt")
        await eventually(lambda: is_idle(shop), "the copies to be handled")

    assert shop.get("/orders/o-1")["reserved"] is True
    assert "rabbitevents_retries_total{" not in shop.metrics("stock")  # nothing failed on the way


def is_idle(shop: Shop) -> bool:
    """Say whether nothing runs or waits in the workers of stock."""
    page = shop.metrics("stock")
    numbers = re.findall(r"^rabbitevents_deliveries_(?:running|queued)\{.*\} (\S+)$", page, re.MULTILINE)
    return bool(numbers) and all(float(number) == 0 for number in numbers)


# --- it type-checks ------------------------------------------------------------------------------------------------


def test_its_python_type_checks_strictly() -> None:
    pytest.importorskip("mypy")
    options = ["--config-file=", "--strict", "--explicit-package-bases", "--no-error-summary"]
    cache = f"--cache-dir={CHECKOUT / '.mypy_cache' / 'service'}"
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", *options, cache, *map(str, PYTHON)],
        cwd=FOLDER,
        env={**os.environ, "MYPYPATH": f"{FOLDER}:{CHECKOUT}:{CHECKOUT / 'plugins'}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.stdout + ran.stderr == ""


# --- its parts fit together ----------------------------------------------------------------------------------------


def test_the_page_shows_every_file() -> None:
    shown = re.findall(r"^```\{literalinclude\} service/(\S+)$", PAGE.read_text(), re.MULTILINE)

    assert sorted(shown) == sorted(path.name for path in FOLDER.iterdir() if path.is_file())


def settings_read() -> set[str]:
    """Return the names that the code reads from the environment; OTEL_ ones are read by OpenTelemetry."""
    code = "\n".join(path.read_text() for path in PYTHON)
    return set(re.findall(r'os\.environ\["(\w+)"\]', code)) | set(re.findall(r"\bOTEL_\w+", code))


def test_compose_sets_what_the_code_reads_and_nothing_else() -> None:
    services = [service for service in COMPOSE["services"].values() if "environment" in service]

    given = {name for service in services for name in service["environment"]}

    assert len(services) == 4
    assert given == settings_read()


def test_kubernetes_sets_what_the_code_reads_and_nothing_else() -> None:
    written = (FOLDER / "kubernetes.yaml").read_text()
    given = set(re.findall(r"--from-literal=(\w+)=", written))
    for manifest in MANIFESTS:
        given |= set(manifest.get("data", {}))
        given |= {each["name"] for each in containers(manifest) for each in each.get("env", [])}

    assert given == settings_read()
    sources = [source for manifest in MANIFESTS for each in containers(manifest) for source in each["envFrom"]]
    assert {ref["name"] for source in sources for ref in source.values()} == {"shop"}


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    template = manifest.get("spec", {}).get("template", {"spec": {"containers": []}})
    found: list[dict[str, Any]] = template["spec"]["containers"]
    return found


def deployments() -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in MANIFESTS if each["kind"] == "Deployment"}


def test_compose_adds_to_services_that_are_there_and_waits_for_what_is() -> None:
    there = set(AROUND["services"]) | set(COMPOSE["services"])
    own = {name: each for name, each in COMPOSE["services"].items() if name not in AROUND["services"]}
    waited_for = {name for each in own.values() for name in each["depends_on"]}
    hosts = {url.split("@")[-1].split("//")[-1].split("/")[0].split(":")[0] for url in urls()}

    assert set(own) == {"tables", "web", "stock", "billing"}
    assert set(COMPOSE["services"]) - set(own) == {"prometheus"}
    assert waited_for <= there
    assert hosts <= set(AROUND["services"])
    assert {each["image"] for each in own.values()} == {"shop:1"}


def urls() -> list[str]:
    given: dict[str, str] = COMPOSE["x-service"]["environment"]
    return list(given.values())


def test_the_database_and_the_collector_are_those_of_the_compose_around_it() -> None:
    given = COMPOSE["x-service"]["environment"]
    postgres = AROUND["services"]["postgres"]["environment"]
    user, password, name = (postgres[f"POSTGRES_{each}"] for each in ("USER", "PASSWORD", "DB"))
    jaeger = {port.split(":")[-1] for port in AROUND["services"]["jaeger"]["ports"]}

    assert given["DATABASE_URL"] == f"postgresql+asyncpg://{user}:{password}@postgres/{name}"
    assert given["OTEL_EXPORTER_OTLP_ENDPOINT"].rpartition(":")[2] in jaeger


def test_prometheus_asks_the_ports_on_which_the_services_answer() -> None:
    own = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    others = yaml.safe_load((CHECKOUT / "docs/compose/prometheus.yaml").read_text())
    scraped, around = own["scrape_configs"], others["scrape_configs"]
    targets = {target for job in scraped for config in job["static_configs"] for target in config["targets"]}
    web: list[str] = yaml.safe_load((FOLDER / "Dockerfile").read_text().rpartition("CMD ")[2])
    answering = {f"web:{web[web.index('--port') + 1]}"}
    for name in ("stock", "billing"):
        command: list[str] = COMPOSE["services"][name]["command"]
        answering.add(f"{name}:{command[command.index('--health') + 1]}")

    assert answering < targets
    assert scraped[0] == around[0]  # RabbitMQ's own page
    assert own["rule_files"] == others["rule_files"]
    (mounted,) = COMPOSE["services"]["prometheus"]["volumes"]
    source, target, _ = mounted.split(":")
    assert (CHECKOUT / source) == FOLDER / "prometheus.yaml"
    assert target in {volume.split(":")[1] for volume in AROUND["services"]["prometheus"]["volumes"]}


def test_kubernetes_runs_what_compose_runs() -> None:
    for name, manifest in deployments().items():
        (container,) = containers(manifest)
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert manifest["spec"]["selector"]["matchLabels"] == labels == {"app": name}
        probes = (container["readinessProbe"], container["livenessProbe"])
        assert {probe["httpGet"]["port"] for probe in probes} == set(ports)
        annotations = manifest["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] in {str(port) for port in ports.values()}
        assert container["image"] == COMPOSE["services"][name]["image"]
        composed: list[str] = list(COMPOSE["services"][name].get("command", []))
        if composed:  # replicas stand in for its workers
            at = composed.index("--workers")
            assert container["command"] == composed[:at] + composed[at + 2 :]
    assert set(deployments()) == {"web", "stock", "billing"}


def test_the_service_of_kubernetes_leads_to_a_port_that_there_is() -> None:
    (service,) = (each for each in MANIFESTS if each["kind"] == "Service")
    (container,) = containers(deployments()[service["spec"]["selector"]["app"]])

    assert {port["targetPort"] for port in service["spec"]["ports"]} == {port["name"] for port in container["ports"]}


def test_there_is_more_time_to_stop_than_a_stop_takes() -> None:
    for name in ("stock", "billing"):
        manifest = deployments()[name]
        (container,) = containers(manifest)
        grace = float(container["command"][container["command"].index("--grace") + 1])
        assert manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > grace + HARD_STOP
        assert float(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s")) > grace + HARD_STOP


def test_the_image_has_what_the_code_imports() -> None:
    code = "\n".join(path.read_text() for path in PYTHON)
    imported = set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE)) - set(sys.stdlib_module_names)
    foreign = {name for name in imported if not name.startswith("rabbitevents")} - {path.stem for path in PYTHON}
    by_extra: dict[str, set[str]] = {
        "cli": set(),
        "otel": {"opentelemetry", "prometheus_client"},
        "redis": {"redis"},
        "sql": {"sqlalchemy"},
    }
    by_name = {"attrs", "tenacity", "pydantic"}  # with the library, and with FastAPI

    wheel, *others = (FOLDER / "requirements.txt").read_text().split()
    version = re.findall(r'^version = "(.*)"$', (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE)[0]

    assert wheel == f"./rabbitevents-{version}-py3-none-any.whl[{','.join(sorted(by_extra))}]"
    assert foreign == {"fastapi"}.union(by_name, *by_extra.values())
    assert {re.split("[>=]", each)[0] for each in others} == {"fastapi", "uvicorn"}

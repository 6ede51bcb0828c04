"""Django: its tables, its settings and its relay, with a project that runs as its users run theirs, in processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from rabbitevents import Bus, ConfigurationError
from rabbitevents_outbox import Tables
from tests.bed.postgres import PostgresServer
from tests.bed.processes import spawn
from tests.documents import CHECKOUT
from tests.shop import Effects, eventually, recording

pytest.importorskip("django")

from rabbitevents_django.databases import asyncpg_arguments

KINDS = ("sqlite", "postgresql")
PASSWORD = "marker-in-the-password"
AWKWARD = "p@ss/w:rd%41 ?&#"
RABBITEVENTS = {"NAME": "shop", "DATABASES": ["default", "other"]}


@dataclass
class Project:
    """The project in `tests/django_project`, with databases and settings of its own."""

    folder: Path
    databases: dict[str, dict[str, Any]]
    told: Any = field(default_factory=lambda: dict[str, Any](RABBITEVENTS))

    @property
    def environment(self) -> dict[str, str]:
        """What its settings are made from."""
        said = {"SHOP_DATABASES": json.dumps(self.databases), "SHOP_RABBITEVENTS": json.dumps(self.told)}
        sources = f"{CHECKOUT}:{CHECKOUT / 'plugins'}"
        django = {"DJANGO_SETTINGS_MODULE": "tests.django_project.settings", "PYTHONPATH": sources}
        return {**os.environ, **django, **said, "PYTHONWARNINGS": "error"}

    def run(self, *words: str, code: int | None = 0) -> str:
        """Run a command of ``manage.py`` to its end, and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "django", *words],
            cwd=CHECKOUT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout
        return done.stdout

    @contextmanager
    def relaying(self, *words: str) -> Generator[Path]:
        """Run ``relay_events`` meanwhile, and yield the file that it writes to. At the end it is told to stop."""
        output = self.folder / "relay.log"
        relay = spawn([sys.executable, "-m", "django", "relay_events", *words], self.environment, output)
        try:
            yield output
            relay.send_signal(signal.SIGTERM)
            assert relay.wait(30) == 0, output.read_text()
        finally:
            relay.kill()
            relay.wait()


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    """The project with two databases of the kind that the test asks for; SQLite's, if it does not."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return Project(tmp_path, {name: sqlite_at(tmp_path / f"{name}.sqlite3") for name in ("default", "other")})
    server: PostgresServer = request.getfixturevalue("postgres")
    return Project(tmp_path, {name: postgresql_on(server, server.database()) for name in ("default", "other")})


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of SQLite's that was migrated."""
    folder = tmp_path_factory.mktemp("template")
    Project(folder, {"default": sqlite_at(folder / "made.sqlite3")}, {"NAME": "shop"}).run("migrate")
    return folder / "made.sqlite3"


@pytest.fixture
def migrated(template: Path, project: Project) -> Project:
    """The project on SQLite, migrated."""
    for database in project.databases.values():
        shutil.copy(template, database["NAME"])
    return project


def sqlite_at(path: Path) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}


def postgresql_on(server: PostgresServer, name: str, user: str = "test", **options: str) -> dict[str, Any]:
    where = {"HOST": "127.0.0.1", "PORT": str(server.port), "NAME": name}
    return {"ENGINE": "django.db.backends.postgresql", **where, "USER": user, "PASSWORD": PASSWORD, "OPTIONS": options}


both = pytest.mark.parametrize("project", KINDS, indirect=True)


# --- the project's own tests -----------------------------------------------------------------------------------------


@both
@pytest.mark.sampled
def test_the_projects_own_tests_pass(project: Project) -> None:
    said = project.run("test", "--noinput", "tests.django_project.suite")

    assert int(re.findall(r"Ran (\d+) tests", said)[0]) > 20


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_migration_makes_the_same_tables_on_sqlite(template: Path, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "plain.sqlite3") as plain:
        plain.executescript(Tables().sql("sqlite"))

    plain.close()

    made = described(template)

    assert len(made) > 6
    assert made == described(tmp_path / "plain.sqlite3")


def described(path: Path) -> list[tuple[str, ...]]:
    """Return each table and index with the statement that made it, and the version."""
    with sqlite3.connect(path) as connection:
        found = connection.execute(
            "SELECT type, name, coalesce(sql, '') FROM sqlite_master WHERE tbl_name LIKE 'rabbitevents%' ORDER BY name"
        ).fetchall()
        versions = connection.execute("SELECT version FROM rabbitevents_version").fetchall()
    connection.close()
    return [(kind, name, re.sub(r"\s", "", sql)) for kind, name, sql in found] + [(str(versions),)]


LOOKS = (
    "SELECT table_name, ordinal_position, column_name, data_type, is_nullable, column_default, identity_generation "
    "FROM information_schema.columns WHERE table_name LIKE 'rabbitevents%' ORDER BY 1, 2",
    "SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'rabbitevents%' ORDER BY 1",
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid::regclass::text LIKE 'rabbitevents%'"
    " ORDER BY 1",
    "SELECT relname, reloptions FROM pg_class WHERE relname LIKE 'rabbitevents%' ORDER BY 1",
    "SELECT version FROM rabbitevents_version",
)


@pytest.mark.parametrize("project", ["postgresql"], indirect=True)
def test_the_migration_makes_the_same_tables_on_postgresql(project: Project, postgres: PostgresServer) -> None:
    project.run("migrate")
    plain = postgres.database()
    postgres.run(Tables().sql("postgresql"), plain)
    migrated = project.databases["default"]["NAME"]

    for look in LOOKS:
        found = postgres.run(look, migrated)

        assert found
        assert found == postgres.run(look, plain)


@both
@pytest.mark.sampled
def test_no_migration_is_missing_and_what_there_is_may_be_taken_back(project: Project) -> None:
    project.run("migrate")

    project.run("makemigrations", "--check", "--dry-run")
    project.run("migrate", "rabbitevents_django", "zero")

    assert "CREATE TABLE rabbitevents_outbox" in project.run("sqlmigrate", "rabbitevents_django", "0001")
    assert "no table for events" in project.run("relay_events", "--url", "amqp://localhost", code=1)
    project.run("migrate")


# --- the relay -------------------------------------------------------------------------------------------------------


@both
@pytest.mark.sampled
async def test_what_is_committed_arrives_and_what_is_rolled_back_does_not(project: Project, rabbit_url: str) -> None:
    project.run("migrate")
    effects = Effects()
    async with Bus(rabbit_url, recording(effects)):
        project.run("place_order", "before")
        with project.relaying("--url", rabbit_url, "--health", "0") as output:
            await eventually(lambda: "relaying events from 'default' to amqp://" in output.read_text(), "the relay")
            assert "out of stock" in project.run("place_order", "--fails", "rolled-back", code=1)
            project.run("place_order", "after")
            await effects.until(2)
            health = asked(output)

    assert set(effects.done) == {"before", "after"}
    assert {"name": "outbox", "ok": True, "detail": "", "degraded": False} in health["checks"]
    assert PASSWORD not in output.read_text()


def asked(output: Path) -> dict[str, Any]:
    port = re.findall(r"health on port (\d+)", output.read_text())[0]
    with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


async def test_a_relay_sends_the_events_of_the_database_that_it_is_told(migrated: Project, rabbit_url: str) -> None:
    project = migrated
    project.told = {**RABBITEVENTS, "URL": rabbit_url, "KEEP": 3600}
    for alias in ("default", "other"):
        project.run("place_order", f"in-{alias}", "--using", alias)
    effects = Effects()

    async with Bus(rabbit_url, recording(effects)):
        with project.relaying("--database", "other"):
            await effects.until(1)
            await eventually(lambda: sent_in(project, "other") == 1, "the mark")

    assert set(effects.done) == {"in-other"}
    assert sent_in(project, "default") == 0


def sent_in(project: Project, alias: str) -> int:
    connection = sqlite3.connect(project.databases[alias]["NAME"])
    (count,) = connection.execute("SELECT count(*) FROM rabbitevents_outbox WHERE sent_at IS NOT NULL").fetchone()
    connection.close()
    return int(count)


async def test_the_relay_connects_as_django_does(postgres: PostgresServer, rabbit_url: str, tmp_path: Path) -> None:
    """Without the password it is not let in, without the role it has no right, without the path it finds no tables."""
    name = postgres.database()
    password_needed(postgres, "shop_web")
    for statement in (
        "CREATE ROLE shop_writer",
        f"CREATE USER shop_web NOINHERIT IN ROLE shop_writer PASSWORD '{AWKWARD}'",
        "CREATE SCHEMA messaging AUTHORIZATION shop_writer",
    ):
        postgres.run(statement, name)
    options = {
        "options": "-c search_path=messaging",
        "assume_role": "shop_writer",
        "application_name": "shop-of-django",
    }
    told = {**RABBITEVENTS, "DATABASES": ["default"], "URL": rabbit_url}
    database = postgresql_on(postgres, name, "shop_web", **options)
    project = Project(tmp_path, {"default": database}, told)
    assert "password authentication failed" in project.run("relay_events", code=1)
    database["PASSWORD"] = AWKWARD
    project.run("migrate")
    project.run("place_order", "o-1")
    effects = Effects()
    look = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shop-of-django'"

    async with Bus(rabbit_url, recording(effects)):
        with project.relaying():
            await effects.until(1)
            connections = int(postgres.run(look))

    assert connections >= 1


def password_needed(server: PostgresServer, user: str) -> None:
    """Have a server that lets everybody in ask one user for a password."""
    rules = server.folder / "data" / "pg_hba.conf"
    rules.write_text(f"host all {user} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    server.run("SELECT pg_reload_conf()")


async def test_options_reach_postgresql_through_asyncpg_too(postgres: PostgresServer) -> None:
    told = {"options": "-c search_path=messaging", "application_name": "shop", "connect_timeout": 5}
    engine = create_async_engine(
        postgres.url(), connect_args=asyncpg_arguments("default", {**told, "sslmode": "disable"})
    )
    encrypted = create_async_engine(postgres.url(), connect_args=asyncpg_arguments("default", {"sslmode": "require"}))

    async with engine.connect() as connection:
        said = "SELECT current_setting('search_path'), current_setting('application_name')"
        found = (await connection.execute(text(said))).one()
    with pytest.raises(ConnectionError, match="SSL"):
        await encrypted.connect()
    await engine.dispose()

    assert tuple(found) == ("messaging", "shop")


def test_an_option_that_asyncpg_has_no_word_for_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"DATABASES\['default'\]: OPTIONS has 'keepalives', .* psycopg 3"):
        asyncpg_arguments("default", {"keepalives": 1})


# --- what is written wrong -------------------------------------------------------------------------------------------

MYSQL = {"ENGINE": "tests.django_project.mysql_like", "NAME": ":memory:"}
CAREFREE = {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3", "OPTIONS": {"transaction_mode": None}}


def test_settings_that_are_wrong_are_said_at_the_start(project: Project) -> None:
    project.told = {"NAME": "shop", "ULR": "amqp://localhost"}

    assert "(rabbitevents.E001) RABBITEVENTS has 'ULR': it takes NAME, URL" in project.run("check", code=1)


def test_a_database_of_another_kind_is_said_at_the_start(project: Project) -> None:
    project.databases["other"] = MYSQL

    printed = project.run("check", code=1)

    assert (
        "(rabbitevents.E002) RABBITEVENTS: the database 'other' is MySQL: events are published in PostgreSQL or SQL"
        in printed
    )


def test_a_database_of_another_kind_that_has_no_events_is_left_alone(project: Project) -> None:
    project.databases["other"] = MYSQL | {"NAME": str(project.folder / "legacy.sqlite3")}
    project.told = {"NAME": "shop"}

    project.run("check")
    project.run("migrate", "--database", "other")

    assert "'other' is none of the databases that events are published in" in project.run(
        "relay_events", "--database", "other", code=1
    )


def test_sqlite_without_immediate_transactions_is_warned_of(project: Project) -> None:
    project.databases["default"] = CAREFREE

    assert "(rabbitevents.W001) DATABASES['default']: a transaction that reads" in project.run("check")


def test_a_database_without_a_name_is_refused_in_a_line(project: Project) -> None:
    project.databases["default"]["NAME"] = ""

    printed = project.run("relay_events", "--url", "amqp://localhost", code=1)

    assert "Please supply the NAME" in printed
    assert "Traceback" not in printed


def test_a_port_that_cannot_be_is_refused_in_a_line(migrated: Project) -> None:
    printed = migrated.run("relay_events", "--url", "amqp://localhost", "--health", "70000", code=1)

    assert printed.startswith("CommandError: health cannot be served on port 70000")
    assert len(printed.splitlines()) == 1


def test_a_database_that_is_away_is_said_without_its_password(project: Project) -> None:
    project.databases["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "PORT": "1",
        "NAME": "shop",
        "USER": "shop",
        "PASSWORD": PASSWORD,
    }

    printed = project.run("relay_events", "--url", "amqp://localhost", code=1)

    assert "the database 'default' cannot be used: " in printed
    assert "refused" in printed
    assert PASSWORD not in printed


def test_tables_of_another_version_are_refused(migrated: Project, rabbit_url: str) -> None:
    with sqlite3.connect(migrated.databases["default"]["NAME"]) as connection:
        connection.execute("UPDATE rabbitevents_version SET version = 0")
    connection.close()

    printed = migrated.run("relay_events", "--url", rabbit_url, code=1)

    assert "is of version 0, and this version of rabbitevents needs 1" in printed

"""`rabbitevents process`, and the SQL that a bus with processes needs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from rabbitevents import Bus, ConfigurationError, Router
from rabbitevents_outbox import Inbox, Outbox, Tables, prepare_sqlite
from rabbitevents_outbox.commands import sql
from rabbitevents_process import ProcessTables
from rabbitevents_process.commands import process
from tests.bed.postgres import PostgresServer
from tests.ordering import fulfilling

BUS = "a_shop_with_processes:bus"


def kept(key: str, *, hours: float, process: str = "fulfilment", done: bool = False, **told: Any) -> dict[str, Any]:
    """A row to which nothing has happened for so many hours."""
    now = datetime.now(UTC)
    due = (now + timedelta(hours=5.5)).isoformat()
    waits = {"unpaid": {"set_by": "01890a5d-ac96-774b-bcce-b302099a8057", "due": due}}
    state = {"state": {"order_id": key, "paid": False, "reserved": False, "reminders": 0}}
    row = {
        "process": process,
        "key": key,
        "state": json.dumps(state).encode(),
        "schema_version": 1,
        "timeouts": json.dumps({} if done else waits).encode(),
        "started_at": now - timedelta(hours=hours + 100),
        "changed_at": now - timedelta(hours=hours),
        "done_at": now if done else None,
    }
    return {**row, **told}


async def fill(engine: AsyncEngine, rows: Sequence[dict[str, Any]]) -> None:
    tables = ProcessTables()
    await tables.create(engine)
    async with engine.begin() as connection:
        await connection.execute(insert(tables.process), list(rows))
    await engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncEngine:
    """A module whose bus has a process, and the engine of its database."""
    if request.param == "sqlite":
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/test.db")
        prepare_sqlite(engine)
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        engine = create_async_engine(server.url(database=server.database()))
    module = ModuleType("a_shop_with_processes")
    plugins = [Inbox(async_sessionmaker(engine)), Outbox(engine)]
    module.__dict__["bus"] = Bus("memory://", fulfilling(), plugins=plugins)
    module.__dict__["bare"] = Bus("memory://", fulfilling())
    module.__dict__["other"] = Bus("memory://", Router("other"), plugins=[Outbox(engine)])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return engine


def called(*words: str, command: click.Command = process) -> Result:
    result = CliRunner().invoke(command, words, standalone_mode=False)
    if result.exception is None:
        result.exit_code = result.return_value or 0
    return result


# --- list ----------------------------------------------------------------------------------------------------------


def test_what_runs_is_listed_the_longest_unchanged_first(shop: AsyncEngine) -> None:
    rows = [kept("o-1", hours=1), kept("o-2", hours=50), kept("o-3", hours=9, done=True)]
    asyncio.run(fill(shop, [*rows, kept("o-4", hours=99, process="another service's")]))

    result = called("list", BUS)

    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["process", "key", "started", "unchanged", "waits", "for"],
        ["fulfilment", "o-2", "6", "d", "ago", "2", "d", "unpaid", "in", "5", "h"],
        ["fulfilment", "o-1", "4", "d", "ago", "60", "m", "unpaid", "in", "5", "h"],
    ]


def test_what_has_stood_still_is_listed_alone(shop: AsyncEngine) -> None:
    asyncio.run(fill(shop, [kept("o-1", hours=1), kept("o-2", hours=50)]))

    result = called("list", BUS, "--older", "1d", "--json")

    (found,) = json.loads(result.stdout)
    assert (found["process"], found["key"], found["state"]["paid"], found["done_at"]) == (
        "fulfilment",
        "o-2",
        False,
        None,
    )
    assert list(found["timeouts"]) == ["unpaid"]


def test_nothing_is_said_so(shop: AsyncEngine) -> None:
    asyncio.run(fill(shop, [kept("o-1", hours=1)]))

    assert called("list", BUS, "--older", "2d").stdout == "no process has stood still for so long\n"
    assert json.loads(called("list", BUS, "--older", "2d", "--json").stdout) == []


def test_of_many_the_first_are_listed(shop: AsyncEngine) -> None:
    asyncio.run(fill(shop, [kept(f"o-{number}", hours=number) for number in range(1, 6)]))

    result = called("list", BUS, "--limit", "2")

    assert [line.split()[1] for line in result.stdout.splitlines()[1:]] == ["o-5", "o-4"]
    assert result.stderr == "and more: --limit 20 shows more of them\n"


def test_what_a_key_holds_is_printed_harmlessly(shop: AsyncEngine) -> None:
    key = "\x1b[31m[red]\n"
    asyncio.run(fill(shop, [kept(key, hours=1)]))

    assert "\x1b" not in called("list", BUS).stdout
    assert "[red]" in called("list", BUS).stdout
    assert "\x1b" not in called("show", BUS, "fulfilment", key).stdout


# --- show ----------------------------------------------------------------------------------------------------------


def test_one_is_shown_in_full(shop: AsyncEngine) -> None:
    asyncio.run(fill(shop, [kept("o-1", hours=1)]))

    result = called("show", BUS, "fulfilment", "o-1")

    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if not line.startswith(" "))
    assert (said["process"].strip(), said["key"].strip()) == ("fulfilment", "o-1")
    assert said["waits"].split() == ["for", "unpaid", "in", "5", "h"]
    assert '"paid": false' in result.stdout


def test_one_that_has_ended_is_shown_too(shop: AsyncEngine) -> None:
    asyncio.run(fill(shop, [kept("o-1", hours=1, done=True), kept("o-2", hours=1, done=True, state=b"")]))

    assert "ended" in called("show", BUS, "fulfilment", "o-1").stdout
    assert json.loads(called("show", BUS, "fulfilment", "o-1", "--json").stdout)["done_at"] is not None
    assert json.loads(called("show", BUS, "fulfilment", "o-2", "--json").stdout)["state"] is None


def test_one_that_is_not_there_is_said(shop: AsyncEngine) -> None:
    asyncio.run(fill(shop, [kept("o-1", hours=1)]))

    result = called("show", BUS, "fulfilment", "o-9")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "there is no process fulfilment of o-9: it never began, or ended long ago\n"


# --- what is written wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["list", "a_shop_with_processes:other"],
            r"a_shop_with_processes:other has no Process\(...\) among its routers",
        ),
        (["list", "a_shop_with_processes:bare"], r"a_shop_with_processes:bare has no Outbox\(\) among its plugins"),
        (["list", BUS, "--name", "fulfillment"], "the bus has no process 'fulfillment'; it has fulfilment"),
        (["show", BUS, "fulfillment", "o-1"], "the bus has no process 'fulfillment'; it has fulfilment"),
        (["list", BUS], "table 'rabbitevents_process' of .*"),
        (["list", BUS, "--older", "yesterday"], "'yesterday' is no time: say 90s, 10m, 2h or 7d"),
        ([BUS], "say what to do first: .*list a_shop_with_processes:bus"),
    ],
)
def test_what_cannot_be_shown_is_said(shop: AsyncEngine, words: list[str], said: str) -> None:
    with pytest.raises((ConfigurationError, click.UsageError), match=said):
        raise called(*words).exception or AssertionError("nothing was raised")


# --- sql -----------------------------------------------------------------------------------------------------------


def test_the_sql_of_a_bus_has_the_tables_of_its_processes(shop: AsyncEngine) -> None:
    name = shop.dialect.name

    printed = called("print", BUS, "--dialect", name, command=sql).stdout

    backend: Any = name
    assert printed == Tables().sql(backend) + ProcessTables().sql(backend)


def test_without_a_bus_the_sql_of_outbox_and_inbox_is_printed() -> None:
    assert called("print", "--prefix", "shop_", command=sql).stdout == Tables("shop_").sql("postgresql")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([BUS, "--prefix", "shop_"], "--prefix and --schema are for no bus"),
        ([BUS, "--schema", "shop"], "--prefix and --schema are for no bus"),
        (["a_shop_with_processes:empty"], "a_shop_with_processes:empty has nothing that needs tables"),
    ],
)
def test_sql_that_cannot_be_printed_is_said(shop: AsyncEngine, words: list[str], said: str) -> None:
    sys.modules["a_shop_with_processes"].__dict__["empty"] = Bus("memory://")

    with pytest.raises((ConfigurationError, click.UsageError), match=said):
        raise called("print", *words, command=sql).exception or AssertionError("nothing was raised")

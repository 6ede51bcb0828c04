"""Snapshots save time and change nothing: what was made by other code, of other events, or is broken, is as good as none."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Literal

import pytest
from attrs import evolve, field, frozen, make_class
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rabbitevents import ConfigurationError
from rabbitevents_eventstore import ANY, EventStore, EventTables, Snapshots
from tests.projected import EVENTS, Closed, Moved
from tests.shop import OrderPlaced as Other
from tests.shop import eventually


@frozen
class Account:
    balance: int = 0
    moves: tuple[int, ...] = ()
    is_open: bool = True

    def moved(self, amount: int) -> Account:
        return evolve(self, balance=self.balance + amount, moves=(*self.moves[-3:], amount))


FEE = 0
applied: list[str] = []
"""What was applied, as it was; no state depends on it."""


def after_fee(amount: int) -> int:
    return amount - FEE


def apply(account: Account, happened: Moved | Closed) -> Account:
    applied.append(type(happened).__name__)
    match happened:
        case Moved(amount=amount):
            return account.moved(after_fee(amount))
        case Closed():
            return evolve(account, is_open=False)


def withdraw(account: Account) -> Moved:
    return Moved("a", -account.balance)


@pytest.fixture
async def store(engine: AsyncEngine) -> EventStore:
    made = EventStore(engine, events=EVENTS)
    await made.tables.create(engine)
    return made


async def append(store: EventStore, *amounts: int, account: str = "a") -> None:
    await store.append("account", account, [Moved(account, each) for each in amounts], expected=ANY)


async def fold(store: EventStore, snapshots: Snapshots | None, **told: Any) -> tuple[Account, int]:
    """Return the state, and how many events were applied to get there."""
    applied.clear()
    whole: dict[str, Any] = {"apply": apply, "initial": Account(), **told}
    state = await store.rebuild("account", "a", **whole, snapshots=snapshots)
    return state, len(applied)


async def kept(store: EventStore) -> list[int]:
    """Return of which versions there are snapshots."""
    async with store.engine.connect() as connection:
        return sorted((await connection.execute(select(store.tables.snapshots.c.version))).scalars())


async def spoil(store: EventStore, **values: Any) -> None:
    async with store.engine.begin() as connection:
        await connection.execute(update(store.tables.snapshots).values(**values))


async def test_a_fold_begins_at_the_snapshot_and_comes_to_the_same(store: EventStore) -> None:
    snapshots = Snapshots(Account, every=5)
    for number in range(1, 24):
        await append(store, number)
        state, count = await fold(store, snapshots)
        whole, _ = await fold(store, None)
        assert state == whole
        assert count <= 5

    assert await kept(store) == [20]


async def test_a_decision_is_made_on_a_snapshot_and_what_came_since(store: EventStore) -> None:
    snapshots = Snapshots(Account, every=10)
    await append(store, *range(100))
    await fold(store, snapshots)
    await append(store, 7)
    applied.clear()

    told: dict[str, Any] = {"apply": apply, "initial": Account(), "snapshots": snapshots}
    (decided,) = await store.decide("account", "a", withdraw, **told)

    assert (decided.version, decided.payload) == (102, Moved("a", -(sum(range(100)) + 7)))
    assert applied == ["Moved"]


# --- what is ignored ---


@pytest.mark.parametrize("values", [{"state": b'{"state": {"bala'}, {"state": b"{}"}, {"state": b'{"state": 7}'}])
async def test_a_snapshot_that_cannot_be_read_is_ignored_and_made_anew(store: EventStore, values: Any) -> None:
    snapshots = Snapshots(Account, every=5)
    await append(store, *range(20))
    whole = await fold(store, snapshots)
    await spoil(store, **values)

    assert await fold(store, snapshots) == whole
    assert await fold(store, snapshots) == (whole[0], 0)


async def test_a_snapshot_of_other_events_is_ignored(store: EventStore) -> None:
    snapshots = Snapshots(Account, every=5)
    await append(store, *range(20))
    await append(store, *range(100, 120), account="b")
    whole = await fold(store, snapshots)
    table = store.tables.snapshots.c
    async with store.engine.connect() as connection:
        kept = (await connection.execute(select(table.version, table.event_id, table.state))).one()
    other = await store.rebuild("account", "b", apply, Account(), snapshots=snapshots)
    async with store.engine.connect() as connection:
        theirs = (await connection.execute(select(table.event_id).where(table.entity_id == "b"))).scalar_one()

    for values in (
        {"event_id": theirs, "state": snapshots.write(other)},  # another entity's
        {"version": 19, "event_id": kept.event_id},  # another event's
        {"version": 2**40, "event_id": kept.event_id},  # of a store that was further, and is restored
    ):
        await spoil(store, **{"version": 20, "state": snapshots.write(Account(666)), **values})
        assert await fold(store, snapshots) == whole


def twice(amount: int) -> int:
    return 2 * amount


def counted(account: Account, _amount: int) -> Account:
    return evolve(account, balance=account.balance + 1)


def plus_one(account: Account, happened: Moved | Closed) -> Account:
    applied.append("")
    return account.moved(1)


async def test_a_snapshot_that_other_code_has_made_is_ignored(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = Snapshots(Account, every=5)
    await append(store, *range(20))
    whole, _ = await fold(store, snapshots)
    assert await fold(store, snapshots) == (whole, 0)

    assert await fold(store, snapshots, apply=plus_one) == (Account(20, (1, 1, 1, 1)), 20)
    assert await fold(store, snapshots, initial=Account(5)) == (evolve(whole, balance=whole.balance + 5), 20)
    assert await fold(store, Snapshots(Account, every=5, version=2)) == (whole, 20)
    more = EventStore(store.engine, events=[*EVENTS, Other])
    assert await fold(more, snapshots) == (whole, 20)
    assert await fold(store, snapshots) == (whole, 0)  # those of the others are beside it

    with monkeypatch.context() as changed:
        changed.setattr(sys.modules[__name__], "FEE", 1)
        assert await fold(store, Snapshots(Account, every=5)) == (Account(whole.balance - 20, (15, 16, 17, 18)), 20)
    with monkeypatch.context() as changed:
        changed.setattr(sys.modules[__name__], "after_fee", twice)
        assert await fold(store, Snapshots(Account, every=5)) == (Account(2 * whole.balance, (32, 34, 36, 38)), 20)
    with monkeypatch.context() as changed:
        changed.setattr(Account, "moved", counted)
        assert await fold(store, Snapshots(Account, every=5)) == (Account(20), 20)


async def test_a_snapshot_of_another_shape_is_ignored(store: EventStore) -> None:
    def shaped(kind: Any) -> tuple[Any, Any]:
        made = make_class("State", {"value": field(type=kind, default=None)}, frozen=True)
        return made, Snapshots(made, every=5)

    def first(state: Any, happened: Moved | Closed) -> Any:
        applied.append("")
        return evolve(state, value=state.value or "1")

    await append(store, *range(20))
    for kind in (str | None, Literal["1"] | None):
        state, snapshots = shaped(kind)
        told: dict[str, Any] = {"apply": first, "initial": state()}

        assert (await fold(store, snapshots, **told))[1] == 20
        assert (await fold(store, snapshots, **told))[1] == 0


def rates(rate: int) -> Any:
    def rated(account: Account, happened: Moved | Closed) -> Account:
        applied.append("")
        return account.moved(rate)

    return rated


async def test_what_a_function_was_made_with_is_part_of_it(store: EventStore) -> None:
    snapshots = Snapshots(Account, every=5)
    await append(store, *range(20))

    for rate in (2, 3):
        assert (await fold(store, snapshots, apply=rates(rate)))[0].balance == 20 * rate
        assert (await fold(store, snapshots, apply=rates(rate)))[0].balance == 20 * rate


def test_processes_with_the_same_code_know_each_others_snapshots() -> None:
    said = "from tests.test_eventstore_snapshots import *; print(Snapshots(Account).mark(apply, Account(), 'x 1'))"
    marks = {
        subprocess.run(
            [sys.executable, "-c", said],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert marks == {Snapshots(Account).mark(apply, Account(), "x 1") + "\n"}


# --- in transactions ---


async def test_in_a_transaction_a_snapshot_is_kept_of_what_has_committed(store: EventStore) -> None:
    snapshots = Snapshots(Account, every=5)
    told: dict[str, Any] = {"apply": apply, "initial": Account(), "snapshots": snapshots}
    await append(store, *range(3))

    async with AsyncSession(store.engine) as session:
        async with session.begin():
            await store.append("account", "a", [Moved("a", 100)] * 3, expected=3, session=session)
            await store.decide("account", "a", withdraw, **told, session=session)
            await session.rollback()
        assert await kept(store) == []
        async with session.begin():
            await store.append("account", "a", [Moved("a", 1)] * 3, expected=3, session=session)
            await store.decide("account", "a", withdraw, **told, session=session)
    await eventually_kept(store, [7])

    assert await fold(store, snapshots) == ((await fold(store, None))[0], 0)


async def eventually_kept(store: EventStore, versions: list[int]) -> None:
    found: list[list[int]] = []
    for _ in range(1000):
        found[:] = [await kept(store)]
        if found == [versions]:
            return
    await eventually(lambda: found == [versions], f"{versions}")


async def test_that_none_can_be_kept_is_said_and_fails_nothing(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    snapshots = Snapshots(Account, every=5)
    await append(store, *range(20))
    whole, _ = await fold(store, None)
    async with store.engine.begin() as connection:
        await connection.execute(text("DROP TABLE rabbitevents_snapshots"))
        await connection.execute(
            text(
                "CREATE VIEW rabbitevents_snapshots AS SELECT '' AS entity_type, '' AS entity_id, '' AS mark, "
                "1 AS version, '' AS event_id, '' AS state"
            )
        )

    assert await fold(store, snapshots) == (whole, 20)
    assert "no snapshot of account/a is kept" in caplog.text


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"state": Account, "every": 0}, "every"),
        ({"state": Account, "version": 0}, "version"),
        ({"state": object}, "cannot be carried as JSON"),
    ],
)
def test_what_cannot_be_kept_is_refused(told: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Snapshots(told.pop("state"), **told)


async def test_what_are_no_snapshots_is_refused(store: EventStore) -> None:
    wrong: Any = 500

    with pytest.raises(ConfigurationError, match=r"snapshots.*Snapshots\(Order\)"):
        await store.rebuild("account", "a", apply, Account(), snapshots=wrong)


# --- tables ---


async def as_of_version_1(engine: AsyncEngine) -> EventTables:
    tables = EventTables()
    await tables.create(engine)
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE rabbitevents_snapshots"))
        await connection.execute(text("UPDATE rabbitevents_events_version SET version = 1"))
    return tables


@pytest.mark.parametrize("way", ["sql", "create"])
async def test_tables_without_snapshots_are_brought_up_to_date(engine: AsyncEngine, way: str) -> None:
    tables = await as_of_version_1(engine)
    backend: Any = engine.dialect.name
    async with engine.connect() as connection:
        with pytest.raises(ConfigurationError, match=rf"EventTables\(...\)\.sql\('{backend}', since=1\) leads there"):
            await connection.run_sync(tables.check)

    if way == "create":
        await tables.create(engine)
    else:
        async with engine.begin() as connection:
            for statement in tables.sql(backend, since=1).split(";\n\n")[:-1]:
                await connection.exec_driver_sql(statement)

    async with engine.connect() as connection:
        await connection.run_sync(tables.check, tables.snapshots)


@pytest.mark.parametrize("since", [2, 3, -1])
def test_a_version_from_which_nothing_leads_on_is_refused(since: int) -> None:
    with pytest.raises(ConfigurationError, match=f"from version {since} nothing leads to version 2"):
        EventTables().sql("sqlite", since=since)

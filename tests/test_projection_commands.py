"""``rabbitevents projection``: what is seen of projections at a prompt, and what can be done with them there."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitevents import Bus, ConfigurationError
from rabbitevents_eventstore import EventStore, Projection, Projections
from rabbitevents_eventstore.checkpoints import Hold
from rabbitevents_eventstore.commands import projection as commands
from tests.projected import EVENTS, applied_to, engine_of, made, single
from tests.test_projections import Mishap, append, careful

T = TypeVar("T")


class Shop:
    """A store in a file, and buses whose projections it has."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._url = url
        self._monkeypatch = monkeypatch
        self.do(made)

    def has(self, *chosen: Projection) -> None:
        """Let the bus have these projections."""
        module = ModuleType("a_shop_to_project")
        store = EventStore(engine_of(self._url), events=EVENTS)
        module.__dict__["bus"] = Bus("memory://", plugins=[store, Projections(store, chosen)])
        module.__dict__["plain"] = Bus("memory://")
        self._monkeypatch.setitem(sys.modules, module.__name__, module)

    def do(self, function: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Do something with the store, or with its engine."""

        async def done() -> T:
            engine: AsyncEngine = engine_of(self._url)
            try:
                return await function(engine if function is made else EventStore(engine, events=EVENTS))
            finally:
                await engine.dispose()

        return asyncio.run(done())

    def run(self, chosen: Projection) -> None:
        """Let a projection apply what there is, or stop."""

        async def project(store: EventStore) -> None:
            async with Bus("memory://", plugins=[store, Projections(store, [chosen])]):
                async with asyncio.timeout(15):
                    await store.watermark.look()
                    while True:
                        found = await store.checkpoints.live(chosen.name)
                        if found and (found.status == "stopped" or found.position == store.watermark.last):
                            return
                        await asyncio.sleep(0.01)

        self.do(project)
        self.has(chosen)


@pytest.fixture
def shop(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Shop:
    found = Shop(f"sqlite+aiosqlite:///{tmp_path}/shop.db", monkeypatch)
    found.do(lambda store: append(store, *range(10)))
    found.has(single)
    return found


def called(command: str, *arguments: str, bus: str = "bus") -> Result:
    """Call a command; what it returns, or raises, is the exit code and the exception."""
    words = [command, f"a_shop_to_project:{bus}", *arguments]
    result = CliRunner().invoke(commands, words, standalone_mode=False)
    if result.exception is None:
        result.exit_code = result.return_value or 0
    return result


def listed() -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(called("list", "--json").stdout)
    (one,) = found
    return one


def failed(shop: Shop) -> UUID:
    """Let the projection stop at the eighth event, and return its id."""
    shop.run(careful(Mishap(7)))
    return UUID(listed()["failed_event"])


def applied(shop: Shop) -> list[int]:
    return shop.do(lambda store: applied_to(store.engine))


# --- list ----------------------------------------------------------------------------------------------------------


def test_list_says_how_far_each_is_and_what_it_does(shop: Shop) -> None:
    shop.run(single)

    result = called("list")

    assert result.exit_code == 0, result.exception
    head, line = result.stdout.splitlines()
    assert head.split() == ["projection", "status", "version", "position", "behind"]
    assert line.split() == ["totals", "runs", "nowhere", "1", "10", "0"]
    assert listed() == {
        "name": "totals",
        "version": 1,
        "building": False,
        "status": "running",
        "position": 10,
        "last": 10,
        "held": False,
        "failed_event": None,
        "error": None,
    }


def test_list_names_one_that_has_never_run(shop: Shop) -> None:
    assert called("list").stdout.splitlines()[1].split() == ["totals", "has", "never", "run", "1", "0", "10"]
    assert json.loads(called("list", "--json").stdout) == []


def test_list_says_what_has_stopped_one_and_the_way_out(shop: Shop) -> None:
    event = failed(shop)

    said = called("list").stdout

    assert (
        f"stopped before event {event}: ValueError: an amount of 7; `rabbitevents projection retry` or `skip`" in said
    )
    assert (listed()["status"], listed()["position"], listed()["error"]) == ("stopped", 7, "ValueError: an amount of 7")


def test_list_names_one_that_is_being_built(shop: Shop) -> None:
    shop.run(single)
    shop.do(lambda store: store.checkpoints.begin(Hold("totals", 2, uuid4(), building=True)))

    assert "is being built" in called("list").stdout
    assert [each["building"] for each in json.loads(called("list", "--json").stdout)] == [False, True]


# --- pause, resume, retry, skip ------------------------------------------------------------------------------------


def test_one_is_paused_and_resumed(shop: Shop) -> None:
    shop.run(single)

    paused, again = called("pause", "totals"), called("pause", "totals")
    stands = listed()["status"]
    resumed = called("resume", "totals")

    assert (paused.exit_code, paused.stdout) == (0, "totals is paused\n")
    assert again.exit_code == 1
    assert stands == "paused"
    assert (resumed.exit_code, resumed.stdout) == (0, "totals is running\n")
    assert listed()["status"] == "running"


def test_one_that_has_stopped_is_tried_again(shop: Shop) -> None:
    failed(shop)

    result = called("retry", "totals")
    shop.run(single)

    assert result.exit_code == 0
    assert applied(shop) == list(range(1, 11))


def test_the_event_that_has_stopped_one_is_skipped_and_no_other(shop: Shop) -> None:
    event = failed(shop)

    other, right = called("skip", "totals", str(uuid4())), called("skip", "totals", str(event))
    shop.run(single)

    assert other.exit_code == 1
    assert (right.exit_code, right.stdout) == (0, f"totals goes on behind event {event}\n")
    assert applied(shop) == [1, 2, 3, 4, 5, 6, 7, 9, 10]


# --- rebuild -------------------------------------------------------------------------------------------------------


def test_one_is_made_anew(shop: Shop) -> None:
    result, as_json = called("rebuild", "totals"), called("rebuild", "totals", "--json")

    assert result.exit_code == 0, result.exception
    assert result.stdout.startswith("totals version 1 is live, at position 10, after ")
    done = json.loads(as_json.stdout)
    assert (done["name"], done["version"], done["position"]) == ("totals", 1, 10)
    assert applied(shop) == list(range(1, 11))


def test_an_event_that_keeps_one_from_being_made_anew_is_said_and_can_be_left_out(shop: Shop) -> None:
    event = failed(shop)

    result, without = called("rebuild", "totals"), called("rebuild", "totals", "--skip", str(event))

    assert result.exit_code == 1
    assert str(event) in result.stderr
    assert "--skip" in result.stderr
    assert without.exit_code == 0
    assert applied(shop) == [1, 2, 3, 4, 5, 6, 7, 9, 10]


# --- what cannot be meant ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("pause", "others"),
        ("resume", "totals", "others"),
        ("retry", "others"),
        ("skip", "others", str(uuid4())),
        ("rebuild", "others"),
    ],
)
def test_a_name_that_is_no_projection_s_is_refused_with_those_that_are(shop: Shop, words: tuple[str, ...]) -> None:
    result = called(*words)

    assert isinstance(result.exception, ConfigurationError)
    assert "there is no projection 'others': there are totals" in str(result.exception)


def test_a_bus_without_projections_is_refused(shop: Shop) -> None:
    result = called("list", bus="plain")

    assert isinstance(result.exception, ConfigurationError)
    assert "has no Projections(store, [...])" in str(result.exception)


@pytest.mark.parametrize("words", [("skip", "totals", "4711"), ("pause",), ("rebuild",), ("skip", "totals")])
def test_what_is_left_out_or_no_id_is_refused(shop: Shop, words: tuple[str, ...]) -> None:
    assert "UsageError" in {each.__name__ for each in type(called(*words).exception).__mro__}


def test_tables_that_are_missing_are_said(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, shop: Shop) -> None:
    store = EventStore(engine_of(f"sqlite+aiosqlite:///{tmp_path}/empty.db"), events=EVENTS)
    sys.modules["a_shop_to_project"].__dict__["bus"] = Bus("memory://", plugins=[store, Projections(store, [single])])

    result = called("list")

    assert isinstance(result.exception, ConfigurationError)
    assert "no such table" in str(result.exception)

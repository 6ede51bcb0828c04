"""Plans on a real broker: each difference is found, apply adds and takes nothing away, and what is exported can be imported."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rabbitevents import Bus, ConfigurationError, Event, Router
from rabbitevents.brokers.rabbitmq.tags import tag, who
from rabbitevents.cli.commands import command_line
from rabbitevents.operations.applying import add, others, prune
from rabbitevents.operations.definitions import definitions
from rabbitevents.operations.differences import Differs
from rabbitevents.operations.plan import Plan, grouped, line
from rabbitevents.operations.planning import at_work, plan_of, planned, wanted_of
from tests.bed.rabbitmq import RabbitNode
from tests.operating import OrderPlaced, Place, StockReserved, shop
from tests.renamed import Ledger, service
from tests.shop import eventually
from tests.test_cli import environment
from tests.test_doctor import definitions as standing

PASSWORD = "marker-in-the-password"


@pytest.fixture
async def empty(managed_node: RabbitNode) -> AsyncIterator[Place]:
    """A virtual host with a hostile name, in which nothing stands."""
    here = Place(managed_node, managed_node.add_vhost("shöp %/2"))
    here.vhost = "shöp %/2"
    yield here
    managed_node.delete_vhost(here.url)


@pytest.fixture
async def place(empty: Place) -> Place:
    """The same, once the shop has run there."""
    async with shop(empty.url):
        pass
    return empty


async def plan(place: Place, bus: Bus | None = None, **how: Any) -> Plan:
    told: dict[str, Any] = {"http": place.node.http_url, **how}
    return await planned(bus or shop(place.url), **told)


async def applied(place: Place, bus: Bus | None = None, **how: Any) -> Plan:
    async with at_work(bus or shop(place.url), place.node.http_url, **how) as site:
        await add(site)
        return await plan_of(site)


def said(found: Plan) -> list[str]:
    return [f"{change.action} {change.kind} {line(change, keys)}" for change, keys in grouped(found.changes)]


# --- plan ------------------------------------------------------------------------------------------------------------


async def test_where_the_shop_has_run_there_is_nothing_to_change(place: Place) -> None:
    found = await plan(place)

    assert said(found) == []
    assert found.equal
    assert found.unseen == ()


async def test_where_nothing_stands_all_of_it_is_to_be_added_targets_first(empty: Place) -> None:
    found = await plan(empty)

    assert {each.action for each in found.changes} == {"add"}
    things = [each.name for each in found.changes if each.kind != "binding"]
    assert sorted(things) == sorted(shop(empty.url).topology.names)
    assert things.index("inventory.reserve.dead") < things.index("inventory.reserve")
    assert "add binding events -> inventory.note: 'payment.#', 'stock.reserved'" in said(found)


async def test_each_difference_has_its_action(place: Place) -> None:
    await place.node.adelete_queue("inventory.note.dead", place.url)
    await place.declared("inventory.old", "inventory.old.dead", "inventory2.x", "inventory")
    async with place.channel() as channel:
        queue = await channel.declare_queue("inventory.note", passive=True)
        await queue.unbind("events", "stock.reserved")
        await queue.bind("events", "order.#")
        await channel.exchange_delete("events.due")
        await channel.declare_exchange("events.due", "topic", durable=True)

    found = await plan(place, shop(place.url, delivery_limit=30))

    assert [each.removesuffix("; 0 ready") if "nobody's" in each else each for each in said(found)] == [
        "add queue inventory.note.dead",
        "add binding events.due -> inventory.reserve: 'OrderPlaced', 'order.placed'",
        "add binding events.dead -> inventory.note.dead: 'inventory.note'",
        "add binding events -> inventory.note: 'stock.reserved'",
        "add binding events.due -> inventory.note: 'payment.#', 'stock.reserved'",
        "migrate queue inventory.reserve: x-delivery-limit is 50, wanted is 30; 0 ready",
        "migrate queue inventory.note: x-delivery-limit is 50, wanted is 30; 0 ready",
        "remove binding events -> inventory.note: 'order.#'",
        "decide exchange events.due: alternate-exchange is not set, wanted is delay.lost; "
        "have it deleted, and apply declares it and binds to it anew",
        "decide queue inventory.old: nobody's",
    ]


async def test_a_classic_queue_is_to_be_migrated(place: Place) -> None:
    await place.node.adelete_queue("inventory.note", place.url)
    await place.declared("inventory.note", quorum=False)

    found = await plan(place)

    (change,) = found.of("migrate")
    assert change.differs[0] == Differs("type", "classic", "quorum")


async def test_a_queue_that_somebody_else_consumes_is_theirs(place: Place) -> None:
    await place.declared("inventory.old")
    async with place.channel() as channel:
        queue = await channel.declare_queue("inventory.old", passive=True)
        await queue.consume(nobody)
        async with asyncio.timeout(10):
            while not (await plan(place)).equal:
                pass

    assert not (await plan(place)).of("add")


async def test_a_policy_that_overrides_what_is_declared_is_said(place: Place) -> None:
    await place.policy('{"overflow":"drop-head"}', "^inventory.note$")

    found = await plan(place)

    assert not found.equal
    assert "overflow=drop-head overrides reject-publish" in found.found[0].what


async def test_looking_works_in_an_alarm_without_a_right_to_write_and_changes_nothing(place: Place) -> None:
    url = place.node.add_user(place.url, "looks", PASSWORD)
    place.node.set_permissions(place.url, "^$", "^$", "^$", user="looks")
    place.node.set_tag("looks", "management")
    await place.node.adelete_queue("inventory.note", place.url)
    before = standing(place.node)
    await place.node.aset_memory_alarm(True)
    try:
        found = await plan(place, shop(url))
    finally:
        await place.node.aset_memory_alarm(False)

    assert "add queue inventory.note" in said(found)
    assert found.unseen == ()
    assert standing(place.node) == before
    assert PASSWORD not in str(found)


async def test_without_http_the_plan_says_what_it_cannot_see_and_a_probe_finds_other_arguments(place: Place) -> None:
    url = place.node.add_user(place.url, "no-tag", PASSWORD)
    place.node.set_permissions(url, user="no-tag")
    await place.node.adelete_queue("inventory.note", place.url)
    bus = shop(url, delivery_limit=30)

    blind, probed = await plan(place, bus), await plan(place, bus, ask_anew=True)

    assert said(blind) == ["add queue inventory.note"]
    assert set(blind.unseen[0].about) == {"bindings", "queues that are nobody's", "policies", "arguments"}
    assert said(probed) == [
        "add queue inventory.note",
        "migrate queue inventory.reserve: x-delivery-limit is 50, wanted is 30; that at least, as AMQP says one of several; 0 ready",
    ]
    assert probed.of("migrate")[0].differs == (Differs("x-delivery-limit", 50, 30),)
    assert "arguments" not in probed.unseen[0].about


async def test_a_probe_finds_an_exchange_of_another_kind_and_a_classic_queue(place: Place) -> None:
    url = place.node.add_user(place.url, "no-tag-2", PASSWORD)
    place.node.set_permissions(url, user="no-tag-2")
    await place.node.adelete_queue("inventory.note", place.url)
    await place.declared("inventory.note", quorum=False)
    async with place.channel() as channel:
        await channel.exchange_delete("events.dead")
        await channel.declare_exchange("events.dead", "topic", durable=True)

    found = await plan(place, shop(url), ask_anew=True)

    assert [(each.name, each.differs[0].argument) for each in found.changes] == [
        ("inventory.note", found.of("migrate")[0].differs[0].argument),
        ("events.dead", "type"),
    ]
    assert (found.of("decide")[0].differs[0].stands, found.of("decide")[0].differs[0].wanted) == ("topic", "direct")


# --- apply -----------------------------------------------------------------------------------------------------------


async def test_apply_adds_all_that_is_missing_and_a_second_time_nothing(empty: Place) -> None:
    first = await applied(empty)
    before = standing(empty.node)
    second = await applied(empty)

    assert first.equal
    assert second.equal
    assert standing(empty.node) == before


async def test_apply_changes_nothing_that_stands(place: Place) -> None:
    await place.declared("inventory.old")
    async with place.channel() as channel:
        await (await channel.declare_queue("inventory.note", passive=True)).bind("events", "order.#")
    await place.node.adelete_queue("inventory.reserve.dead", place.url)

    left = await applied(place, shop(place.url, delivery_limit=30))

    assert {each.action for each in left.changes} == {"migrate", "remove", "decide"}


async def test_apply_needs_no_http(empty: Place) -> None:
    url = empty.node.add_user(empty.url, "deploys", PASSWORD)
    empty.node.set_permissions(url, user="deploys")

    left = await applied(empty, shop(url))

    assert left.changes == ()
    assert (await plan(empty)).equal


async def test_apply_makes_nothing_where_a_right_is_missing(empty: Place) -> None:
    url = empty.node.add_user(empty.url, "few", PASSWORD)
    empty.node.set_permissions(url, "^events", ".*", ".*", user="few")
    before = standing(empty.node)

    with pytest.raises(ConfigurationError, match="nothing that is missing was made") as refused:
        await applied(empty, shop(url))

    assert standing(empty.node) == before
    assert "rabbitmqctl set_permissions" in str(refused.value)
    assert PASSWORD not in str(refused.value)


async def test_a_service_that_only_looks_waits_in_queues_that_apply_made(empty: Place, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")

    left = await applied(empty, service(empty.url, ledger, "old", declare="passive"))
    async with service(empty.url, ledger, "old", declare="passive") as bus:
        await bus.publish(StockReserved("3"))  # fails at first, and waits at the broker
        await eventually(lambda: [line[0] for line in ledger.lines] == ["3"], "the second try")

    assert left.equal


async def test_a_service_that_only_looks_does_not_start_where_an_event_would_find_no_place_to_wait(
    empty: Place,
) -> None:
    async with shop(empty.url):  # which makes them when it first needs one
        pass
    bus = shop(empty.url, declare="passive")
    to_add = [each.name for each in (await plan(empty, bus)).of("add") if each.kind == "queue"]

    with pytest.raises(
        ConfigurationError, match=r"do not exist: delay\.4000, .*rabbitevents topology apply MODULE:BUS"
    ) as e:
        async with bus:
            pass
    left = await applied(empty, shop(empty.url, declare="passive"))
    async with shop(empty.url, declare="passive") as started:
        problems = started.health().problems

    assert to_add == [f"delay.{ms}" for ms in bus.waits]
    assert all(name in str(e.value) for name in to_add)
    assert left.equal
    assert problems == ()


async def test_a_queue_that_is_being_made_anew_is_left_alone(place: Place) -> None:
    await place.declared("inventory.note.moving")
    async with place.channel() as channel:
        await channel.declare_exchange("rabbitevents.moving", "fanout", durable=True)
        await (await channel.declare_queue("inventory.note", passive=True)).unbind("events", "stock.reserved")
    before = standing(place.node)

    left = await applied(place)

    assert [(each.action, each.name) for each in left.changes] == [("migrate", "inventory.note")]
    assert standing(place.node) == before


# --- prune -----------------------------------------------------------------------------------------------------------


async def test_stale_bindings_are_removed_once_no_consumer_has_them_in_its_code(place: Place) -> None:
    async with place.channel() as channel:
        await (await channel.declare_queue("inventory.reserve", passive=True)).bind("events", "order.old")

    async with with_one_more_event(place.url), at_work(shop(place.url), place.node.http_url) as site:
        stale = (await plan_of(site)).of("remove")
        at_once = await others(site, stale)
        (reason,) = await until_seen(site, stale)
    async with shop(place.url), at_work(shop(place.url), place.node.http_url) as site:
        await until_seen(site, stale, gone=True)
        await prune(site.connection, stale)
        after = await plan_of(site)

    assert at_once  # though the management API may not show its consumer yet
    assert {each.routing_key for each in stale} == {"order.old"}
    assert reason.startswith("inventory.reserve is consumed by other code than this, at ")
    assert after.equal


def with_one_more_event(url: str) -> Bus:
    """The shop's bus, whose code has one more event for a handler."""
    router = Router("inventory")

    @router.on(OrderPlaced, "order.old", name="reserve")
    async def reserve(order: Event) -> None: ...

    return Bus(url, router, grace=1)


async def nobody(message: object) -> None:
    """Take a message, and do nothing with it."""


async def until_seen(site: Any, stale: Iterable[Any], *, gone: bool = False) -> list[str]:
    """Wait until the management API shows the consumers that there are, and where: it is a few seconds behind."""
    async with asyncio.timeout(15):
        while bool(found := await others(site, stale)) is gone or "?:?" in str(found):
            pass
    return found


async def test_a_client_that_nobody_knows_keeps_stale_bindings(place: Place) -> None:
    async with place.channel() as channel:
        queue = await channel.declare_queue("inventory.note", passive=True)
        await queue.bind("events", "order.#")
        await queue.consume(nobody)
        async with at_work(shop(place.url), place.node.http_url) as site:
            (reason,) = await until_seen(site, (await plan_of(site)).of("remove"))

    assert "an older version of this library, or another client, at 127.0.0.1:" in reason


def test_a_tag_says_who_consumes_and_no_other_tag_does() -> None:
    told = who(tag("0123abcd"))

    assert told is not None
    assert (told.generation, told.mark) == (1, "0123abcd")
    assert told.where.rpartition(":")[2].isdecimal()
    assert len(tag("0123abcd")) < 200
    assert who("rabbitevents-0123456789abcdef0123456789abcdef") is None
    assert who("ctag1.0") is None


# --- export ----------------------------------------------------------------------------------------------------------


async def test_what_is_exported_can_be_imported_and_is_all_that_is_wanted(empty: Place) -> None:
    waits = [(1.0, 1.0), (60.0, 80.0)]
    file = empty.node.layout.folder / "shop.json"  # where the node sees it, whatever system it is of
    file.write_text(json.dumps(definitions(wanted_of(shop(empty.url), waits), empty.vhost)))

    await empty.node.actl("import_definitions", str(empty.node.layout.home / file.name))

    found = await plan(empty, waits=waits)
    assert said(found) == []


async def test_an_import_over_other_arguments_changes_nothing_and_the_plan_still_says_so(place: Place) -> None:
    bus = shop(place.url, delivery_limit=30)
    file = place.node.layout.folder / "shop.json"
    file.write_text(json.dumps(definitions(wanted_of(bus, ()), place.vhost)))

    await place.node.actl("import_definitions", str(place.node.layout.home / file.name))

    assert [each.name for each in (await plan(place, bus)).of("migrate")] == ["inventory.reserve", "inventory.note"]


# --- the commands ----------------------------------------------------------------------------------------------------

MODULE = """
import os
from tests.operating import shop

bus = shop(os.environ["AMQP_URL"])
"""


def called(folder: Path, url: str, *words: str, answer: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "a_shop.py").write_text(MODULE)
    command = [sys.executable, "-m", "rabbitevents", "topology", words[0], "a_shop:bus", *words[1:]]
    told = {**environment(), "AMQP_URL": url, **env}
    return subprocess.run(
        command, cwd=folder, env=told, input=answer, capture_output=True, text=True, timeout=60, check=False
    )


async def test_the_exit_code_says_whether_there_is_something_to_change(empty: Place, tmp_path: Path) -> None:
    http = ("--http", empty.node.http_url)

    before = await asyncio.to_thread(called, tmp_path, empty.url, "plan", *http)
    adding = await asyncio.to_thread(called, tmp_path, empty.url, "apply", *http)
    after = await asyncio.to_thread(called, tmp_path, empty.url, "plan", *http)
    away = await asyncio.to_thread(called, tmp_path, "amqp://guest@127.0.0.1:1/", "plan")

    assert [each.returncode for each in (before, adding, after, away)] == [3, 0, 0, 2]
    assert "+ queue    inventory.reserve\n" in before.stdout
    assert adding.stdout.splitlines()[-1].endswith(" done; nothing to change")
    assert after.stdout == "nothing to change\n"
    assert away.stderr.splitlines() == [away.stderr.strip()]
    assert "nobody listens there" in away.stderr


async def test_prune_asks_and_says_what_it_needs(place: Place, tmp_path: Path) -> None:
    async with place.channel() as channel:
        await (await channel.declare_queue("inventory.note", passive=True)).bind("events", "order.#")
    http = ("--http", place.node.http_url)

    alone = await asyncio.to_thread(called, tmp_path, place.url, "apply", "--prune", *http)
    no = await asyncio.to_thread(called, tmp_path, place.url, "apply", "--prune", *http, answer="n\n")
    blind = await asyncio.to_thread(
        called, tmp_path, place.url, "apply", "--prune", "--yes", "--http", "http://127.0.0.1:1"
    )
    kept = await plan(place)
    yes = await asyncio.to_thread(called, tmp_path, place.url, "apply", "--prune", "--yes", *http)

    assert [each.returncode for each in (alone, no, blind, yes)] == [2, 2, 2, 0]
    assert "say --yes" in alone.stderr
    assert "nothing was changed" in no.stderr
    assert "--prune has to see the bindings" in blind.stderr
    assert len(kept.of("remove")) == 1
    assert (await plan(place)).equal


async def test_the_json_has_a_form_that_stays(place: Place, tmp_path: Path) -> None:
    async with place.channel() as channel:
        await (await channel.declare_queue("inventory.note", passive=True)).bind("events", "order.#")
    url = place.url.replace("guest:guest@", f"seer:{PASSWORD}@")
    place.node.add_user(place.url, "seer", PASSWORD)
    place.node.set_permissions(place.url, user="seer")
    place.node.set_tag("seer", "management")

    done = await asyncio.to_thread(called, tmp_path, url, "plan", "--json", "--http", place.node.http_url)

    document = json.loads(done.stdout)
    assert list(document) == ["schema", "bus", "address", "vhost", "http", "changes", "found", "unseen", "equal"]
    assert document["schema"] == 1
    assert document["changes"] == [
        {
            "action": "remove",
            "kind": "binding",
            "name": "inventory.note",
            "exchange": "events",
            "routing_key": "order.#",
            "differs": [],
            "ready": None,
            "what": "",
        }
    ]
    assert document["equal"] is False
    assert PASSWORD not in done.stdout + done.stderr


async def test_lines_fit_the_terminal_and_a_pipe_gets_them_whole(empty: Place, tmp_path: Path) -> None:
    http = ("--http", empty.node.http_url)

    narrow = await asyncio.to_thread(called, tmp_path, empty.url, "plan", *http, COLUMNS="50")
    wide = await asyncio.to_thread(called, tmp_path, empty.url, "plan", *http, COLUMNS="80", NO_COLOR="1")
    piped = await asyncio.to_thread(called, tmp_path, empty.url, "plan", *http)

    assert max(map(len, narrow.stdout.splitlines())) <= 50
    assert max(map(len, wide.stdout.splitlines())) <= 80
    assert len(narrow.stdout.splitlines()) > len(piped.stdout.splitlines())
    assert "\x1b" not in piped.stdout + wide.stdout


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["a_shop:bus"], "say what to do first: rabbitevents topology plan a_shop:bus"),
        (["plan", "a_shop:bus", "--delays", "soon"], "'soon' is no waiting time: write 30s, 5m, 1h, 7d, or 4s..6s"),
        (["plan", "a_shop:bus", "--delays", "6s..4s"], "the shorter time first"),
        (["plan", "a_shop:bus", "--delays", "31d"], "none above 30d"),
        (["export", "tests.operating:memory"], "has no 'memory'"),
    ],
)
def test_what_is_written_wrong_is_one_line(words: list[str], wanted: str) -> None:
    result = CliRunner().invoke(command_line, ["topology", *words])

    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert wanted in result.stderr

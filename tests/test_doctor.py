"""The doctor on a real broker: it finds each trouble that is made there on purpose, and is silent where there is none."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from aio_pika.exceptions import ChannelClosed
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from rabbitevents import Finding, Look, Plugin
from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.visiting import Visitor
from rabbitevents.health import HealthServer
from rabbitevents.operations.doctor import examine
from rabbitevents_idempotency import Idempotency, RedisStore
from rabbitevents_outbox import Outbox
from tests.bed.fixtures import NodeFactory
from tests.bed.loopback import LOOPBACK, free_port
from tests.bed.rabbitmq import RabbitNode
from tests.bed.redis import RedisServer
from tests.operating import OrderPlaced, Place, about, lines, shop
from tests.shop import eventually
from tests.test_cli import environment

PASSWORD = "marker-in-the-password"


@pytest.fixture
async def place(managed_node: RabbitNode) -> AsyncIterator[Place]:
    """A virtual host with a hostile name, in which the shop has run once."""
    url = managed_node.add_vhost("shöp %/1")
    async with shop(url):
        pass
    here = Place(managed_node, url)
    here.vhost = "shöp %/1"
    yield here
    managed_node.delete_vhost(url)


# --- a healthy shop --------------------------------------------------------------------------------------------------


async def test_a_healthy_shop_at_work_has_nothing_to_say(place: Place) -> None:
    bus = shop(place.url)

    async with bus:
        await bus.publish(OrderPlaced("o-1"))
        report = await place.looked_at(replicas=1)

    assert lines(report) == []
    assert [unseen.about for unseen in report.unseen] == []
    assert report.checks >= 23
    assert report.broker.startswith("RabbitMQ 3.10") or report.broker.startswith("RabbitMQ 4.")


async def test_looking_changes_nothing_and_leaves_no_line_in_the_brokers_log(place: Place) -> None:
    await place.put("inventory.reserve", 3)
    before = definitions(place.node)
    seen = [await errors_logged(place, f"mark-{n}") for n in range(3)]
    while seen[-1] - seen[-2] != seen[-2] - seen[-3]:  # the node has something to say of the test before this one still
        seen.append(await errors_logged(place, f"mark-{len(seen)}"))

    await place.looked_at()

    after = await errors_logged(place, "mark-last")
    assert definitions(place.node) == before
    assert after - seen[-1] == seen[-1] - seen[-2]  # what the mark itself leaves there
    assert (await place.node.aqueue_counts("inventory.reserve", place.url)).ready == 3


def definitions(node: RabbitNode) -> Any:
    request = urllib.request.Request(f"{node.http_url}/api/definitions")
    request.add_header("Authorization", f"Basic {b64encode(b'guest:guest').decode()}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        said: dict[str, Any] = json.load(answer)
    return {key: sorted(map(str, said[key])) for key in ("queues", "exchanges", "bindings", "policies", "permissions")}


async def errors_logged(place: Place, mark: str) -> int:
    """Count the errors in the broker's log, up to one that is caused here."""
    with suppress(ChannelClosed):
        async with place.channel() as channel:
            await channel.declare_queue(mark, passive=True)
    await eventually(lambda: f"'{mark}'" in place.node.log_tail(100_000), "the broker's log")
    return place.node.log_tail(100_000).count("[error]")


# --- each trouble ----------------------------------------------------------------------------------------------------


async def test_a_url_that_leads_nowhere_is_a_risk_beside_one_that_serves_and_wrong_alone(place: Place) -> None:
    nowhere = f"amqp://guest@{LOOPBACK}:{free_port()}/"

    both, alone = await place.looked_at(shop([nowhere, place.url])), await place.looked_at(shop(nowhere))

    assert about(both, "D1")[0].startswith("D1 risk")
    assert "nobody listens there" in about(both, "D1")[0]
    assert about(alone, "D1")[0].startswith("D1 wrong")


async def test_a_wrong_password_is_said_and_shown_nowhere(place: Place) -> None:
    url = place.url.replace("guest:guest@", f"guest:{PASSWORD}@")

    report = await place.looked_at(shop(url))

    assert about(report, "D1")[0].startswith("D1 wrong")
    assert "check the user and the password" in report.found[0].way_out
    assert PASSWORD not in str(report)
    assert any("401" in unseen.why for unseen in report.unseen)


async def test_a_certificate_is_known_to_hold(own_node: NodeFactory) -> None:
    node = await own_node(tls=True)
    context = ssl.create_default_context(cafile=node.ca_file)

    trusted = await examine(shop(node.tls_url, ssl_context=context))
    strange = await examine(shop(node.tls_url))
    visitor = Visitor(Address(node.tls_url), context)
    visit = await visitor.arrive()
    await visitor.leave()

    assert about(trusted, "D1") == []
    assert visit.days_left is not None
    assert visit.days_left > 300
    assert "certificate was not accepted" in about(strange, "D1")[0]
    assert "https://localhost:15671" in trusted.unseen[0].why  # a password that goes encrypted is not sent in the clear


async def test_feature_flags_that_are_off_are_found(own_node: NodeFactory) -> None:
    node = await own_node(management=True, advanced="[{rabbit, [{forced_feature_flags_on_init, []}]}]")
    if node.version >= "4":
        pytest.skip("what 3.10 can do without is required there")

    report = await Place(node, node.url).looked_at()

    assert "D3 wrong RabbitMQ: the feature flags quorum_queue, stream_queue are off" in about(report, "D3")[0]


async def test_rights_that_are_missing_to_work_are_wrong_and_those_to_bind_are_noted(place: Place) -> None:
    name = "few-rights"
    url = place.node.add_user(place.url, name, "s3cret-word")
    place.node.set_permissions(url, "^$", "^$", "^$", user=name)

    report = await place.looked_at(shop(url))

    found = about(report, "D4")
    assert "D4 wrong rights: user 'few-rights' in virtual host 'shöp %/1' " in found[0]
    assert "write on 'amq.default', 'events'" in "\n".join(found)
    assert "bindings cannot be made" in found[-1]
    assert "rabbitmqctl set_permissions" in str(report)
    assert about(report, "D5") == []
    assert "s3cret-word" not in str(report)


async def test_a_user_without_http_learns_what_was_not_looked_at(place: Place) -> None:
    url = place.node.add_user(place.url, "no-tag", "s3cret-word")
    place.node.set_permissions(url, user="no-tag")
    await place.put("inventory.reserve.dead", 2)

    report = await place.looked_at(shop(url))

    (unseen,) = report.unseen
    assert "policies" in unseen.about
    assert "stale bindings" in unseen.about
    assert "rabbitmqctl set_user_tags no-tag management" in unseen.why
    assert lines(report) == ["D11 risk inventory.reserve.dead: 2 dead letters"]


async def test_the_management_tag_sees_all_but_nodes_and_feature_flags(place: Place) -> None:
    url = place.node.add_user(place.url, "with-tag", "s3cret-word")
    place.node.set_permissions(url, user="with-tag")
    place.node.set_tag("with-tag", "management")

    report = await place.looked_at(shop(url))

    assert lines(report) == []
    unseen = {about for each in report.unseen for about in each.about}
    assert {"the cluster's nodes"} <= unseen <= {"the cluster's nodes", "feature flags"}


async def test_what_was_deleted_is_missing(place: Place) -> None:
    await place.node.adelete_queue("inventory.note", place.url)

    report = await place.looked_at()

    assert about(report, "D5") == ["D5 wrong inventory.note: there is no queue 'inventory.note'"]


async def test_a_bus_that_never_ran_is_said_in_one_line(managed_node: RabbitNode) -> None:
    url = managed_node.add_vhost()

    report = await Place(managed_node, url).looked_at()

    assert len(about(report, "D5")) == 1
    assert "none of this bus's queues is there" in lines(report)[0]
    managed_node.delete_vhost(url)


async def test_a_classic_queue_is_wrong_and_another_delivery_limit_a_risk(place: Place) -> None:
    await place.node.adelete_queue("inventory.note", place.url)
    await place.declared("inventory.note", quorum=False)

    report = await place.looked_at(shop(place.url, delivery_limit=30))

    found = about(report, "D5")
    assert any("D5 wrong inventory.note: it is a classic queue" in line for line in found)
    assert "D5 risk inventory.reserve: other arguments: x-delivery-limit is 50, wanted is 30" in found


async def test_a_binding_that_is_missing_is_wrong_and_one_too_many_a_risk(place: Place) -> None:
    async with place.channel() as channel:
        queue = await channel.declare_queue("inventory.note", passive=True)
        await queue.unbind("events", "stock.reserved")
        await queue.bind("events", "order.#")

    report = await place.looked_at()

    assert about(report, "D5") == [
        "D5 wrong inventory.note: it is not bound to events by 'stock.reserved': those events do not come"
    ]
    assert about(report, "D6") == [
        "D6 risk inventory.note: it is bound to events by 'order.#', and no handler is called for that"
    ]
    assert about(report, "D15") == [
        "D15 note stock.reserved: no queue is bound to events for this event: nobody gets it"
    ]
    way_out = next(each.way_out for each in report.found if each.check == "D6")
    assert way_out.endswith("rabbitevents topology apply MODULE:BUS --prune")


async def test_the_first_event_of_a_stale_binding_says_the_command_that_unbinds_it(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.channel() as channel:
        await (await channel.declare_queue("inventory.reserve", passive=True)).bind("events", "stock.reserved")

    async with shop(place.url) as bus:
        await bus.publish(OrderPlaced("o-1"))  # whose handler publishes stock.reserved
        await eventually(lambda: "no handler of queue 'inventory.reserve' is for 'stock.reserved'" in caplog.text, "it")

    assert "`rabbitevents topology apply MODULE:BUS --prune` unbinds it" in caplog.text


async def test_a_queue_of_a_handler_that_is_gone_is_nobodys_and_others_are_left_alone(place: Place) -> None:
    await place.declared("inventory.old", "inventory.old.dead", "inventory2.x", "inventory")
    async with place.channel() as channel:
        await (await channel.declare_queue("inventory.old", passive=True)).bind("events", "order.placed")
    await place.put("inventory.old", 12)

    async with asyncio.timeout(10):
        while "12 ready" not in str(report := await place.looked_at()):
            pass

    (found,) = about(report, "D7")
    assert found.startswith("D7 risk inventory.old: nobody's: no handler of this bus has this queue")
    assert "it gets order.placed; 12 ready" in found


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        (
            '{"overflow":"drop-head"}',
            "D8 wrong inventory.note: policy theirs: overflow=drop-head overrides reject-publish",
        ),
        ('{"expires":60000}', "D8 wrong inventory.note: policy theirs: expires=60000"),
        ('{"message-ttl":1000}', "D8 wrong inventory.note: policy theirs: message-ttl=1000"),
        ('{"max-length":10}', "D8 risk inventory.note: policy theirs: max-length=10"),
        ('{"delivery-limit":3}', "D8 risk inventory.note: policy theirs: delivery-limit=3 stands before 50"),
        ('{"dead-letter-exchange":"elsewhere"}', ""),
        ('{"delivery-limit":100}', ""),
    ],
)
async def test_a_policy_that_takes_a_promise_away_is_found(place: Place, definition: str, said: str) -> None:
    await place.policy(definition, "^inventory.note$")

    report = await place.looked_at()

    assert [line[: len(said)] for line in about(report, "D8")] == ([said] if said else [])


async def test_an_operators_policy_is_found_too(place: Place) -> None:
    await place.policy('{"message-ttl":5000}', operator=True)

    report = await place.looked_at()

    assert "D8 wrong inventory.reserve: operator policy theirs: message-ttl=5000" in "\n".join(about(report, "D8"))
    assert "let the policy's pattern begin with ^(?!inventory\\.)" in "\n".join(each.way_out for each in report.found)


async def test_a_delivery_limit_that_a_few_deploys_use_up_is_a_risk(managed_node: RabbitNode) -> None:
    place = Place(managed_node, managed_node.add_vhost())
    async with shop(place.url, delivery_limit=5):
        pass
    await place.node.adelete_queue("inventory.note.dead", place.url)
    await place.declared("inventory.note.dead", arguments={"x-delivery-limit": 20})

    report = await place.looked_at(shop(place.url, delivery_limit=5))

    found = "\n".join(about(report, "D9"))
    assert "D9 risk inventory.reserve: a delivery limit of 5" in found
    assert "D9 risk inventory.note.dead: a delivery limit of 20: so often can its letters be looked at" in found
    managed_node.delete_vhost(place.url)


async def test_what_waited_and_finds_no_way_on_is_wrong(place: Place) -> None:
    async with place.channel() as channel:
        await channel.exchange_delete("delay.due")
        await channel.declare_exchange("delay.due", "direct", durable=True)
    await place.declared("delay.777", arguments={"x-message-ttl": 777, "x-dead-letter-exchange": "gone"})
    await place.put("delay.lost", 2)

    report = await place.looked_at()

    found = "\n".join(about(report, "D10"))
    assert "D10 wrong delay.due: it has no alternate exchange" in found
    assert "D10 wrong delay.777: what waits in it leads to exchange gone, which is not there" in found
    assert "D10 wrong delay.lost: 2 events fell due when no queue was bound for them" in found


async def test_dead_letters_that_cannot_leave_are_wrong(place: Place) -> None:
    await place.node.adelete_queue("inventory.note.dead", place.url)
    await place.declared("inventory.note.dead", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    async with place.channel() as channel:
        await (await channel.declare_queue("inventory.note.dead", passive=True)).bind("events.dead", "inventory.note")
        await place.put("inventory.note", 6)
        queue = await channel.declare_queue("inventory.note", passive=True)
        for _ in range(6):
            await (await queue.get()).reject()

    async with asyncio.timeout(20):
        while "cannot leave" not in str(report := await place.looked_at()):
            pass

    assert [line for line in about(report, "D11") if line.startswith("D11 wrong inventory.note: ")]


async def test_a_queue_that_nobody_consumes_is_wrong_once_something_is_in_it(place: Place) -> None:
    quiet = await place.looked_at()
    await place.put("inventory.reserve", 3)

    report, counted = await place.looked_at(), await place.looked_at(replicas=2)

    assert about(quiet, "D12") == []
    assert about(report, "D12") == ["D12 wrong inventory.reserve: nobody consumes it, and 3 are ready"]
    assert "D12 wrong inventory.note: 0 of 2 consumers are there; 0 ready" in about(counted, "D12")


async def test_a_window_that_is_full_and_stands_still_is_a_risk(place: Place) -> None:
    going = asyncio.Event()

    async def hang(order: OrderPlaced) -> None:
        await going.wait()

    bus = shop(place.url, hang)
    async with bus:
        await bus.publish(OrderPlaced("o-1"))
        async with asyncio.timeout(20):
            while not about(report := await place.looked_at(), "D13"):
                pass
        going.set()
        await eventually(lambda: bus.load["inventory.reserve"].running == 0, "the handler")

    assert "D13 risk inventory.reserve: 1 unacknowledged, as many as its consumers may have" in about(report, "D13")[0]


async def test_what_a_process_says_of_itself_is_passed_on(place: Place) -> None:
    bus = shop(place.url)
    async with bus, HealthServer(bus.health, 0, LOOPBACK) as server:
        await bus.pause("inventory.note", reason="a drill")
        report = await place.looked_at(health=[f"http://{LOOPBACK}:{server.port}", f"http://{LOOPBACK}:{free_port()}"])

    found = "\n".join(about(report, "D13"))
    assert "inventory.note" in found
    assert "its health cannot be read" in found


async def test_an_alarm_is_wrong_and_everything_else_is_looked_at_all_the_same(place: Place) -> None:
    await place.node.aset_memory_alarm(True)
    try:
        async with asyncio.timeout(20):
            while not about(report := await place.looked_at(), "D14"):
                pass
    finally:
        await place.node.aset_memory_alarm(False)

    assert about(report, "D14")[0].startswith(
        "D14 wrong RabbitMQ: an alarm is on, and blocks who publishes: memory on "
    )
    assert report.unseen == ()


async def test_a_queue_that_stands_in_for_another_one_is_a_risk(place: Place) -> None:
    await place.declared("inventory.note.moving")

    report = await place.looked_at()

    assert about(report, "D18")[0].startswith("D18 risk inventory.note.moving: inventory.note is being made anew")
    assert about(report, "D7") == []


# --- plugins ---------------------------------------------------------------------------------------------------------


class Cellar(Plugin):
    """A plugin that looks after a queue of its own."""

    async def diagnose(self, look: Look) -> list[Finding]:
        depth = await look.depth("cellar")
        return [] if depth is not None else [Finding("wrong", "cellar", "there is no queue", "declare it")]


class Broken(Plugin):
    async def diagnose(self, look: Look) -> list[Finding]:
        raise ValueError(PASSWORD)


class Slow(Plugin):
    async def diagnose(self, look: Look) -> list[Finding]:
        await asyncio.Event().wait()
        return []


async def test_plugins_add_their_lines_and_one_that_fails_takes_none_away(place: Place) -> None:
    report = await place.looked_at(shop(place.url).sibling(plugins=[Cellar(), Broken(), Slow()]))

    assert lines(report) == ["Cellar wrong cellar: there is no queue"]
    why = [unseen.why for unseen in report.unseen]
    assert why == ["Broken failed with ValueError", "Slow did not say within 3 s"]
    assert PASSWORD not in str(report)


async def test_idempotency_says_how_its_store_is(place: Place, redis_server: RedisServer) -> None:
    redis = pytest.importorskip("redis.asyncio")
    there, away = redis.Redis.from_url(redis_server.url), redis.Redis(host=LOOPBACK, port=free_port())
    await there.config_set("maxmemory", "100mb")
    await there.config_set("maxmemory-policy", "allkeys-lru")
    bus = shop(place.url)

    evicting = await place.looked_at(bus.sibling(plugins=[Idempotency(RedisStore(there))]))
    gone = await place.looked_at(bus.sibling(plugins=[Idempotency(RedisStore(away, timeout=0.5))]))
    await there.aclose()
    await away.aclose()

    assert "Idempotency risk RedisStore: Redis evicts keys when its memory is full" in lines(evicting)[0]
    assert lines(gone)[0].startswith("Idempotency wrong RedisStore: ")


async def test_an_outbox_says_what_waits_and_that_nobody_relays(place: Place, sqlite_engine: AsyncEngine) -> None:
    outbox = Outbox(sqlite_engine)
    async with async_sessionmaker(sqlite_engine).begin() as session:
        await outbox.publish(session, OrderPlaced("o-1"))

    report = await place.looked_at(shop(place.url).sibling(plugins=[outbox]))

    assert lines(report)[0].startswith("Outbox wrong rabbitevents_outbox in sqlite+aiosqlite:///")
    assert "no relay is there, and 1 row is waiting" in lines(report)[0]


# --- time ------------------------------------------------------------------------------------------------------------


async def test_servers_that_take_everything_and_say_nothing_end_after_ten_seconds(place: Place) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    nowhere = f"amqp://guest@{LOOPBACK}:{port}/"
    try:
        async with asyncio.timeout(10):
            report = await place.looked_at(shop([nowhere, nowhere + "other"]), http=f"http://{LOOPBACK}:{port}")
    finally:
        server.close()

    assert about(report, "D1")[0].startswith("D1 wrong")
    assert len(report.unseen) == 2


# --- the command -----------------------------------------------------------------------------------------------------

MODULE = """
import os
from tests.operating import shop

bus = shop(os.environ["AMQP_URL"])
memory = shop("memory://")
"""


def doctor(folder: Path, url: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "a_shop.py").write_text(MODULE)
    command = [sys.executable, "-m", "rabbitevents", "doctor", "a_shop:bus", *words]
    told = {**environment(), "AMQP_URL": url, **env}
    return subprocess.run(command, cwd=folder, env=told, capture_output=True, text=True, timeout=60, check=False)


async def test_the_command_exits_with_3_for_what_is_wrong_and_with_strict_for_a_risk(
    place: Place, tmp_path: Path
) -> None:
    http = ("--http", place.node.http_url)
    well = await asyncio.to_thread(doctor, tmp_path, place.url, *http)
    await place.put("inventory.note.dead")
    risk = await asyncio.to_thread(doctor, tmp_path, place.url, *http)
    strict = await asyncio.to_thread(doctor, tmp_path, place.url, *http, "--strict")
    await place.put("inventory.note")
    wrong = await asyncio.to_thread(doctor, tmp_path, place.url, *http)

    assert [each.returncode for each in (well, risk, strict, wrong)] == [0, 0, 3, 3]
    assert [each.stderr for each in (well, risk, strict, wrong)] == [""] * 4
    assert well.stdout.splitlines()[-1].startswith("0 wrong, ")
    assert "wrong  inventory.note: nobody consumes it, and 1 are ready; rabbitevents run a_shop:bus" in wrong.stdout
    assert "risk   inventory.note.dead: 1 dead letter; rabbitevents dlq list a_shop:bus" in wrong.stdout


async def test_the_password_of_http_comes_from_the_environment_and_is_shown_nowhere(
    place: Place, tmp_path: Path
) -> None:
    name = "seer"
    place.node.add_user(place.url, name, PASSWORD)
    place.node.set_permissions(place.url, "^$", "^$", "^$", user=name)
    place.node.set_tag(name, "monitoring")
    http = place.node.http_url.replace("http://", f"http://{name}:{PASSWORD}@")

    seen = await asyncio.to_thread(doctor, tmp_path, place.url, "--http", "-", "--json", RABBITMQ_HTTP_URL=http)
    unset = await asyncio.to_thread(doctor, tmp_path, place.url, "--http", "-")
    broken = await asyncio.to_thread(doctor, tmp_path, place.url, "--http", f"ftp://{PASSWORD}@here/")

    report = cast("dict[str, Any]", json.loads(seen.stdout))
    assert report["http"].endswith(" as seer")
    assert list(report) == [
        *("schema", "bus", "broker", "address", "vhost", "http", "found", "unseen", "checks", "seconds")
    ]
    assert PASSWORD not in seen.stdout + seen.stderr + unset.stderr + broken.stderr + broken.stdout
    assert (unset.returncode, broken.returncode) == (2, 2)
    assert "RABBITMQ_HTTP_URL, which is not set" in unset.stderr


async def test_lines_fit_the_terminal_and_a_pipe_gets_them_whole(place: Place, tmp_path: Path) -> None:
    await place.put("inventory.note")
    http = ("--http", place.node.http_url)

    narrow = await asyncio.to_thread(doctor, tmp_path, place.url, *http, COLUMNS="50")
    piped = await asyncio.to_thread(doctor, tmp_path, place.url, *http)

    assert max(map(len, narrow.stdout.splitlines())) <= 50
    assert len(narrow.stdout.splitlines()) > len(piped.stdout.splitlines())
    assert "\x1b" not in piped.stdout


def test_a_bus_on_the_embedded_broker_cannot_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a_shop.py").write_text(MODULE)
    command = [sys.executable, "-m", "rabbitevents", "doctor", "a_shop:memory"]

    done = subprocess.run(
        command, cwd=tmp_path, env={**environment(), "AMQP_URL": "amqp://x"}, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "rabbitevents doctor: this looks at RabbitMQ, and the bus is on memory://, which nobody else can see"
    ]

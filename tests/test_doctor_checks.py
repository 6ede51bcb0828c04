"""The checks by themselves: what a single node of this version cannot show, and that nothing is said of what was not seen."""

from __future__ import annotations

import msgspec
import pytest

from rabbitevents import Event, Router
from rabbitevents.brokers.rabbitmq.visiting import Visit
from rabbitevents.operations.checks import CHECKS
from rabbitevents.operations.doctor import bare
from rabbitevents.operations.scene import Overview, Scene, examined, version_of
from rabbitevents.operations.standing import Policy, Standing, StandingExchange, StandingQueue
from rabbitevents.states import Depth
from tests.operating import shop

QUEUE = "inventory.reserve"


def scene(version: str = "3.10.8", **said: object) -> Scene:
    """A shop's scene, with what a test says of it."""
    visit = Visit(address="amqp://a:5672/", user="shop", vhost="/", server={"version": version})
    return msgspec.structs.replace(bare(shop("amqp://localhost")), **{"visits": (visit,), **said})


def found(scene: Scene, check: str) -> list[str]:
    checks = [each for each in CHECKS if each.id == check]
    return [f"{each.grade} {each.where}: {each.what}" for each in examined(scene, checks).found]


def queue(**said: object) -> Standing:
    return Standing(queues={QUEUE: msgspec.structs.replace(StandingQueue(name=QUEUE), **said)})


# --- D1, D2, D3 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "grades"), [(3.0, ["wrong"]), (15.0, ["risk"]), (22.0, []), (None, [])])
def test_a_certificate_is_said_before_it_ends(days: float | None, grades: list[str]) -> None:
    here = Visit(address="amqps://a:5671/", user="shop", vhost="/", days_left=days)

    assert [line.split(" ")[0] for line in found(scene(visits=(here,)), "D1")] == grades


@pytest.mark.parametrize(
    ("version", "grades"),
    [
        ("3.9.1", ["wrong"]),
        ("3.10.8", []),
        ("3.13.2", ["risk"]),
        ("3.13.3", []),
        ("4.0.5", []),
        ("4.3.0", ["risk", "risk", "risk"]),
        ("4.3.2", ["risk", "risk"]),
        ("4.3.6", ["risk"]),
        ("4.3.7", []),
        ("4.4.0-rc.1", []),
        ("", ["note"]),
    ],
)
def test_versions_with_known_faults_are_said(version: str, grades: list[str]) -> None:
    assert [line.split(" ")[0] for line in found(scene(version), "D2")] == grades


def test_versions_are_read_as_far_as_they_are_numbers() -> None:
    assert version_of("3.13.0-rc.5") == (3, 13, 0)
    assert version_of("4.0.5+2") == (4, 0, 5)
    assert version_of("unknown") == ()


def test_deprecated_features_in_use_are_noted() -> None:
    there = Overview(deprecated=("transient_nonexcl_queues",), disabled_flags=("khepri_db",), is_supported=False)

    assert len(found(scene(overview=there), "D3")) == 2
    assert found(scene(overview=there), "D2") == ["note RabbitMQ: 3.10.8 is of a series that is not supported any more"]


# --- D8 on later versions, D10 ---------------------------------------------------------------------------------------


def test_a_policy_counts_by_its_priority_and_what_it_applies_to() -> None:
    policies = (
        Policy(name="low", pattern="^inv", definition={"max-length": 1}),
        Policy(name="high", pattern="reserve$", priority=5, apply_to="quorum_queues", definition={"max-length": 9}),
        Policy(name="classic", pattern=".*", priority=9, apply_to="classic_queues", definition={"max-length": 2}),
        Policy(name="unreadable", pattern="(*VERB", priority=9, definition={"max-length": 3}),
    )
    there = msgspec.structs.replace(queue(), policies=policies)

    assert found(scene(standing=there), "D8") == [
        f"risk {QUEUE}: policy high: max-length=9: what does not fit is refused, and publishing fails"
    ]


def test_what_4_3_can_delay_and_4_0_can_time_out_is_found() -> None:
    name = "inventory.note"
    policy = Policy(name="p", pattern=".*", definition={"delayed-retry-type": "all", "consumer-timeout": 10_000})
    there = Standing(queues={name: StandingQueue(name=name)}, policies=(policy,))

    late, old = found(scene("4.3.7", standing=there), "D8"), found(scene("3.10.8", standing=there), "D8")

    assert [line.split(" ")[0] for line in late] == ["wrong", "risk"]
    assert "a consumer timeout of 10 s, and one handling may take 30 s" in late[0]
    assert old == []


def test_an_alternate_exchange_may_come_from_a_policy() -> None:
    exchange = StandingExchange(name="delay.due", kind="direct")
    policy = Policy(name="ae", pattern="due$", apply_to="exchanges", definition={"alternate-exchange": "delay.lost"})
    there = Standing(exchanges={exchange.name: exchange}, policies=(policy,))

    assert found(scene(standing=there), "D10") == []
    assert len(found(scene(standing=msgspec.structs.replace(there, policies=())), "D10")) == 1


# --- D12, D13: what lasts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"unacked": 1, "acked": 5}, {"unacked": 1, "acked": 5}, 1),
        ({"unacked": 1, "acked": 5}, {"unacked": 1, "acked": 6}, 0),
        ({"unacked": 0, "acked": 5}, {"unacked": 1, "acked": 5}, 0),
        ({"unacked": None, "acked": None}, {"unacked": None, "acked": None}, 0),
    ],
)
def test_only_what_stands_still_in_two_looks_is_said(
    before: dict[str, object], now: dict[str, object], said: int
) -> None:
    here = scene(standing=queue(consumers=1, **now), before=queue(consumers=1, **before).queues)

    assert len(found(here, "D13")) == said


@pytest.mark.parametrize(("ready", "single", "said"), [(9, False, 1), (0, False, 0), (9, True, 0)])
def test_a_consumer_that_has_room_and_takes_nothing_is_said(ready: int, single: bool, said: int) -> None:
    there = queue(consumers=1, ready=ready, unacked=1, acked=5)
    router = Router("inventory")
    router.on("order.placed", name="reserve", single_active_consumer=single)(nobody)

    here = scene(standing=there, before=there.queues, subscriptions=router.subscriptions())

    assert len(found(here, "D13")) == said


async def nobody(event: Event) -> None: ...


def test_the_fresher_of_two_counts_of_consumers_is_believed_where_it_is_higher() -> None:
    depths = {QUEUE: Depth(ready=3, consumers=0)}

    assert found(scene(depths=depths, standing=queue(consumers=2)), "D12") == []
    assert len(found(scene(depths=depths, standing=queue(consumers=None)), "D12")) == 1


# --- D14, D16 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "online", "state", "grade"),
    [
        ("abc", "abc", "running", ""),
        ("abc", "ab", "running", "risk"),
        ("abc", "a", "running", "wrong"),
        ("abc", "", "down", "wrong"),
        ("abc", "", "", ""),
        ("a", "a", "running", "risk"),
    ],
)
def test_replicas_that_are_missing_are_found(members: str, online: str, state: str, grade: str) -> None:
    there = queue(members=tuple(members), online=tuple(online), state=state)
    cluster = Overview(nodes=("a", "b", "c"))

    lines = found(scene(standing=there, overview=cluster), "D14")

    assert [line.split(" ")[0] for line in lines] == ([grade] if grade else [])


def test_nodes_that_are_down_or_apart_are_found() -> None:
    there = Overview(nodes=("a", "b"), down=("b",), partitions=("a",), critical="queues would stop")

    assert [line.split(":")[0] for line in found(scene(overview=there), "D14")] == [
        "wrong a",
        "risk RabbitMQ",
        "risk b",
    ]


@pytest.mark.parametrize(("skew", "said"), [(7.0, "ahead of"), (-9.0, "behind"), (4.0, ""), (None, "")])
def test_clocks_that_are_apart_are_found(skew: float | None, said: str) -> None:
    lines = found(scene(overview=Overview(skew=skew)), "D16")

    assert bool(lines) == bool(said)
    assert not lines or said in lines[0]


# --- what was not seen -----------------------------------------------------------------------------------------------


def test_what_was_not_seen_is_said_by_its_reason_and_no_check_of_it_says_anything() -> None:
    everything = examined(scene(unseen={"objects": "why not", "numbers": "why not"}), CHECKS)

    assert [each.check for each in everything.found if each.check in ("D6", "D7", "D8", "D9", "D15")] == []
    assert [(each.why, "policies" in each.about) for each in everything.unseen] == [("why not", True)]


def test_the_worst_is_said_first() -> None:
    there = Overview(alarms=("memory on a",), deprecated=("x",), skew=60.0)

    assert [each.grade for each in examined(scene(overview=there), CHECKS).found][:3] == ["wrong", "risk", "note"]

"""What truly holds for a queue: one table, and what a broker's queue says of itself."""

from __future__ import annotations

import json
import re
from itertools import product

import pytest

from rabbitevents.operations.effective import SMALLER, Version, effective
from rabbitevents.operations.scene import version_of
from rabbitevents.topology import Argument
from tests.bed.rabbitmq import RabbitNode
from tests.operating import Place

OLD, NEW, LATEST = (3, 10, 8), (4, 0, 5), (4, 3, 6)
ALL = (OLD, NEW, LATEST)

Row = tuple[str, Argument | None, Argument | None, Argument | None, tuple[Version, ...], Argument | None, str]

TABLE: list[Row] = [
    # key, argument, policy, operator policy, versions -> what holds, and who says so
    ("overflow", "reject-publish", "drop-head", None, ALL, "drop-head", "policy"),
    ("overflow", "reject-publish", None, None, ALL, "reject-publish", "argument"),
    ("overflow", "reject-publish", "reject-publish", "drop-head", ALL, "drop-head", "operator policy"),
    ("overflow", None, None, None, ALL, "drop-head", "broker"),
    ("dead-letter-exchange", "ours", "theirs", None, ALL, "ours", "argument"),
    ("dead-letter-exchange", None, "theirs", None, ALL, "theirs", "policy"),
    ("dead-letter-routing-key", "ours", "theirs", "others", ALL, "ours", "argument"),
    ("delivery-limit", 50, 3, None, ALL, 3, "policy"),
    ("delivery-limit", 3, 50, None, ALL, 3, "argument"),
    ("delivery-limit", 50, 50, None, ALL, 50, "argument"),
    ("delivery-limit", 50, 40, 30, ALL, 30, "operator policy"),
    ("delivery-limit", 50, 30, 40, ALL, 30, "policy"),
    ("delivery-limit", 50, -1, None, (NEW, LATEST), 50, "argument"),
    ("delivery-limit", -1, 50, None, (NEW, LATEST), 50, "policy"),
    ("delivery-limit", None, None, None, (OLD,), None, ""),
    ("delivery-limit", None, None, None, (NEW, LATEST), 20, "broker"),
    ("message-ttl", None, 1000, None, ALL, 1000, "policy"),
    ("message-ttl", 500, 1000, None, ALL, 500, "argument"),
    ("message-ttl", 5000, 1000, None, ALL, 1000, "policy"),
    ("max-length", None, None, 10, ALL, 10, "operator policy"),
    ("max-length-bytes", 10, 5, 7, ALL, 5, "policy"),
    ("expires", 1000, 2000, None, ALL, 1000, "argument"),
    ("consumer-timeout", None, 1000, None, (OLD,), None, ""),
    ("consumer-timeout", None, 1000, None, (NEW, LATEST), 1000, "policy"),
    ("delayed-retry-type", None, "all", None, (OLD, NEW), None, ""),
    ("delayed-retry-type", "failed", "all", None, (LATEST,), "all", "policy"),
]


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_what_holds(row: Row) -> None:
    key, argument, policy, operator, versions, holds, by = row

    for version in versions:
        found = effective(
            {} if argument is None else {f"x-{key}": argument},
            {} if policy is None else {key: policy},
            {} if operator is None else {key: operator},
            version,
        ).get(key)

        said = None if found is None else (found.value, found.by)
        assert said == (None if holds is None else (holds, by)), version


@pytest.mark.parametrize("version", ALL)
def test_the_smaller_of_any_two_limits_holds_whoever_says_it(version: Version) -> None:
    for key, argument, policy, operator in product(SMALLER, (None, 1, 5), (None, 2, 6), (None, 3, 4)):
        told = [each for each in (argument, policy, operator) if each is not None]
        found = effective(
            {f"x-{key}": argument} if argument else {},
            {key: policy} if policy else {},
            {key: operator} if operator else {},
            version,
        ).get(key)

        if told and found is not None:
            assert found.value == min(told)


@pytest.mark.parametrize(
    ("arguments", "policy", "strategy", "by"),
    [
        ({"x-overflow": "reject-publish", "x-dead-letter-exchange": "dead"}, {}, "at-least-once", "argument"),
        ({"x-overflow": "reject-publish"}, {}, "at-most-once", "broker"),
        ({"x-dead-letter-exchange": "dead"}, {}, "at-most-once", "broker"),
        (
            {"x-overflow": "reject-publish", "x-dead-letter-exchange": "dead"},
            {"overflow": "drop-head"},
            "at-most-once",
            "policy",
        ),
        (
            {"x-overflow": "reject-publish", "x-dead-letter-exchange": "dead"},
            {"max-length": 10},
            "at-least-once",
            "argument",
        ),
    ],
)
def test_at_least_once_is_what_it_says_only_with_all_that_it_needs(
    arguments: dict[str, Argument], policy: dict[str, Argument], strategy: str, by: str
) -> None:
    found = effective({"x-dead-letter-strategy": "at-least-once", **arguments}, policy, {}, OLD)

    setting = found["dead-letter-strategy"]
    assert (setting.value, setting.by) == (strategy, by)


# --- as the queue itself has it --------------------------------------------------------------------------------------

OWN: dict[str, Argument] = {
    "x-overflow": "reject-publish",
    "x-delivery-limit": 50,
    "x-dead-letter-exchange": "dead",
    "x-dead-letter-strategy": "at-least-once",
}


@pytest.mark.parametrize(
    ("policy", "operator"),
    [
        ({}, {}),
        ({"overflow": "drop-head"}, {}),
        ({"delivery-limit": 3, "max-length": 10}, {}),
        ({"delivery-limit": 100, "message-ttl": 5000}, {"message-ttl": 4000, "max-length": 7}),
        ({"expires": 600_000, "dead-letter-exchange": "other"}, {"expires": 700_000, "delivery-limit": 9}),
    ],
)
async def test_the_table_is_what_a_queue_says_of_itself(
    managed_node: RabbitNode, policy: dict[str, Argument], operator: dict[str, Argument]
) -> None:
    vhost = "effective"
    place = Place(managed_node, managed_node.add_vhost(vhost))
    if policy:
        await place.policy(json.dumps(policy), "^q$")
    if operator:
        await place.policy(json.dumps(operator), "^q$", operator=True)
    await place.declared("q", arguments=OWN)

    said = await place.node.aeval(f"""
        {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"q">>)),
        {{ok, {{_, Overview}}, _}} = ra:local_query(amqqueue:get_pid(Q), fun rabbit_fifo:overview/1),
        {{ok, {{_, Kept}}, _}} = ra:local_query(amqqueue:get_pid(Q), fun(State) -> element(2, State) end),
        [maps:get(config, Overview), Kept]""")
    managed_node.delete_vhost(place.url)

    holds = effective(OWN, policy, operator, version_of(managed_node.version))
    names = {
        "delivery_limit": "delivery-limit",
        "max_length": "max-length",
        "expires": "expires",
        "msg_ttl": "message-ttl",
    }
    for theirs, ours in names.items():
        number = re.search(rf"\b{theirs} => (\d+|undefined)", said)
        assert number is not None, said
        assert number[1] == (str(holds[ours].value) if ours in holds else "undefined"), (theirs, said)
    assert ("at_least_once" in said) == (holds["dead-letter-strategy"].value == "at-least-once"), said

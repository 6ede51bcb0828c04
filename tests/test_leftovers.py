"""What a service says at its start of bindings that older code has left; where it cannot look, it says nothing and runs."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rabbitevents.cli.leftovers import say_leftovers
from rabbitevents.cli.seeing import HTTP_URL
from tests.bed.rabbitmq import RabbitNode
from tests.operating import Place, shop
from tests.test_cli_run import SERVICE, service

SAID = (
    "queue inventory.note is bound by 'order.#', and no handler is called for that; once no older version of the service runs: "
    "rabbitevents topology apply shop:bus --prune"
)


@pytest.fixture
async def place(managed_node: RabbitNode) -> AsyncIterator[Place]:
    """Where the shop has run, and a queue of it is bound to more than it is for."""
    here = Place(managed_node, managed_node.add_vhost())
    async with shop(here.url):
        pass
    async with here.channel() as channel:
        queue = await channel.declare_queue("inventory.note", passive=True)
        for exchange in ("events", "events.due"):
            await queue.bind(exchange, "order.#")
    yield here
    managed_node.delete_vhost(here.url)


async def test_a_binding_that_no_handler_is_for_is_said_once_with_the_command_that_unbinds_it(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HTTP_URL, place.node.http_url)
    caplog.set_level("WARNING", "rabbitevents")

    await say_leftovers(shop(place.url), "shop:bus")

    assert caplog.messages == [SAID]


@pytest.mark.parametrize("declare", ["active", "none"])
async def test_where_all_is_as_it_is_wanted_or_nothing_is_nothing_is_said(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, declare: str
) -> None:
    monkeypatch.setenv(HTTP_URL, place.node.http_url)
    async with place.channel() as channel:
        queue = await channel.declare_queue("inventory.note", passive=True)
        if declare == "active":
            for exchange in ("events", "events.due"):
                await queue.unbind(exchange, "order.#")

    await say_leftovers(shop(place.url, declare=declare), "shop:bus")
    await say_leftovers(shop("memory://"), "shop:bus")

    assert caplog.messages == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1", []),
        ("http://nobody:wrong@HERE", []),
        ("nonsense", ["the URL of the management API"]),
    ],
)
async def test_where_it_cannot_look_it_does_not_raise(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, url: str, said: list[str]
) -> None:
    here = place.node.http_url.removeprefix("http://").rpartition("@")[2]
    monkeypatch.setenv(HTTP_URL, url.replace("HERE", here))
    caplog.set_level("WARNING", "rabbitevents")

    await say_leftovers(shop(place.url), "shop:bus")

    assert len(caplog.messages) == len(said)
    assert all(text in message for text, message in zip(said, caplog.messages, strict=True))
    assert "wrong" not in caplog.text


async def test_a_service_says_it_while_it_runs_and_leaves_as_it_is_asked(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HTTP_URL, place.node.http_url)
    async with service(tmp_path, url=place.url) as running:
        await running.until_said("feeds pack")
        running.process.send_signal(signal.SIGTERM)
        await running.ends(20)
    narrower = SERVICE.replace('"parcel.*", "letter.#"', '"parcel.*"')

    async with service(tmp_path, url=place.url, source=narrower) as running:
        await running.until_said("rabbitevents topology apply parcels:bus --prune")
        running.process.send_signal(signal.SIGTERM)
        code = await running.ends(20)

    assert code == 0
    assert running.said.count("queue store.count is bound by 'letter.#', and no handler is called for that") == 1

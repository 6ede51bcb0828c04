"""Neither passwords nor bodies are in any log, at any level, nor in errors and what objects show of themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from attrs import frozen

from rabbitevents import Bus, Message, PublishError, Router, UnroutableError, event
from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.properties import Properties
from tests.bed.proxy import Proxy
from tests.bed.rabbitmq import RabbitNode
from tests.shop import eventually

BODY = "marker-in-the-body"
PASSWORD = "marker-in-the-password"


@event("secret.told")
@frozen
class SecretTold:
    text: str


@event("nobody.listens")
@frozen
class Unheard:
    text: str


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All loggers at DEBUG, those of the client libraries too unless the library holds them back."""
    with caplog.at_level(logging.DEBUG):
        yield caplog


async def test_nothing_secret_is_logged_or_shown(
    rabbit_url: str, rabbit_node: RabbitNode, everything_logged: pytest.LogCaptureFixture
) -> None:
    url = rabbit_node.add_user(rabbit_url, "keeper-of-secrets", PASSWORD)
    rabbit_node.set_permissions(rabbit_url, ".*", ".*", ".*", user="keeper-of-secrets")
    router, tries, shown = Router("vault"), list[str](), list[object]()

    @router.on(SecretTold)
    async def keep(secret: SecretTold) -> None:
        tries.append(secret.text)
        if len(tries) == 1:
            raise LookupError("no vault")

    async with Proxy.before(url) as proxy, Bus(proxy.url_for(url), router, unroutable="raise") as bus:
        await bus.publish(SecretTold(BODY))
        await eventually(lambda: len(tries) == 2, "a failure and a success")
        with pytest.raises(UnroutableError) as refused:
            await bus.publish(Unheard(BODY))
        proxy.cut()
        await eventually(lambda: not bus.health().ok, "the cut")
        shown += [bus, bus.health(), refused.value, repr(refused.value), Address(url), router.subscriptions()]
        await eventually(lambda: bus.health().ok, "the connection")

    text = everything_logged.text + " ".join(f"{each!s} {each!r}" for each in shown)
    assert "vault.keep" in text
    assert BODY not in text
    assert PASSWORD not in text


def test_publish_errors_name_the_message_and_not_what_it_says() -> None:
    message = Message(
        exchange="events",
        routing_key="secret.told",
        body=BODY.encode(),
        properties=Properties(message_id="id-1", headers={"note": BODY}),
    )

    error = PublishError(message, "why")

    assert "secret.told id-1" in str(error)
    assert BODY not in str(error)
    assert BODY not in repr(error)

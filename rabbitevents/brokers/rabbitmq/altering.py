"""Changing what stands at a broker, one act at a time: what an operator's commands do, and no service.

Each act may be done again: what is bound already is bound, and what is gone is gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.control import ControlChannel
from rabbitevents.brokers.rabbitmq.declaring import depth
from rabbitevents.errors import BrokerError
from rabbitevents.states import Depth
from rabbitevents.topology import Arguments

_NOT_THERE: Final = 404
_REFUSED: Final = (403, 404, 405, 406)


class Link(msgspec.Struct, frozen=True, order=True):
    """What leads from an exchange to a queue, or to another exchange."""

    source: str
    target: str
    key: str = ""
    to_queue: bool = True

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}{f' by {self.key!r}' if self.key else ''}"


class Altering:
    """Changes things on one connection. Everything raises `BrokerError` where the broker refuses."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def _ask(self, question: Callable[[ControlChannel], Awaitable[Any]], what: str) -> Any:
        return await self._connection.ask(question, what)

    # --- bindings ---

    async def bind(self, link: Link) -> None:
        """Bind."""

        async def question(channel: ControlChannel) -> None:
            if link.to_queue:
                await channel.queue_bind(link.target, link.source, routing_key=link.key)
            else:
                await channel.exchange_bind(destination=link.target, source=link.source, routing_key=link.key)

        await self._ask(question, f"binding {link}")

    async def unbind(self, link: Link) -> None:
        """Unbind."""

        async def question(channel: ControlChannel) -> None:
            if link.to_queue:
                await channel.queue_unbind(link.target, link.source, routing_key=link.key)
            else:
                await channel.exchange_unbind(destination=link.target, source=link.source, routing_key=link.key)

        await self._ask(question, f"unbinding {link}")

    # --- queues ---

    async def declare_queue(self, name: str, arguments: Arguments) -> None:
        """Declare a durable queue; 406 where it stands with other arguments."""
        told: dict[str, Any] = dict(arguments)
        await self._ask(
            lambda channel: channel.queue_declare(name, durable=True, arguments=told), f"declaring queue {name!r}"
        )

    async def depth(self, queue: str) -> Depth | None:
        """Look into a queue; None is one that is not there."""
        return await depth(self._connection, queue)

    async def delete_queue(self, queue: str, *, kind: str = "quorum") -> int:
        """Delete a queue, and return how many ready messages went with it. One that is not there had none.

        Of a quorum queue RabbitMQ knows no "only if it is empty": asked for it, it ends the connection. Of any other it
        is asked for.
        """
        careful = kind != "quorum"
        answer = await self._unless_gone(
            lambda channel: channel.queue_delete(queue, if_empty=careful, if_unused=False), f"deleting queue {queue!r}"
        )
        return 0 if answer is None else answer.message_count or 0

    async def lock(self, name: str, who: str) -> bool:
        """Take a lock that lasts as long as the connection; False where another connection has it. ``who`` is shown."""
        question = self._connection.ask(
            lambda channel: channel.queue_declare(name, exclusive=True, arguments={"rabbitevents-by": who}),
            f"locking {name!r}",
        )
        try:
            await question
        except BrokerError as error:
            if error.code not in _REFUSED[2:]:
                raise
            return False
        return True

    # --- exchanges ---

    async def declare_exchange(
        self, name: str, *, alternate: str | None = None, kind: str = "fanout", arguments: Arguments | None = None
    ) -> None:
        """Declare a durable exchange; what finds no way out of it goes on to ``alternate``."""
        told: dict[str, Any] = {**(arguments or {}), **({} if alternate is None else {"alternate-exchange": alternate})}
        await self._ask(
            lambda channel: channel.exchange_declare(name, exchange_type=kind, durable=True, arguments=told),
            f"declaring exchange {name!r}",
        )

    async def has_exchange(self, name: str) -> bool:
        """Say whether there is an exchange of that name."""
        try:
            await self._ask(lambda channel: channel.exchange_declare(name, passive=True), f"looking at {name!r}")
        except BrokerError as error:
            if error.code != _NOT_THERE:
                raise
            return False
        return True

    async def delete_exchange(self, name: str, *, if_unused: bool = True) -> bool:
        """Delete an exchange; False where it leads somewhere still. One that is not there is deleted."""
        try:
            await self._unless_gone(
                lambda channel: channel.exchange_delete(name, if_unused=if_unused), f"deleting exchange {name!r}"
            )
        except BrokerError as error:
            if error.code != 406:
                raise
            return False
        return True

    async def _unless_gone(self, question: Callable[[ControlChannel], Awaitable[Any]], what: str) -> Any:
        try:
            return await self._ask(question, what)
        except BrokerError as error:
            if error.code != _NOT_THERE:
                raise
            return None

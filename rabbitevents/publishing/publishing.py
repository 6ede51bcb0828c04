"""The way out: a payload becomes an event, the event a message, and the message is the broker's responsibility."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from rabbitevents.brokers import Broker
from rabbitevents.errors import BrokerError, OutcomeUnknownError, RabbitEventsError, UnroutableError
from rabbitevents.facts import Report, Returned
from rabbitevents.fields import event_fields
from rabbitevents.message import Message
from rabbitevents.plugin import Publish
from rabbitevents.publishing.checks import check_message
from rabbitevents.publishing.delay import Delays
from rabbitevents.publishing.writer import Writer
from rabbitevents.topology import DELAY_DUE, Topology

log: logging.Logger = logging.getLogger("rabbitevents.publish")

Unroutable = Literal["warn", "raise", "ignore"]
"""What an event is that no queue is bound for: counted and logged once a type, an error, or nothing at all."""


class Publishing:
    """Sends what its ``writer`` writes.

    ``timeout`` is how long publishing may take, in seconds. ``home`` says what is declared for one of the bus's own queues:
    nothing for any other one.
    """

    def __init__(
        self,
        broker: Broker,
        writer: Writer,
        *,
        exchange: str,
        timeout: float,
        unroutable: Unroutable,
        passive: bool,
        home: Callable[[str], Topology],
        report: Report,
    ) -> None:
        self.unroutable: Counter[str] = Counter()
        """How many events of each type reached no queue."""
        self.old_names: frozenset[str] = frozenset()
        """Queues that may be given another name at any moment; what has waited finds them by this one all the same."""
        self._writer = writer
        self._broker = broker
        self._delays = Delays(broker, exchange, passive=passive)
        self._home = None if passive else home
        self._timeout = timeout
        self._on_unroutable: Unroutable = unroutable
        self._report = report
        self._time = asyncio.get_running_loop().time

    def prepare_all(self, payloads: Iterable[Any]) -> list[Message]:
        """Write several payloads or events as messages."""
        return self._writer.prepare_all(payloads)

    async def send(self, message: Message) -> None:
        """Publish a message; one that reaches no queue is what ``unroutable`` says. Raises a `PublishError`."""
        if type(message.body) is not bytes:  # a plugin's doing: written, it would end the connection
            check_message(message)
        publish = self._broker.publish if message.after is None else self._delays.publish
        if not await publish(message, self._deadline(message)) and (error := self._unroutable_error(message)):
            raise error

    async def send_all(self, messages: Sequence[Message], chain: Publish) -> list[tuple[Message, Exception]]:
        """Publish through ``chain``, in flight together; return those that were not confirmed, and why."""
        if len(messages) == 1:
            return await _send_one(messages[0], chain)
        if not messages:
            return []
        if chain == self.send and not any(message.after for message in messages):
            results = await self._send_together(messages)
        else:
            results = await asyncio.gather(*map(chain, messages), return_exceptions=True)
        return [(m, _as_error(result, m)) for result, m in zip(results, messages, strict=True) if result is not None]

    async def _send_together(self, messages: Sequence[Message]) -> list[BaseException | None]:
        """Publish past every plugin, without a task for each."""
        results: list[BaseException | None] = []
        routed = await self._broker.publish_many(messages, self._deadline(messages[0]))
        for message, result in zip(messages, routed, strict=True):
            if result is False:
                results.append(self._unroutable_error(message))
            else:
                results.append(None if result is True else result)
        return results

    async def forward(self, message: Message) -> None:
        """Publish a copy of a delivery; one that reaches no queue is an error here. Raises a `PublishError`.

        A queue of the bus's own that is gone, such as that of its dead letters, is declared again.
        """
        deadline = self._deadline(message)
        if await self._delays.publish(message, deadline) or await self._by_its_new_name(message, deadline):
            return
        if not await self._declared_again(message) or not await self._delays.publish(message, deadline):
            raise UnroutableError(message)

    async def _by_its_new_name(self, message: Message, deadline: float) -> bool:
        """Publish a copy to its queue where that has just been given another name; say whether that took it."""
        if message.exchange or message.routing_key not in self.old_names:
            return False
        due = msgspec.structs.replace(message, exchange=DELAY_DUE, after=None)
        return await self._broker.publish(due, deadline)

    async def forward_all(self, messages: Sequence[Message]) -> list[Exception | None]:
        """Publish messages as `forward` does, in flight together; return for each what kept it from being confirmed."""
        now = [message for message in messages if message.after is None]
        later = [message for message in messages if message.after is not None]
        sent = await self._broker.publish_many(now, self._deadline(now[0])) if now else []
        waiting = await asyncio.gather(*map(self.forward, later), return_exceptions=True)
        at_once, in_time = iter([await self._or_again(*each) for each in zip(now, sent, strict=True)]), iter(waiting)
        return [next(at_once) if each.after is None else _kept(next(in_time), each) for each in messages]

    async def _or_again(self, message: Message, result: bool | Exception) -> Exception | None:
        """Return what kept a message from being confirmed in a queue, which may be declared again first."""
        if result is not False or self._home_of(message) is None:
            return _kept(result, message)
        try:
            await self.forward(message)
        except RabbitEventsError as error:
            return error
        return None

    def _home_of(self, message: Message) -> Topology | None:
        """Return what is declared for the queue that a copy is for; None where that is not ours."""
        if self._home is None or message.exchange:
            return None
        home = self._home(message.routing_key)
        return home if home.queue(message.routing_key) else None

    async def _declared_again(self, message: Message) -> bool:
        """Declare the queue that a copy is for, if it is ours; say whether that was done."""
        home = self._home_of(message)
        if home is None:
            return False
        log.warning("queue %r is gone, and is declared again", message.routing_key)
        try:
            await self._broker.declare(home)
        except BrokerError:
            return False
        return True

    def close(self) -> None:
        """Declare no waiting queues any more."""
        self._delays.close()

    def _deadline(self, message: Message) -> float:
        return self._time() + (self._timeout if message.timeout is None else message.timeout)

    def _unroutable_error(self, message: Message) -> UnroutableError | None:
        """Return the error that it is that no queue is bound for a message, or say so and return None."""
        if self._on_unroutable == "raise" or not message.exchange:
            return UnroutableError(message)
        if self._on_unroutable == "ignore":
            return None
        self.unroutable[message.type] += 1
        if self.unroutable[message.type] == 1:
            log.warning(
                "%s: no queue is bound for it (said once; unroutable='raise' makes it an error)",
                message.describe(),
                extra=event_fields(message),
            )
        self._report(Returned(message.type, message.id))
        return None


async def _send_one(message: Message, chain: Publish) -> list[tuple[Message, Exception]]:
    try:
        await chain(message)
    except Exception as error:
        # Whatever a plugin or the broker raised: who asked decides about it.
        return [(message, error)]
    return []


def _as_error(result: BaseException, message: Message) -> Exception:
    """Return what kept a publish from being confirmed; one that was cancelled has an unknown outcome."""
    return result if isinstance(result, Exception) else OutcomeUnknownError(message, "it was cancelled")


def _kept(result: bool | BaseException | None, message: Message) -> Exception | None:
    """Return what kept a message from being confirmed in a queue; None where nothing did."""
    if result is False:
        return UnroutableError(message)
    return _as_error(result, message) if isinstance(result, BaseException) else None

"""Events that come together for one call: each keeps a chain of its own, and they meet at its innermost link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context

import msgspec

from rabbitevents.consuming.dispatch import Dispatch
from rabbitevents.consuming.isolation import is_cancelled
from rabbitevents.consuming.work import WORK
from rabbitevents.errors import ConfigurationError
from rabbitevents.message import ACK, REQUEUE, Delivery, Message, Settlement
from rabbitevents.options import Batch
from rabbitevents.plugin import ConsumeBatch
from rabbitevents.texts import name_of

log: logging.Logger = logging.getLogger("rabbitevents.consumer")

Answer = Settlement | list[Message] | BaseException
"""What comes of one event: how it is settled, what is to be published for it first, or why it failed."""

Together = Callable[[Sequence[Delivery]], Awaitable[Sequence[Answer]]]


class Member(msgspec.Struct, eq=False):
    """An event that waits for what comes of its batch."""

    delivery: Delivery
    answer: asyncio.Future[Answer]


class Batches:
    """The innermost link of the chain of each event, where a handler takes several: it waits for others, and for the call.

    A batch is called when it is full, or when its first event has waited ``within``. Where the call fails as a whole, each
    of its events is handled by a call of its own, and has its own failure.
    """

    def __init__(self, name: str, batch: Batch, dispatch: Dispatch, together: Together) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        """The calls under way."""
        self._name = name
        self._batch = batch
        self._dispatch = dispatch
        self._together = together
        self._open: list[Member] = []
        self._context: Context = copy_context()
        """That of the first of them, whose trace the call is part of."""
        self._timer: asyncio.TimerHandle | None = None
        self._hurries = False

    async def __call__(self, delivery: Delivery) -> Settlement:
        """Handle a delivery together with others; raises why it failed, unless that is nobody's to decide about."""
        if delivery.stale:
            return REQUEUE
        work = WORK.get()
        if work is not None and work.unpublished is not None:
            return await self._dispatch.publish(delivery, work.unpublished)
        answer = await self._answer(delivery)
        if isinstance(answer, BaseException):
            if (settlement := self._dispatch.in_vain(delivery, answer)) is not None:
                return settlement
            raise answer
        if isinstance(answer, list):
            return await self._dispatch.publish(delivery, answer) if answer else ACK
        return answer

    async def _answer(self, delivery: Delivery) -> Answer:
        loop = asyncio.get_running_loop()
        member = Member(delivery, loop.create_future())
        if not self._open:
            self._context = copy_context()
        self._open.append(member)
        if len(self._open) >= self._batch.size or self._hurries:
            self._begin()
        elif self._timer is None:
            self._timer = loop.call_later(self._batch.within, self._begin)
        try:
            return await member.answer
        except asyncio.CancelledError:
            if member in self._open:  # while it waited for others
                self._open.remove(member)
            raise

    def hurry(self) -> None:
        """Wait for no more events: the bus stops."""
        self._hurries = True
        self._begin()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        members, self._open = self._open, []
        if members:
            self._context.run(WORK.set, None)
            task = asyncio.get_running_loop().create_task(
                self._handle(members), name=f"{self._name} batch", context=self._context
            )
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _handle(self, members: list[Member]) -> None:
        try:
            answers = await self._answers([member.delivery for member in members])
            for member, answer in zip(members, answers, strict=True):
                if not member.answer.done():
                    member.answer.set_result(answer)
        finally:
            for member in members:
                member.answer.cancel()  # those without an answer: the bus stops

    async def _answers(self, deliveries: Sequence[Delivery]) -> Sequence[Answer]:
        if len(deliveries) == 1:
            return [await self._alone(deliveries[0])]
        try:
            return await self._call(deliveries)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled():
                raise
            log.warning(
                "%s: a batch of %d failed as a whole with %s; its events are handled one by one",
                self._name,
                len(deliveries),
                name_of(error),
                extra={"subscription": self._name},
            )
        return [await self._alone(delivery) for delivery in deliveries]

    async def _call(self, deliveries: Sequence[Delivery]) -> Sequence[Answer]:
        answers = await self._together(deliveries)
        if len(answers) != len(deliveries):
            raise ConfigurationError(
                f"{self._name}: a plugin's batch() answered {len(answers)} of {len(deliveries)} deliveries: it returns something "
                "for each of them, in their order"
            )
        return answers

    async def _alone(self, delivery: Delivery) -> Answer:
        try:
            return (await self._call([delivery]))[0]
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled():
                raise
            return error


def published(dispatch: Dispatch) -> ConsumeBatch:
    """Return the innermost link of a batch's own chain: what is returned is published inside of it, as a transaction wants."""

    async def together(deliveries: Sequence[Delivery]) -> list[Settlement | BaseException]:
        found = await dispatch.together(deliveries)
        failed = await dispatch.send_all([message for each in found if isinstance(each, list) for message in each])
        if failed is not None:
            raise failed
        return [each if isinstance(each, BaseException) else ACK for each in found]

    return together

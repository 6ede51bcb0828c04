"""What becomes of a delivery: the one place where a settlement is carried out.

Two rules stand above all others. Nothing is forwarded for a delivery that is stale: the broker delivers it again, and
a copy would double it. Nothing is rejected into nowhere: only a queue that this bus declared, with its dead-letter
exchange, is known to keep what it is handed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import msgspec

from rabbitevents.brokers import Consumer, Verdict
from rabbitevents.errors import DecodeError, EncodeError, RabbitEventsError
from rabbitevents.facts import Fact, Forwarded, Stale
from rabbitevents.fields import event_fields
from rabbitevents.message import Delivery, Message, Outcome, Settlement

log: logging.Logger = logging.getLogger("rabbitevents.consumer")

Tell = Callable[[Callable[..., Fact], tuple[object, ...]], None]
"""Reports a fact, made only if somebody observes."""


class Settling:
    """Settles one subscription's deliveries.

    ``forward`` publishes a copy, and raises what kept it from being published. ``amend`` is what plugins do to a copy.
    ``may_reject`` says whether the queue is known to keep what is rejected.
    """

    def __init__(
        self,
        name: str,
        queue: str,
        *,
        forward: Callable[[Message], Awaitable[None]],
        amend: Callable[[Delivery, Message], Message] | None,
        may_reject: Callable[[], bool],
        tell: Tell,
    ) -> None:
        self.consumer: Consumer | None = None
        self._name = name
        self._queue = queue
        self._forward = forward
        self._amend = amend
        self._may_reject = may_reject
        self._tell = tell

    def settle(self, delivery: Delivery, verdict: Verdict) -> None:
        """Settle at the broker; for a delivery that is stale, say so and do nothing."""
        if self.consumer is not None and not self.consumer.settle(delivery, verdict):
            self._tell(Stale, (self._queue, True))

    def amended(self, delivery: Delivery, settlement: Settlement) -> Settlement:
        """Return the settlement with what plugins do to its copy."""
        if self._amend is None or settlement.message is None:
            return settlement
        return msgspec.structs.replace(settlement, message=self._amend(delivery, settlement.message))

    async def carry_out(self, delivery: Delivery, settlement: Settlement) -> RabbitEventsError | None:
        """Do what ``settlement`` says; return what kept it from being done: it is to be done again, and nothing else."""
        outcome = settlement.outcome
        if outcome is Outcome.FORWARD and settlement.message is not None:
            return await self._forwarded(delivery, settlement.message)
        if outcome is Outcome.REJECT:
            return self.reject(delivery)
        self.settle(delivery, Verdict.ACK if outcome is Outcome.ACK else Verdict.REQUEUE)
        return None

    async def _forwarded(self, delivery: Delivery, message: Message) -> RabbitEventsError | None:
        if delivery.stale:
            self._tell(Stale, (self._queue, True))
            return None
        try:
            await self._forward(message)
        except EncodeError as error:
            log.error(
                "%s is handed to the broker's own dead-lettering as it is, since no copy can carry it: %s",
                delivery.describe(),
                error,
                extra=event_fields(delivery),
            )
            return self.reject(delivery)
        except RabbitEventsError as error:
            return error
        self.settle(delivery, Verdict.ACK)
        after = message.after.total_seconds() if message.after is not None else 0.0
        self._tell(Forwarded, (self._name, message.type, message.id, message.exchange or message.routing_key, after))
        return None

    def reject(self, delivery: Delivery) -> RabbitEventsError | None:
        """Hand a delivery to the broker's own dead-lettering; return why not, where nothing is known to keep it there."""
        if self._may_reject():
            self.settle(delivery, Verdict.REJECT)
            return None
        return NotRejectedError(
            f"it would be rejected, but this bus did not declare queue {self._queue!r}, and cannot know whether "
            "what is rejected there is kept or dropped: have the queue declared with a dead-letter exchange by this bus "
            "(declare='active'), or take the event out of the queue by hand"
        )

    async def give_back(self, delivery: Delivery) -> None:
        """Have the broker deliver it again, without spending its delivery limit: a confirmed copy, and then the ack.

        (Before RabbitMQ 4.3 each give-back counts.) One that no copy can carry is given back as it is.
        """
        if delivery.stale:
            return
        try:
            await self._forward(Message.copy_of(delivery, queue=delivery.queue))
        except (DecodeError, EncodeError):
            self.settle(delivery, Verdict.REQUEUE)
        except RabbitEventsError as error:
            log.warning(
                "%s is given back as it is, at the cost of one of its deliveries: %s",
                delivery.describe(),
                error,
                extra=event_fields(delivery),
            )
            self.settle(delivery, Verdict.REQUEUE)
        else:
            self.settle(delivery, Verdict.ACK)


class NotRejectedError(RabbitEventsError):
    """What nothing is known to keep was not rejected."""

"""The recorder: a plugin that counts what a service does, so that its handlers need not."""

from __future__ import annotations

from datetime import UTC, datetime

from rabbitevents import Consume, Delivery, Fact, Message, Outcome, Plugin, Publish, Settlement, facts
from rabbitevents.demo.ledger import GivenUp, Handled, Published, Records, Retried


class Recorder(Plugin):
    """Record each event that the broker has confirmed, each effect before its event is acknowledged, and what failed.

    It stands last, so that it sees what handlers really did; with a store, inside of the transaction, of which its records
    are a part then. What is published before a kill, and not recorded, was
    published for an event that is not acknowledged: it comes again, and so does what is published for it, with the same id.
    """

    role = "record"

    def __init__(self, service: str, ledger: Records) -> None:
        self._service = service
        self._ledger = ledger

    async def publish(self, proceed: Publish, message: Message) -> None:
        """Publish, then note: what was not confirmed has raised by then. What waits at the broker is a timeout here."""
        await proceed(message)
        headers = message.headers
        at = str(headers.get("event-time") or "")
        if message.after is not None:
            at = (datetime.fromisoformat(at) + message.after).isoformat()
        self._ledger.note(
            Published(
                service=self._service,
                event=message.id,
                type=message.type,
                cause=str(headers.get("causation-id") or ""),
                root=message.properties.correlation_id or message.id,
                about=str(headers.get("entity-id") or ""),
                at=at,
                timeout=message.after is not None,
            )
        )

    async def consume(self, proceed: Consume, delivery: Delivery) -> Settlement:
        """Handle, then record, and only then let it be acknowledged."""
        settlement = await proceed(delivery)
        if settlement.outcome is Outcome.ACK:
            event = str(delivery.id)
            root = delivery.properties.correlation_id or event
            await self._ledger.record(Handled(self._service, delivery.queue, event, root))
        return settlement

    def observe(self, fact: Fact) -> None:
        """Note what is tried again, and what is given up on: that is decided further out."""
        now = datetime.now(UTC).isoformat()
        if isinstance(fact, facts.Retried):
            failed = (fact.attempt, fact.error, fact.after, fact.inline)
            self._ledger.note(Retried(self._service, fact.subscription, fact.id, now, *failed))
        elif isinstance(fact, facts.DeadLettered):
            self._ledger.note(GivenUp(self._service, fact.subscription, fact.id, now, fact.attempts, fact.reason))

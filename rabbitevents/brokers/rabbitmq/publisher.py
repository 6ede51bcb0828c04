"""The publishing half of RabbitMQ: one confirm channel, and everybody who waits for it.

A publish waits for the connection, for room, for the broker's answer, and, where the outcome is unknown, tries again
with the same id; all of it under the one deadline of its caller. One coarse ticker (`expire`) watches all deadlines.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from aiormq.abc import AbstractChannel

from rabbitevents.brokers.rabbitmq.connection import Connection
from rabbitevents.brokers.rabbitmq.outbound import Answer, OutboundLane
from rabbitevents.errors import EncodeError, NotSentError, OutcomeUnknownError, PublishError, RefusedError
from rabbitevents.message import Message
from rabbitevents.properties import encode_properties
from rabbitevents.states import Check
from rabbitevents.wire import Limits

log: logging.Logger = logging.getLogger("rabbitevents.broker")

_REOPEN_PAUSE = 0.05
"""Seconds between a channel that the broker closed and the next one; doubled up to `_REOPEN_PAUSE_MAX`."""
_REOPEN_PAUSE_MAX = 2.0

_REFUSED_PAUSES = (0.05, 0.2, 0.75)
"""Seconds before a refused publish is tried again: a quorum queue without a leader refuses for a moment (after its
declaration too, on 4.0), a full one until somebody consumes. Queues that took it get it again, under the same id."""

_NOT_FOUND: Final = 404
"""The reply code for an exchange that is not there."""

Prepare = Callable[[Connection, bool], Awaitable[None]]
"""Makes sure that the exchanges are there; True: something was not, look at everything. Raises `BrokerError`."""


class Publisher:
    """Publishes with confirms, `mandatory`, on one channel that is opened again whenever it is lost.

    The broker closes the channel for one bad publish (an exchange that does not exist, no permission), and the
    outcomes of all others in flight become unknown. They are then published one by one, so that the bad one is known:
    it is the only one in flight when the channel closes again, and only its caller gets the error. One that was alone
    the first time is tried again too: an exchange that was deleted is there again by then.
    """

    def __init__(self, *, in_flight: int, limits: Limits, prepare: Prepare) -> None:
        self._in_flight = in_flight
        self._limits = limits
        self._prepare = prepare
        self._connection: Connection | None = None
        self._lane: OutboundLane | None = None
        self._suspects = 0
        """Publishes that were in flight when the broker closed the channel for one of them; while there are any, the
        others wait, and one at a time is in flight."""
        self._coming = 0
        """Publishes that were given a turn and have not written yet."""
        self._waiting: deque[tuple[asyncio.Future[bool], float]] = deque()
        self._loop = asyncio.get_running_loop()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self.detail: str = ""

    # --- the channel ---

    async def restore(self, connection: Connection) -> None:
        """Open the channel on a new connection, and keep it open as long as that stands. Raises `BrokerError`."""
        await self._prepare(connection, False)
        channel, lane = await self._open(connection)
        self._keeper = self._loop.create_task(
            self._keep(connection, channel, lane), name="rabbitevents publishing channel"
        )

    async def _open(self, connection: Connection) -> tuple[AbstractChannel, OutboundLane]:
        channel = await connection.channel(confirms=True)
        lane = OutboundLane(channel.number, connection.transport, frame_max=connection.frame_max, on_room=self.wake)
        connection.attach(lane)
        self._connection, self._lane, self.detail = connection, lane, ""
        self.wake()
        return channel, lane

    async def _keep(self, connection: Connection, channel: AbstractChannel, lane: OutboundLane) -> None:
        """Open another channel whenever one was closed; end with the connection."""
        pause = _REOPEN_PAUSE
        while True:
            reason = await asyncio.shield(lane.ended)
            self.detail = reason
            if connection.lost.done():
                return
            log.warning("the publishing channel was closed: %s", reason)
            missing = lane.close_code == _NOT_FOUND
            await connection.close_channel(channel, lane)
            try:
                await self._prepare(connection, missing)
                channel, lane = await self._open(connection)
                pause = _REOPEN_PAUSE
            except Exception as error:
                # The keeper must not end while the connection stands; it tries again, and health shows why.
                self.detail = str(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _REOPEN_PAUSE_MAX)
                if connection.lost.done():
                    return

    # --- publishing ---

    async def publish(self, message: Message, deadline: float, *, left: bool = False) -> bool:
        """Publish as `Broker.publish` says. ``left``: it has left before, with an outcome that nobody knows."""
        properties = self._checked(message)
        suspect = False
        pauses = iter(_REFUSED_PAUSES)
        try:
            while True:
                lane = self._lane_with_room()
                if lane is None or self._waiting:
                    lane = await self._lane_for(message, deadline, left)
                answer = await lane.publish(message, properties, deadline)
                if answer is Answer.CONFIRMED:
                    return True
                if answer is Answer.REFUSED and await self._paused(pauses, deadline):
                    continue
                if answer is not Answer.LOST:
                    return self._settled(message, answer)
                left = True
                if lane.closed_by_publish:
                    if suspect:
                        self._blame(message, lane)
                    self._suspects += not suspect
                    suspect = True
        finally:
            if suspect:
                self._suspects -= 1
                self.wake()

    async def publish_many(self, messages: Sequence[Message], deadline: float) -> list[bool | Exception]:
        """Publish as `Broker.publish_many` says: in flight together, without a task for each.

        Those that were refused or lost go the way of `publish`, from its beginning.
        """
        sent: list[asyncio.Future[Answer] | Exception] = []
        for message in messages:
            try:
                properties = self._checked(message)
                lane = self._lane_with_room()
                if lane is None or self._waiting:
                    lane = await self._lane_for(message, deadline, left=False)
                sent.append(lane.publish(message, properties, deadline))
            except (PublishError, EncodeError) as error:
                sent.append(error)
        answers = [each if isinstance(each, Exception) else await each for each in sent]
        again = [n for n, answer in enumerate(answers) if answer is Answer.REFUSED or answer is Answer.LOST]
        repeated = await asyncio.gather(
            *(self.publish(messages[n], deadline, left=answers[n] is Answer.LOST) for n in again),
            return_exceptions=True,
        )
        results: list[bool | Exception] = [
            answer if isinstance(answer, Exception) else self._outcome(message, answer)
            for message, answer in zip(messages, answers, strict=True)
        ]
        for number, result in zip(again, repeated, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, Exception):
                raise result
            results[number] = result
        return results

    def _outcome(self, message: Message, answer: Answer) -> bool | Exception:
        if answer is Answer.EXPIRED:
            return OutcomeUnknownError(message, self._why("the deadline passed before the broker answered"))
        return answer is Answer.CONFIRMED

    def _checked(self, message: Message) -> bytes:
        """Return a message's encoded properties. Raises `EncodeError` for one that cannot be written."""
        properties = encode_properties(message.properties)
        self._limits.check(message.body, properties, message.type)
        return properties

    async def _paused(self, pauses: Iterator[float], deadline: float) -> bool:
        """Wait before a refused publish is tried again; False when it has been tried often enough, or it is too late."""
        pause = next(pauses, None)
        if pause is None or self._loop.time() + pause >= deadline:
            return False
        await asyncio.sleep(pause)
        return True

    def _settled(self, message: Message, answer: Answer) -> bool:
        if answer is Answer.REFUSED:
            raise RefusedError(message, "a queue is full, or could not take it")
        if answer is Answer.EXPIRED:
            raise OutcomeUnknownError(message, self._why("the deadline passed before the broker answered"))
        return False

    @staticmethod
    def _blame(message: Message, lane: OutboundLane) -> None:
        """Raise `RefusedError` if it was this message that the broker closed the channel for: no other was in flight."""
        if lane.unanswered_at_end == 1:
            raise RefusedError(message, lane.ended.result())

    def _lane_with_room(self) -> OutboundLane | None:
        """Return the open channel, if one more publish may be written on it now."""
        lane = self._lane
        if lane is not None and self._vacancies(lane) > 0:
            return lane
        return None

    def _vacancies(self, lane: OutboundLane) -> int:
        connection = self._connection
        if connection is None or lane.ended.done() or connection.tap.paused or connection.tap.blocked is not None:
            return 0
        return (1 if self._suspects else self._in_flight) - lane.waiting - self._coming

    async def _lane_for(self, message: Message, deadline: float, left: bool) -> OutboundLane:
        """Return the channel that a publish may be written on, once it is its turn. Raises as `_room` does."""
        while True:
            await self._room(message, deadline, left)
            lane = self._lane_with_room()
            if lane is not None:
                return lane

    async def _room(self, message: Message, deadline: float, left: bool) -> None:
        """Wait until it is this publish's turn. Raises at the deadline, and says whether anything has left before."""
        if self._closed:
            raise (OutcomeUnknownError if left else NotSentError)(message, "the bus has stopped")
        turn: asyncio.Future[bool] = self._loop.create_future()
        self._waiting.append((turn, deadline))
        self.wake()
        try:
            if await turn:
                return
        finally:
            if turn.done() and not turn.cancelled() and turn.result():
                self._coming -= 1
        if left:
            raise OutcomeUnknownError(message, self._why("the connection was lost before the broker answered"))
        raise NotSentError(message, self._why("the deadline passed"))

    def _why(self, otherwise: str) -> str:
        connection = self._connection
        if connection is None or connection.lost.done():
            return f"{otherwise}; there is no connection to the broker"
        if connection.tap.blocked is not None:
            return f"{otherwise}; the broker blocks publishers: {connection.tap.blocked}"
        return f"{otherwise}; {self.detail}" if self.detail else otherwise

    def wake(self) -> None:
        """Give turns to those who wait, as many as there is room for."""
        lane = self._lane
        if lane is None or not self._waiting:
            return
        room = self._vacancies(lane)
        while room > 0 and self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                self._coming += 1
                turn.set_result(True)
                room -= 1

    def expire(self, now: float) -> None:
        """End whatever is past its deadline (event loop's clock)."""
        if self._lane is not None:
            self._lane.expire(now)
            if self._lane.unanswered >= self._in_flight:
                self._lane.lost(f"the broker left {self._lane.unanswered} publishes unanswered")
        if self._waiting:
            for turn, deadline in self._waiting:
                if deadline <= now and not turn.done():
                    turn.set_result(False)
            self._waiting = deque(waiting for waiting in self._waiting if not waiting[0].done())
            self.wake()

    def check(self) -> Check:
        """Say whether publishing works, as far as can be told."""
        lane = self._lane
        stands = lane is not None and not lane.ended.done()
        if lane is not None and stands and lane.unanswered:
            said = f"{lane.unanswered} publishes are unanswered past their deadlines"
            return Check("publishing channel", False, said, degraded=True)
        return Check("publishing channel", stands, self.detail)

    async def drain(self, deadline: float) -> None:
        """Wait until every publish has its answer, or ``deadline`` (event loop's clock). Does not raise."""
        while self._lane is not None and self._loop.time() < deadline:
            answers = [p.answer for p in self._lane.pending.values() if not p.answer.done()]
            if not answers:
                return
            await asyncio.wait(answers, timeout=deadline - self._loop.time())

    def close(self) -> None:
        """Stop keeping the channel; whoever still waits, or comes later, gets an error."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
        if self._lane is not None:
            self._lane.lost("closed")
        self.expire(float("inf"))

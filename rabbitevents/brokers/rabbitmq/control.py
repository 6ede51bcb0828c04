"""A channel for questions: declarations, bindings and looks, a frame out and a frame back, with nothing in between.

A start with 200 handlers asks some 3,000 questions, half of which the broker refuses when nothing is there yet, and a
refusal costs the channel. So a channel is opened by the same write as its first question, without waiting for the
broker's agreement, and the answer comes straight from the `Tap`: a client library's lock, writer, reader and task for
each of them took most of the time (`docs/decisions/0028-many-handlers.md`).

Source: AMQP 0-9-1, sections 1.5 (channel), 1.6 (exchange), 1.7 (queue).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar, cast

from pamqp import commands as spec
from pamqp import frame as frames
from pamqp.base import Frame

from rabbitevents.brokers.rabbitmq.frames import (
    CHANNEL_CLOSE,
    CHANNEL_CLOSE_OK,
    CHANNEL_OPEN_OK,
    FrameError,
    close_reason,
    named,
)
from rabbitevents.brokers.rabbitmq.inbound import Turn

A = TypeVar("A", bound=Frame)

_PROLOGUE: Final = 7
"""Bytes of a frame before its payload: type, channel, size."""


class QuestionError(Exception):
    """A question was refused, or its channel was lost; ``code`` is the broker's reply code, 0 where it gave none."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class ControlChannel:
    """Asks one question at a time. One that is refused, or not answered, ends it.

    What its questions return can be awaited at once, and raises `QuestionError`, or what cannot be written as AMQP. ``gone`` is
    called once the broker knows nothing of the channel any more, and its number can be another's.
    """

    def __init__(self, number: int, turn: Turn, gone: Callable[[ControlChannel], None]) -> None:
        self.number = number
        self.is_closed: bool = False
        """Whether nothing can be asked any more."""
        self._turn = turn
        self._gone = gone
        self._opened = False
        self._over = ""
        """Why nothing is written any more: the connection is gone."""
        self._asked: Frame | None = None
        self._answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    # --- questions ---

    def queue_declare(
        self,
        queue: str,
        *,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Awaitable[spec.Queue.DeclareOk]:
        """Declare a queue; with ``passive`` only look."""
        told = {"passive": passive, "durable": durable, "exclusive": exclusive, "arguments": dict(arguments or {})}
        return self._ask(spec.Queue.DeclareOk, spec.Queue.Declare, queue=queue, **told)

    def queue_delete(
        self, queue: str, *, if_unused: bool = False, if_empty: bool = False
    ) -> Awaitable[spec.Queue.DeleteOk]:
        """Delete a queue."""
        told = {"if_unused": if_unused, "if_empty": if_empty}
        return self._ask(spec.Queue.DeleteOk, spec.Queue.Delete, queue=queue, **told)

    def queue_bind(self, queue: str, exchange: str, *, routing_key: str) -> Awaitable[spec.Queue.BindOk]:
        """Bind a queue to an exchange."""
        told = {"queue": queue, "exchange": exchange, "routing_key": routing_key}
        return self._ask(spec.Queue.BindOk, spec.Queue.Bind, **told)

    def queue_unbind(
        self, queue: str, exchange: str, *, routing_key: str, arguments: Mapping[str, Any] | None = None
    ) -> Awaitable[spec.Queue.UnbindOk]:
        """Unbind a queue."""
        told = {"queue": queue, "exchange": exchange, "routing_key": routing_key, "arguments": dict(arguments or {})}
        return self._ask(spec.Queue.UnbindOk, spec.Queue.Unbind, **told)

    def exchange_declare(
        self,
        exchange: str,
        *,
        exchange_type: str = "direct",
        passive: bool = False,
        durable: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Awaitable[spec.Exchange.DeclareOk]:
        """Declare an exchange; with ``passive`` only look."""
        told = {"exchange_type": exchange_type, "passive": passive, "durable": durable}
        arguments = dict(arguments or {})
        return self._ask(spec.Exchange.DeclareOk, spec.Exchange.Declare, exchange=exchange, arguments=arguments, **told)

    def exchange_delete(self, exchange: str, *, if_unused: bool = False) -> Awaitable[spec.Exchange.DeleteOk]:
        """Delete an exchange."""
        return self._ask(spec.Exchange.DeleteOk, spec.Exchange.Delete, exchange=exchange, if_unused=if_unused)

    def exchange_bind(self, *, destination: str, source: str, routing_key: str) -> Awaitable[spec.Exchange.BindOk]:
        """Bind an exchange to another one."""
        told = {"destination": destination, "source": source, "routing_key": routing_key}
        return self._ask(spec.Exchange.BindOk, spec.Exchange.Bind, **told)

    def exchange_unbind(
        self, *, destination: str, source: str, routing_key: str, arguments: Mapping[str, Any] | None = None
    ) -> Awaitable[spec.Exchange.UnbindOk]:
        """Unbind an exchange from another one."""
        told = {"destination": destination, "source": source, "routing_key": routing_key}
        return self._ask(spec.Exchange.UnbindOk, spec.Exchange.Unbind, arguments=dict(arguments or {}), **told)

    def _ask(self, answer: type[A], method: type[Frame], **told: Any) -> asyncio.Future[A]:
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        try:
            asked = method(**told)
            written = frames.marshal(asked, self.number)
            if self.is_closed:
                raise QuestionError(self._over or "the channel is closed")
        except Exception as error:
            # pamqp raises whatever it likes for what cannot be written; it is the answer to the question, like a refusal.
            future.set_exception(error)
            return future
        opening = b"" if self._opened else frames.marshal(spec.Channel.Open(), self.number)
        self._opened = True
        self._asked, self._answer = asked, future
        self._write(opening + written)
        return future

    def _write(self, out: bytes) -> None:
        self._turn.soon(lambda: b"" if self._over else out)

    def leave(self) -> None:
        """Close the channel, if it stands; nobody waits for that."""
        if self.is_closed:
            return
        self.is_closed = True
        if self._opened:
            self._write(frames.marshal(spec.Channel.Close(0, "", 0, 0), self.number))
        else:
            self._gone(self)

    # --- what the tap tells ---

    def method(self, buffer: bytes, at: int, end: int) -> bool:
        """Take an answer. None of it is the client library's."""
        kind = buffer[at : at + 4]
        if kind == CHANNEL_CLOSE:
            code, said, _, _ = close_reason(buffer, at, end)
            self._write(frames.marshal(spec.Channel.CloseOk(), self.number))
            self._end(QuestionError(said, code))
            self._gone(self)
        elif kind == CHANNEL_CLOSE_OK:
            self._end(QuestionError("the channel was closed"))
            self._gone(self)
        elif kind != CHANNEL_OPEN_OK and not self.is_closed:  # late answers are nobody's
            self._answered(buffer[at - _PROLOGUE : end + 1])
        return True

    def _answered(self, whole: bytes) -> None:
        try:
            answer = cast("Frame", frames.unmarshal(whole)[2])
        except Exception as error:
            # pamqp raises whatever it likes for bytes that are no method.
            raise FrameError(f"a method that cannot be read ({error})") from error
        asked = self._asked
        if asked is None or answer.name not in asked.valid_responses:
            raise FrameError(f"{answer.name} in answer to {'nothing' if asked is None else asked.name}")
        self._asked = None
        if not self._answer.done():
            self._answer.set_result(answer)

    def header(self, buffer: bytes, at: int, end: int) -> None:
        """Refuse a content header: nothing is delivered here."""
        raise FrameError(f"{named(2)} on a channel for questions")

    def body(self, buffer: bytes, at: int, end: int) -> None:
        """Refuse a body."""
        raise FrameError(f"{named(3)} on a channel for questions")

    def flush(self) -> None:
        """Nothing comes together here."""

    def lost(self, reason: str) -> None:
        """Learn that the connection is gone."""
        self._over = reason
        self._end(QuestionError(reason))

    def writable(self) -> None:
        """Nothing waits here: a question is few bytes, and the transport keeps them."""

    def _end(self, why: QuestionError) -> None:
        self.is_closed = True
        if self._asked is not None and not self._answer.done():
            self._answer.set_exception(why)
        self._asked = None

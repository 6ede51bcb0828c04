"""One way to ask the client library for anything: with a deadline, and with one kind of error for all that goes wrong.

aio-pika and aiormq raise CancelledError for lost connections, RuntimeErrors for closed channels and bare Exceptions
besides; none of that leaves this room.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

import aiormq

from rabbitevents.errors import BrokerError, TopologyError

T = TypeVar("T")

RPC_DEADLINE = 10.0
"""Seconds that the broker has to answer one question (declare, consume, open a channel)."""

CLOSE_DEADLINE = 2.0
"""Seconds that a channel or a connection has to close politely, before it is broken off."""


async def within(seconds: float, work: Awaitable[T], what: str) -> T:
    """Await ``work`` in a task of its own, at most ``seconds``. Raises `BrokerError` for all that goes wrong in there.

    A caller that is cancelled leaves the work running: a question that is broken off in the middle would cost its
    channel, and once it cost the connection. Work that gets no answer is broken off: whoever asks on a channel that
    others write to ends their writing first, when this raises.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.add_done_callback(look)
        raise
    if not done:
        task.cancel()
        task.add_done_callback(look)
        raise BrokerError(f"{what}: no answer within {seconds:g} s")
    if task.cancelled():
        raise BrokerError(f"{what}: the connection broke off")
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, BrokerError | TopologyError):
        raise error
    raise BrokerError(f"{what}: {explain(error)}", code=code_of(error)) from error


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    """Await all of them side by side, and return what they return, in their order. Raises the first error of any."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def look(task: asyncio.Future[Any]) -> None:
    """Look at the outcome of something that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def explain(error: BaseException) -> str:
    """Say in words what a connection or the client library raised."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the broker's certificate was not accepted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "nobody listens there (connection refused)"
    text = str(error)
    return text.removeprefix("None ") or type(error).__name__


def code_of(error: BaseException) -> int:
    """Return the reply code that an error of the client library stands for; 0 where there is none."""
    known: dict[type[BaseException], int] = {
        aiormq.exceptions.ProbableAuthenticationError: 403,
        aiormq.exceptions.ChannelAccessRefused: 403,
        aiormq.exceptions.ChannelNotFoundEntity: 404,
        aiormq.exceptions.ChannelLockedResource: 405,
        aiormq.exceptions.ChannelPreconditionFailed: 406,
        aiormq.exceptions.ConnectionNotAllowed: 530,
    }
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    return (
        known.get(type(error))
        or next((a for a in error.args if isinstance(a, int)), 0)
        or (code if isinstance(code, int) else 0)
    )

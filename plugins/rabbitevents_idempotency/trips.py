"""Round trips to Redis that many callers share: what was asked in one turn of the event loop leaves together.

One trip is under way at a time, in a task of its own; what is asked meanwhile takes the next one. A caller that is
cancelled leaves its command where it is: nothing on the wire is ever cancelled but by the deadline of its trip, and
that connection is not used again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from typing import Any, Final

import msgspec
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoPermissionError, NoScriptError, RedisError

from rabbitevents_idempotency.script import SCRIPT, SHA
from rabbitevents_idempotency.store import StoreUnavailableError

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")

MOST: Final = 256
"""Commands in one trip: so many take Redis about a millisecond."""


NEEDS: Final = "ACL SETUSER <user> ~<prefix>* +evalsha +script|load +time +get +set"
"""The rights that the script takes, and to load it."""


class Call(msgspec.Struct, eq=False):
    """A command on its way: its ticket, the key and what is asked of it, and where the answer goes."""

    ticket: str
    key: str
    question: str
    answer: asyncio.Future[list[str]]


class RoundTrips:
    """Runs the script for many callers. Each hears within twice ``timeout`` seconds."""

    def __init__(self, client: Redis | RedisCluster, timeout: float) -> None:
        self._client: Any = client  # whose annotations are partly unknown
        self._timeout = timeout
        self._waiting: deque[Call] = deque()
        self._number = 0
        self._ahead: float | None = None
        """How far Redis's clock is ahead of the loop's, in milliseconds, as the last reply told; None before the first."""
        self._conductor: asyncio.Task[None] | None = None

    def ask(self, key: str, question: str) -> asyncio.Future[list[str]]:
        """Return the words that the script will answer, or `StoreUnavailableError`. The question is in its words too."""
        loop = asyncio.get_running_loop()
        self._number += 1
        answer: asyncio.Future[list[str]] = loop.create_future()
        self._waiting.append(Call(str(self._number), key, question, answer))
        if self._conductor is None or self._conductor.done():
            # A context of its own: the first caller's span or handling is no cause of what the others ask for.
            self._conductor = loop.create_task(self._conduct(), name="claims on their way", context=Context())
        return answer

    async def _conduct(self) -> None:
        """Make one trip after the other until nobody waits."""
        under_way: list[Call] = []
        try:
            while self._waiting:
                under_way = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                failure = await self._go(under_way)
                if failure is not None:
                    _fail([*under_way, *self._waiting], failure)  # nobody is to wait for trip after trip
                    self._waiting.clear()
        finally:
            _fail([*under_way, *self._waiting], "the event loop ends")
            self._waiting.clear()

    async def _go(self, calls: Sequence[Call]) -> str | None:
        """Have the calls answered under one deadline; return why they could not be."""
        try:
            async with asyncio.timeout(self._timeout):
                missing = await self._send(calls)
                if missing:
                    await self._client.script_load(SCRIPT)
                    missing = await self._send(missing)
                return "it keeps no scripts" if missing else None
        except TimeoutError as error:
            return f"no answer within {self._timeout:g} s{_cause(error)}"
        except (RedisError, OSError) as error:
            return f"{type(error).__name__}: {error}{_rights(error)}"
        except Exception as error:
            # Whatever a client library has in store: those who wait must hear of it.
            log.exception("a round trip to Redis failed in a way that nobody expected")
            return type(error).__name__

    async def _send(self, calls: Sequence[Call]) -> list[Call]:
        """Send the calls in one write and hand out the replies; return those for which Redis lacks the script."""
        sent_at = asyncio.get_running_loop().time() * 1000
        late = int(sent_at + self._ahead + self._timeout * 1000) if self._ahead is not None else 0
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command("EVALSHA", SHA, 1, call.key, f"{call.ticket} {late} {call.question}")
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        if not all(_is_reply_to(call, reply) for call, reply in zip(calls, replies, strict=True)):
            await self._close_idle()
            raise RedisError("a connection was out of step: it held another command's reply")
        missing: list[Call] = []
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, NoScriptError):
                missing.append(call)
            elif isinstance(reply, Exception):
                _answer(call, StoreUnavailableError(f"Redis refused: {reply}{_rights(reply)}"))
            else:
                _, time, *words = _words(reply)
                self._ahead = int(time) - sent_at
                _answer(call, words)
        return missing

    async def _close_idle(self) -> None:
        """Close the connections that nobody uses, the one that was just used among them."""
        if isinstance(self._client, RedisCluster):
            await self._client.aclose()
        else:
            await self._client.connection_pool.disconnect(inuse_connections=False)


def _cause(error: BaseException | None) -> str:
    """Say what a client that tries again and again was up against when its time ran out."""
    while error is not None and not isinstance(error, RedisError):
        error = error.__cause__ or error.__context__
    return f" ({type(error).__name__}: {error})" if error is not None else ""


def _rights(error: Exception) -> str:
    """Say which rights a store takes, where one is missing. Inside a script, Redis 7 does not say which command it was."""
    is_forbidden = isinstance(error, NoPermissionError) or "can't run this command" in str(error)
    return f"; grant what the store takes: {NEEDS}" if is_forbidden else ""


def _is_reply_to(call: Call, reply: Any) -> bool:
    return isinstance(reply, Exception) or _words(reply)[:1] == [call.ticket]


def _words(reply: Any) -> list[str]:
    """Split a reply; whether it comes as bytes or as text is the client's setting (``decode_responses``)."""
    text = reply.decode("ascii", "replace") if isinstance(reply, bytes) else str(reply)
    return text.split()


def _answer(call: Call, answer: list[str] | StoreUnavailableError) -> None:
    """Tell the caller, unless it was cancelled."""
    if call.answer.done():
        return
    if isinstance(answer, StoreUnavailableError):
        call.answer.set_exception(answer)
        call.answer.exception()  # it may be gone all the same
    else:
        call.answer.set_result(answer)


def _fail(calls: Sequence[Call], why: str) -> None:
    for call in calls:
        _answer(call, StoreUnavailableError(f"Redis: {why}"))

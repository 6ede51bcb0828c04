"""Round trips to one Redis node that many callers share: what is asked in one turn of the event loop leaves together.

One trip is under way at a time, in a task of its own, so that a release never overtakes the claim of a caller that is
gone; what is asked meanwhile takes the next one. A caller that is cancelled leaves its question where it is: nothing on
the wire is ever cancelled but by the deadline of its trip, and that connection is not used again. A node that failed is
asked by one caller at a time, and refuses the others at once.

The clients' own script objects are not used: they answer NOSCRIPT with a SCRIPT LOAD, which a user needs a right for and
a cluster sends to every node, be it one that hangs. An EVAL does both in one trip.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from itertools import count
from typing import Any, Final

import msgspec

from rabbitevents_idempotency.script import SCRIPT, SHA
from rabbitevents_idempotency.store import KeyRefusedError, StoreForbiddenError, StoreUnavailableError

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")

MOST: Final = 256
"""Questions in one trip: so many take Redis about a millisecond."""

REST: Final = 0.25
"""Seconds for which a node that failed is not asked again."""

FORBIDDEN: Final = (
    "AuthenticationError", "NoPermissionError", "NOPERM", "NOAUTH", "The user executing the script can't run",
    "ACL failure in script",
)  # fmt: skip
"""What the client and Redis say of what this user may not do."""

CLIENTS: Final = frozenset({"RedisError", "ValkeyError"})
"""What all errors of a client are, by the client."""


class Question(msgspec.Struct, eq=False):
    """What is asked of a key, and where the answer goes."""

    key: str
    text: str
    answer: asyncio.Future[str]


class Trips:
    """Asks one node for many callers. Each hears within twice ``timeout`` seconds.

    ``slot_of`` is a cluster's: a script has keys of one slot. ``partial`` says that there are other nodes.
    """

    def __init__(
        self, client: Any, timeout: float, *, slot_of: Callable[[str], int] | None = None, partial: bool = False
    ) -> None:
        self._client = client
        self._timeout = timeout
        self._slot_of = slot_of
        self._partial = partial
        self._waiting: deque[Question] = deque()
        self._tickets = count(1)
        self._late_by: float | None = None
        """What is sent at a time of the loop is late so many milliseconds after it, on the node's clock, as its last reply
        told; None before the first."""
        self._conductor: asyncio.Task[None] | None = None
        self._failed: StoreUnavailableError | None = None
        self._rests_till = 0.0

    def ask(self, key: str, text: str, *, anyway: bool = False) -> asyncio.Future[str]:
        """Return the line that the script will answer, or `StoreUnavailableError`, or `KeyRefusedError`.

        The question is a line, too. A node that failed is asked ``anyway``, or when it has rested.
        """
        loop = asyncio.get_running_loop()
        question = Question(key, text, loop.create_future())
        is_idle = self._conductor is None or self._conductor.done()
        if self._failed is not None and not anyway and not (is_idle and loop.time() >= self._rests_till):
            _fail([question], self._failed)
            return question.answer
        self._waiting.append(question)
        if is_idle:
            # A context of its own: the first caller's span or handling is no cause of what the others ask for.
            self._conductor = loop.create_task(self._conduct(), name="claims on their way", context=untraced())
        return question.answer

    async def _conduct(self) -> None:
        """Make one trip after the other until nobody waits, or the node fails: nobody is to wait for trip after trip."""
        loop, under_way = asyncio.get_running_loop(), list[Question]()
        try:
            while self._waiting:
                await asyncio.sleep(0)  # those who were just answered may have another question
                under_way = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                self._failed = await self._go(under_way)
                if self._failed is not None:
                    break
        finally:
            self._rests_till = loop.time() + REST
            _fail([*under_way, *self._waiting], self._failed or self._trouble("the event loop ends"))
            self._waiting.clear()

    async def _go(self, questions: Sequence[Question]) -> StoreUnavailableError | None:
        """Have the questions answered under one deadline; return why some have no answer."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._send(questions, "EVALSHA", SHA)
        except Exception as error:
            # Whatever a client library has in store: those who wait must hear of it.
            return self._failure(error)

    async def _send(self, questions: Sequence[Question], command: str, script: str) -> StoreUnavailableError | None:
        """Send the questions in one write and hand out the answers; return why some have none."""
        failed: StoreUnavailableError | None = None
        unknown: list[Question] = []
        groups = [(next(self._tickets), group) for group in self._grouped(questions)]
        sent_at = asyncio.get_running_loop().time() * 1000
        late = 0 if self._late_by is None else int(sent_at + self._late_by)
        replies = await self._execute([
            (command, script, len(group), *[q.key for q in group], ticket, late, "".join([q.text for q in group]))
            for ticket, group in groups
        ])  # fmt: skip
        for (ticket, group), reply in zip(groups, replies, strict=True):
            if type(reply).__name__ == "NoScriptError" and command == "EVALSHA":
                unknown += group  # this node does not know the script yet
            elif isinstance(reply, Exception):
                failed = self._failure(reply)
                _fail(group, failed)
            else:
                self._late_by = await self._answered(group, ticket, reply) - sent_at + self._timeout * 1000
        return (await self._send(unknown, "EVAL", SCRIPT) if unknown else None) or failed

    async def _execute(self, commands: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        """Return a reply, or what went wrong, for each command."""
        if len(commands) == 1:
            try:
                return [await self._client.execute_command(*commands[0])]
            except Exception as error:
                # As a pipeline has it: whatever it is, it is looked at where replies are.
                return [error]
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: Sequence[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def _answered(self, group: Sequence[Question], ticket: int, reply: Any) -> int:
        """Hand out the answers, and return the node's time, in milliseconds."""
        # Whether it comes as bytes or as text is the client's setting (``decode_responses``).
        head, *lines = (reply.decode() if isinstance(reply, bytes) else str(reply)).split("\n")
        theirs, _, now = head.partition(" ")
        if theirs != str(ticket) or len(lines) != len(group):
            await self._close_idle()
            raise self._trouble("a connection was out of step: it held another command's reply")
        for question, line in zip(group, lines, strict=True):
            if question.answer.done():
                continue  # who asked is gone
            if line == "refused":
                question.answer.set_exception(KeyRefusedError(
                    f"Redis holds something else than a claim under {question.key!r}: give RedisStore a prefix= that "
                    "nobody else uses"
                ))  # fmt: skip
            else:
                question.answer.set_result(line)
        return int(now)

    def _grouped(self, questions: Sequence[Question]) -> Sequence[Sequence[Question]]:
        """Return the questions that one script can answer."""
        if self._slot_of is None:
            return [questions]
        slots: dict[int, list[Question]] = {}
        for question in questions:
            slots.setdefault(self._slot_of(question.key), []).append(question)
        return list(slots.values())

    async def _close_idle(self) -> None:
        """Close the connections that nobody uses, the one that was just used among them."""
        if self._slot_of is not None:
            await self._client.aclose()
        else:
            await self._client.connection_pool.disconnect(inuse_connections=False)

    def _failure(self, error: BaseException) -> StoreUnavailableError:
        """Say what went wrong, in this store's words."""
        if isinstance(error, StoreUnavailableError):
            return error
        cause = _cause(error)
        text = f"{type(cause).__name__}: {cause}"
        if any(word in text for word in FORBIDDEN):
            return StoreForbiddenError(f"Redis does not let this user do it: {text}", partial=self._partial)
        if isinstance(error, TimeoutError):
            return self._trouble(f"no answer within {self._timeout:g} s{f' ({text})' if cause is not error else ''}")
        if not isinstance(cause, OSError) and CLIENTS.isdisjoint(each.__name__ for each in type(cause).__mro__):
            log.error("a round trip to Redis failed in a way that nobody expected", exc_info=error)
            text = type(error).__name__
        return self._trouble(text)

    def _trouble(self, text: str) -> StoreUnavailableError:
        return StoreUnavailableError(f"Redis: {text}", partial=self._partial)


def untraced() -> Context:
    """Return an empty context in which instrumented clients make no spans: a trip is part of many traces, and of none."""
    context, api = Context(), sys.modules.get("opentelemetry.context")
    if api is not None:
        context.run(api.attach, api.set_value("suppress_instrumentation", True, api.Context()))
    return context


def _cause(error: BaseException) -> BaseException:
    """Return what a client that tries again and again was up against when its time ran out."""
    cause: BaseException | None = error
    while isinstance(cause, (TimeoutError, asyncio.CancelledError)):
        cause = cause.__cause__ or cause.__context__
    return cause or error


def _fail(questions: Sequence[Question], why: StoreUnavailableError) -> None:
    for question in questions:
        if not question.answer.done():
            question.answer.set_exception(type(why)(str(why), partial=why.partial))
            question.answer.exception()  # who asked may be gone

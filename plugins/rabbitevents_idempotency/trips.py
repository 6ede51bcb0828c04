"""Round trips to one Redis node that many callers share: what is asked in one turn of the event loop leaves together.

One trip is under way at a time, in a task of its own; what is asked meanwhile takes the next one. A caller that is
cancelled leaves its question where it is: nothing on the wire is ever cancelled but by the deadline of its trip, and
that connection is not used again. A node that failed is asked by one caller at a time, and refuses the others at once.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from itertools import count
from typing import Any, Final, Protocol

import msgspec

from rabbitevents_idempotency.script import SCRIPT, SHA
from rabbitevents_idempotency.store import FIRST_PAUSE, LONGEST_PAUSE, StoreForbiddenError, StoreUnavailableError

log: logging.Logger = logging.getLogger("rabbitevents.idempotency")

MOST: Final = 256
"""Questions in one trip: so many take Redis about a millisecond."""

FORBIDDEN: Final = ("NOPERM", "NOAUTH", "The user executing the script can't run", "ACL failure in script")
"""What Redis says of what this user may not do, where the client has no class of its own for it."""

CLIENTS: Final = frozenset({"RedisError", "ValkeyError"})
"""What all errors of a client are, by the client."""


class Client(Protocol):
    """What is used of a client: ``redis.asyncio``'s, ``valkey.asyncio``'s, or another of the same make."""

    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]:
        """Send a command, and return its answer."""
        ...


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
        self, client: Client, timeout: float, *, slot_of: Callable[[str], int] | None = None, partial: bool = False
    ) -> None:
        self._client: Any = client  # whose annotations are partly unknown
        self._timeout = timeout
        self._slot_of = slot_of
        self._partial = partial
        self._waiting: deque[Question] = deque()
        self._tickets = count(1)
        self._ahead: float | None = None
        """How far the node's clock is ahead of the loop's, in milliseconds, as its last reply told; None before the first."""
        self._conductor: asyncio.Task[None] | None = None
        self._failed: StoreUnavailableError | None = None
        self._pause = 0.0
        self._asked_again_at = 0.0

    def ask(self, key: str, text: str, *, anyway: bool = False) -> asyncio.Future[str]:
        """Return the line that the script will answer, or `StoreUnavailableError`. The question is a line, too.

        A node that failed is asked ``anyway``, or when its pause is over.
        """
        loop = asyncio.get_running_loop()
        question = Question(key, text, loop.create_future())
        is_idle = self._conductor is None or self._conductor.done()
        if self._failed is not None and not anyway and not (is_idle and loop.time() >= self._asked_again_at):
            _fail([question], self._failed)
            return question.answer
        self._waiting.append(question)
        if is_idle:
            # A context of its own: the first caller's span or handling is no cause of what the others ask for.
            self._conductor = loop.create_task(self._conduct(), name="claims on their way", context=untraced())
        return question.answer

    async def _conduct(self) -> None:
        """Make one trip after the other until nobody waits."""
        under_way: list[Question] = []
        try:
            while self._waiting:
                await asyncio.sleep(0)  # those who were just answered may have another question
                under_way = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                await self._go(under_way)
                if self._failed is not None:
                    break  # nobody is to wait for trip after trip
        finally:
            _fail([*under_way, *self._waiting], self._failed or self._trouble("the event loop ends"))
            self._waiting.clear()

    async def _go(self, questions: Sequence[Question]) -> None:
        """Have the questions answered under one deadline, and note whether the node did."""
        failed: StoreUnavailableError | None = None
        try:
            async with asyncio.timeout(self._timeout):
                failed = await self._send(questions)
        except Exception as error:
            # Whatever a client library has in store: those who wait must hear of it.
            failed = self._failure(error)
        self._failed = failed
        self._pause = 0.0 if failed is None else min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        self._asked_again_at = asyncio.get_running_loop().time() + self._pause

    async def _send(self, questions: Sequence[Question]) -> StoreUnavailableError | None:
        """Send the questions in one write and hand out the answers; return why some have none."""
        failed: StoreUnavailableError | None = None
        groups, sent_at = self._grouped(questions), asyncio.get_running_loop().time() * 1000
        late = int(sent_at + self._ahead + self._timeout * 1000) if self._ahead is not None else 0
        for script in (("EVALSHA", SHA), ("EVAL", SCRIPT)):  # the second for those nodes that do not know it
            tickets = [str(next(self._tickets)) for _ in groups]
            replies = await self._execute([
                (*script, len(g), *[q.key for q in g], ticket, late, "".join([q.text for q in g]))
                for g, ticket in zip(groups, tickets, strict=True)
            ])  # fmt: skip
            unknown: list[Sequence[Question]] = []
            for group, ticket, reply in zip(groups, tickets, replies, strict=True):
                if "NoScriptError" in _names(reply) and script[0] == "EVALSHA":
                    unknown.append(group)
                elif isinstance(reply, Exception):
                    failed = self._failure(reply)
                    _fail(group, failed)
                else:
                    self._ahead = await self._answered(group, ticket, reply) - sent_at
            groups = unknown
            if not groups:
                break
        return failed

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

    async def _answered(self, group: Sequence[Question], ticket: str, reply: Any) -> float:
        """Hand out the answers, and return the node's time, in milliseconds."""
        # Whether it comes as bytes or as text is the client's setting (``decode_responses``).
        head, *lines = (reply.decode() if isinstance(reply, bytes) else str(reply)).split("\n")
        theirs, _, now = head.partition(" ")
        if theirs != ticket or len(lines) != len(group):
            await self._close_idle()
            raise self._trouble("a connection was out of step: it held another command's reply")
        for question, line in zip(group, lines, strict=True):
            if not question.answer.done():
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
        cause = _clients(error)
        names, text = _names(cause), f"{type(cause).__name__}: {cause}"
        if "AuthenticationError" in names or "NoPermissionError" in names or any(word in text for word in FORBIDDEN):
            return StoreForbiddenError(f"Redis does not let this user do it: {text}", partial=self._partial)
        if isinstance(error, TimeoutError):
            return self._trouble(f"no answer within {self._timeout:g} s{f' ({text})' if cause is not error else ''}")
        if not names & {*CLIENTS, "OSError"}:
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


def _clients(error: BaseException) -> BaseException:
    """Return what a client that tries again and again was up against when its time ran out."""
    there: BaseException | None = error
    while there is not None and not _names(there) & CLIENTS:
        there = there.__cause__ or there.__context__
    return there or error


def _names(error: object) -> frozenset[str]:
    """Return what an error's classes are called: valkey's have the names of redis's, and another root."""
    return frozenset(c.__name__ for c in type(error).__mro__) if isinstance(error, BaseException) else frozenset()


def _fail(questions: Sequence[Question], why: StoreUnavailableError) -> None:
    for question in questions:
        if not question.answer.done():
            question.answer.set_exception(type(why)(str(why), partial=why.partial))
            question.answer.exception()  # who asked may be gone

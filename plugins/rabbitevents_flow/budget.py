"""Who may go on when: the generic cell rate algorithm, in this process or in Redis.

It keeps one number, the time at which the next one is due, and moves it on by the same interval for each. ITU-T I.371;
each asks once, and is told how long to wait: nobody polls, and nobody overtakes.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Any, Final, Protocol

from rabbitevents import LineFilter

log: logging.Logger = logging.getLogger("rabbitevents.ratelimit")
log.addFilter(LineFilter())

AGAIN: Final = 1.0
"""Seconds before a Redis that did not answer is asked again, and that it has to answer."""

SCRIPT: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local interval, ahead = tonumber(ARGV[1]), tonumber(ARGV[2])
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local wait = math.max(0, due - now - ahead)
redis.call('SET', KEYS[1], string.format('%.0f', due + interval), 'PX', math.ceil((due + interval - now) / 1000) + 1000)
return string.format('%.0f', wait)
"""
"""Takes one of what stands under a key: its interval, and how far ahead of it one may be, in microseconds of Redis's
own clock. Answers the microseconds to wait."""


class Budget(Protocol):
    """What there is to spend."""

    async def take(self) -> float:
        """Take one, and return the seconds until it may be used. Raises nothing."""
        ...


class Here:
    """A budget of this process: one each ``interval`` seconds, and up to ``burst`` at once."""

    def __init__(self, interval: float, burst: int) -> None:
        self._interval = interval
        self._ahead = (burst - 1) * interval
        self._due = 0.0

    async def take(self) -> float:
        """Take one."""
        now = monotonic()
        due = max(self._due, now)
        self._due = due + self._interval
        return max(0.0, due - now - self._ahead)


class InRedis:
    """A budget that all processes share, under ``key``; while Redis is away, this process has one of its own."""

    def __init__(self, client: Any, key: str, interval: float, burst: int) -> None:
        self._script = client.register_script(SCRIPT)
        self._key = key
        self._lengths = [round(interval * 1e6), round((burst - 1) * interval * 1e6)]
        self._here = Here(interval, burst)
        self._again = 0.0
        self.away: str = ""
        """Why Redis is not asked at the moment."""

    async def take(self) -> float:
        """Take one."""
        if self.away:
            if monotonic() < self._again:
                return await self._here.take()
            self._again = monotonic() + 2 * AGAIN  # one asks, and nobody else waits for the answer
        try:
            async with asyncio.timeout(AGAIN):
                microseconds = float(await self._script(keys=[self._key], args=self._lengths))
        except Exception as error:
            # Whatever keeps Redis from answering, and each client has errors of its own: events go on, limited here.
            self._again = monotonic() + AGAIN
            self._say(type(error).__name__)
            return await self._here.take()
        self._say("")
        return microseconds / 1e6

    def _say(self, away: str) -> None:
        was, self.away = self.away, away
        if away and not was:
            log.warning(
                "the rate limit %r cannot be shared: Redis failed with %s; each process keeps it alone", self._key, away
            )
        elif was and not away:
            log.warning("the rate limit %r is shared again", self._key)

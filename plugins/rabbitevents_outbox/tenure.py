"""One relay's time with a shard, from its lease to the loss of it: read, send, mark."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any, Final

import msgspec

from rabbitevents import (
    BrokerError,
    ConfigurationError,
    DecodeError,
    EncodeError,
    Host,
    LineFilter,
    Message,
    NotSentError,
    OutcomeUnknownError,
    UnroutableError,
    facts,
)
from rabbitevents.texts import cut, name_of, printable
from rabbitevents_outbox.rows import Row
from rabbitevents_outbox.shards import Lease, Shards
from rabbitevents_outbox.window import Window

log: logging.Logger = logging.getLogger("rabbitevents.outbox")
log.addFilter(LineFilter())

WAVES: Final = 4
"""How many batches are on their way to the broker at a time, so that a slow confirm holds up only its own."""

EVERYBODYS: Final = (NotSentError, OutcomeUnknownError, BrokerError)
"""What keeps all rows from being sent, and so counts against none."""

HOPELESS: Final = (DecodeError, EncodeError, ConfigurationError)
"""Why a row can never be sent as it is."""

PAUSES: Final = (0.5, 1.0, 2.0, 5.0)
"""Seconds before the broker is tried again; the last one for ever."""

LONGEST_PAUSE: Final = 600.0
"""Seconds before a row that fails by itself is tried again, at most: 1 s at first, twice as long each time."""

FULL_SCAN: Final = 10.0
"""Seconds between the reads that begin at the first row. The others begin where all is sent: an old snapshot that is open
somewhere keeps the dead entries of the index, and each would wade through them (NikolayS/PgQue#80: 797 jobs/s became
517)."""

SENDING: Final = 10.0
"""Seconds that sending a message may take."""

MARKING: Final = 0.02
"""Seconds for which marks wait for others, while more is on its way: a statement and a commit for each row would cost an
entity's chain more than its sending."""


_SAMPLED: Final = tuple("13579bdf")
"""How a ``traceparent`` ends that somebody records (W3C Trace Context, 3.2.2.5)."""


class Settings(msgspec.Struct, frozen=True):
    """How an outbox is relayed; times in seconds."""

    batch: int
    poll: float
    keep: timedelta | None
    max_attempts: int
    keeps_unroutable: bool
    shards: int
    lease: float


class Tenure:
    """Send a shard's rows as long as its lease is ours.

    ``idle`` says that all that was committed before the last look is sent.
    """

    def __init__(self, shards: Shards, lease: Lease, host: Host, settings: Settings) -> None:
        self.lease: Lease = lease
        self.idle: bool = False
        self.trouble: str = ""
        """Why nothing can be sent, by anybody; empty: it can."""
        self._shards = shards
        self._host = host
        self._told = settings
        self._turn = asyncio.Event()
        """Set when there may be something to do."""
        self._time = asyncio.get_running_loop().time
        self._window = Window(full=max(1, settings.batch // 5))
        self._tasks: set[asyncio.Task[None]] = set()
        self._waves = 0
        self._confirmed: list[int] = []
        self._marking = False
        self._mark_due = 0.0
        self._lost = False
        self._stopping = False
        self._woken = True
        self._more = False
        """Whether the last read was full, so that the next one goes on where it ended."""
        self._writing = 0
        """The oldest transaction that was writing at the last read that began where all is sent. One that goes on leaves out
        what that and later ones wrote: their rows may lie on both sides of where it begins."""
        self._left_out = True
        """Whether rows that have been passed over may be read later, those of an entity that was full or held back: then
        each read begins where all before it is sent, or an entity's later rows would be read before its earlier ones."""
        self._last = 0
        self._floor = 0
        """Up to where all is sent, and nothing more can appear."""
        self._next_floor: tuple[int, int | None] | None = None
        """Up to where all is sent that can be seen, and a transaction that began later, once one is known."""
        self._poll = settings.poll
        self._poll_due = self._scan_due = self._send_due = 0.0
        self._renew_due = lease.until - settings.lease * 2 / 3
        self._failures = 0
        self._failing_since = 0.0
        self._suspect: Row | None = None
        """The last row that failed when it was sent alone, while nothing went through."""
        self._accused = 0
        """The row that was it when others went through again: a second time, and it is at fault itself."""

    def wake(self) -> None:
        """Look for rows at once."""
        self._woken, self.idle = True, False
        self._turn.set()

    def stop(self) -> None:
        """Begin nothing any more; `run` ends when what is under way is done."""
        self._stopping = True
        self._turn.set()

    async def run(self) -> None:
        """Relay, until told to stop or the lease is lost. Raises what the database raises."""
        try:
            while not self._over():
                if self._time() >= self._renew_due:
                    await self._renew()
                await self._read()
                self._send()
                self._mark()
                await self._wait()
            if not self._lost:
                await self._shards.release(self.lease)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _over(self) -> bool:
        if self._time() >= self.lease.until:
            self._lost = True
        return self._lost or (self._stopping and not self._tasks and not self._confirmed)

    async def _renew(self) -> None:
        renewed = await self._shards.renew(self.lease)
        if renewed is None:
            self._lost = True
            return
        self.lease = renewed
        self._renew_due = renewed.until - self._told.lease * 2 / 3

    # --- reading ---

    async def _read(self) -> None:
        """Read more rows, if there is room for them and it is time to."""
        now, window, batch = self._time(), self._window, self._told.batch
        if self._lost or self._stopping or len(window.known) > batch * 3 // 2:
            return
        scans = now >= self._scan_due
        if not (scans or window.starved or self._woken or self._more or now >= self._poll_due):
            return
        goes_on = self._more and not (scans or window.starved or self._woken or self._left_out)
        after = self._last if goes_on else 0 if scans else self._floor
        woken, self._woken = self._woken, False
        window.starved = False
        window.dropped.clear()
        held = self._left_out and await self._shards.holds_back(self.lease.shard)
        transactions = await self._shards.transactions() if scans else (0, 0)
        full = window.full
        rows, writing = await self._shards.read(
            self.lease.shard,
            after=after,
            ended=self._writing if goes_on else None,
            limit=batch,
            known=window.known,
            full=full,
        )
        window.add(rows)
        self._more = len(rows) == batch
        if not goes_on:
            self._writing = writing
        elif not self._more:
            self._woken = True  # what was written since is read from where all is sent
        if full:
            self._left_out = True
        elif not goes_on and not held and not window.dropped:
            self._left_out = False  # up to its last row at least, and the next read goes on there
        self._last = rows[-1].id if rows else self._last
        self._poll = self._pause(found=bool(rows), woken=woken)
        self._poll_due = self._time() + self._poll
        self.idle = not window.known and not self._woken
        if scans:
            self._scan_due = now + FULL_SCAN
            self._raise_floor(*transactions)

    def _pause(self, *, found: bool, woken: bool) -> float:
        """Return when to look again. Where there was something that nobody woke us for, others are writing."""
        usual = self._told.poll
        if found:
            return usual if woken else usual / 10
        return min(self._poll * 2, usual * 10)

    def _raise_floor(self, oldest: int, next_one: int) -> None:
        """Begin later reads behind what is sent, once all transactions have ended that could still write before that.

        The transactions are those of before the read: what ended until then, it has seen.
        """
        if self._more or self._left_out:
            return
        if self._next_floor is None:
            self._next_floor = min(self._window.known, default=self._last + 1) - 1, None
            return
        place, later = self._next_floor
        if later is None:
            self._next_floor = place, next_one
        elif later <= oldest:
            self._floor, self._next_floor = place, None

    # --- sending ---

    def _send(self) -> None:
        while self._waves < (1 if self.trouble else WAVES) and (rows := self._next()):
            self._waves += 1
            self._start(self._wave(rows))

    def _next(self) -> list[Row]:
        """Return rows to be sent now; none where it is not the time for it."""
        now = self._time()
        if self._stopping or now < self._send_due or self._left(now) <= 0:
            return []
        return self._window.take(1 if self.trouble else self._told.batch)

    def _left(self, now: float) -> float:
        """Return how long a sending may take: it has to end, one way or the other, before the lease does."""
        return self.lease.until - now - self._told.lease / 6

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._turn.set())

    async def _wave(self, rows: list[Row]) -> None:
        """Send rows, and those that come after them, without a turn of `run` in between."""
        try:
            while rows:
                await self._deliver(rows, min(SENDING, self._left(self._time())))
                rows = [] if self.trouble else self._next()
                self._mark()
                if self._next_read() <= self._time():
                    self._turn.set()
        finally:
            self._waves -= 1

    async def _deliver(self, rows: list[Row], timeout: float) -> None:
        sound: list[Row] = []
        messages: list[Message] = []
        for row in rows:
            try:
                messages.append(row.message(self._host.exchange, timeout))
                sound.append(row)
            except DecodeError as error:
                # Its row alone is broken.
                await self._fail(row, error)
        results = await self._host.send_many(messages)
        troubled: list[Row] = []
        for row, message, result in zip(sound, messages, results, strict=True):
            if result is None or (isinstance(result, UnroutableError) and not self._told.keeps_unroutable):
                self._window.confirmed(row)
                self._confirmed.append(row.id)
                self._report(row, message)
            elif isinstance(result, EVERYBODYS):
                troubled.append(row)
                self._say(result)
            else:
                await self._fail(row, result)
        if troubled:
            self._wait_for_all(troubled, alone=len(rows) == 1)
        elif sound:
            await self._goes_on()

    def _report(self, row: Row, message: Message) -> None:
        """Report of an event that is traced how long it stood here, for its trace to show."""
        parent = message.headers.get("traceparent")
        if isinstance(parent, str) and parent[-1:] in _SAMPLED:
            waited = self._time() - row.since
            self._host.report(facts.Relayed(self._shards.name, row.type, message.id, row.entity, waited, parent))

    def _wait_for_all(self, rows: list[Row], *, alone: bool) -> None:
        """Let rows be sent again after a while. One that failed when it was sent alone goes to the end, as a suspect."""
        self._window.back(rows, last=alone)
        pause = PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1
        self._send_due = self._time() + pause
        if alone and self._failures > 1:
            self._suspect = rows[0]

    def _say(self, error: Exception) -> None:
        if not self.trouble:
            self._failing_since = self._time()
            log.warning("nothing of the outbox is sent, and all of it waits: %s", error)
        self.trouble = name_of(error)

    async def _goes_on(self) -> None:
        """Note that rows are sent. What failed alone twice, each time just before another one went through, is at fault itself.

        Once, any row may do so: the last one that was tried before the broker came back.
        """
        suspect, self._suspect = self._suspect, None
        if self.trouble:
            log.info("the outbox is sent again, after %.1f s", self._time() - self._failing_since)
        self.trouble, self._failures = "", 0
        if suspect is None or suspect.id not in self._window.known:
            return
        if suspect.id != self._accused:
            self._accused = suspect.id
            return
        await self._fail(suspect, OutcomeUnknownError(suspect.message("", 0.0), "sent alone, it ended the connection"))

    async def _fail(self, row: Row, error: Exception) -> None:
        """Note that a row has failed by itself: its entity waits for it, and nobody else."""
        attempts = row.attempts + 1
        dead = isinstance(error, HOPELESS) or attempts >= self._told.max_attempts
        said = printable(cut(f"{name_of(error)}: {error}", 500))
        pause = min(2.0**row.attempts, LONGEST_PAUSE)
        await self._shards.failed(self.lease, row, said, pause=pause, dead=dead)
        self._window.drop(row)
        self._left_out = True
        self._floor, self._next_floor = min(self._floor, row.id - 1), None
        if dead:
            log.error(
                "outbox: %s is dead after %d attempts, and its entity's later events wait for it: %s; once that is mended, "
                "`rabbitevents outbox retry` sends it, and `drop` gives it up",
                row.describe(),
                attempts,
                said,
            )
        else:
            log.warning("outbox: %s failed, and is tried again in %g s: %s", row.describe(), pause, said)

    # --- marking ---

    def _mark(self) -> None:
        if not self._confirmed or self._marking or self._next_mark() > self._time():
            return
        ids, self._confirmed = self._confirmed, []
        self._marking = True
        self._mark_due = self._time() + MARKING
        self._start(self._marks(ids))

    def _next_mark(self) -> float:
        """Return when marks are due: at once where there are many, or where no others are to be expected."""
        if not self._confirmed or self._marking:
            return float("inf")
        return self._mark_due if self._waves and len(self._confirmed) < self._told.batch // 5 else 0.0

    async def _marks(self, ids: list[int]) -> None:
        try:
            if not await self._shards.done(self.lease, ids, self._told.keep):
                self._renew_due = 0.0  # deleted by somebody else, or the lease is another's: a look at it says which
            self._window.marked(ids)
        finally:
            self._marking = False

    # --- waiting ---

    async def _wait(self) -> None:
        """Wait until there may be something to do. Raises what went wrong meanwhile."""
        now = self._time()
        if not self._over():
            until = min(self._renew_due, self._next_read(), self._next_send(now), self._next_mark(), self.lease.until)
            await _set_within(self._turn, until - now)
        self._turn.clear()
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.discard(task)
            task.result()

    def _next_read(self) -> float:
        full = len(self._window.known) > self._told.batch * 3 // 2
        if full or self._stopping:
            return float("inf")
        return 0.0 if self._more or self._woken or self._window.starved else min(self._poll_due, self._scan_due)

    def _next_send(self, now: float) -> float:
        if not self._window.ready or self._stopping or self._left(now) <= 0:
            return float("inf")
        if self._waves >= (1 if self.trouble else WAVES):
            return float("inf")
        return max(now, self._send_due)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, for so long at most; a turn of the loop at least."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return

"""Two services with something in them for each alert to be about: ``rabbitevents run tests.alerting:shop``.

A thing is broken as long as there is a file of its name in the working folder. ``URL`` says where the broker is,
``INTERVAL`` how many seconds lie between two looks at the queues.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from attrs import frozen
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from tenacity import stop_after_attempt, wait_fixed

from rabbitevents import Bus, Plugin, Router, event
from rabbitevents_deadletter import DeadLetter
from rabbitevents_metrics import Metrics
from rabbitevents_outbox import Outbox, prepare_sqlite
from rabbitevents_retry import Fatal, Retry

PATIENT: Final = Retry(stop=stop_after_attempt(100_000), wait=wait_fixed(1), inline_below=0.5)
"""Somebody's idea of never giving up; the waits are the broker's."""


def is_broken(what: str) -> bool:
    return Path(what).exists()


async def until_mended(what: str) -> None:
    await asyncio.to_thread(wait_for_its_end, what)


def wait_for_its_end(what: str) -> None:
    while is_broken(what):
        time.sleep(0.1)


@event("letter.written", entity="letter", key="number")
@frozen
class LetterWritten:
    number: str


@event("parcel.sent", entity="parcel", key="number")
@frozen
class ParcelSent:
    number: str


@event("row.added", entity="row", key="number")
@frozen
class RowAdded:
    number: str


@event("payment.due", entity="payment", key="number")
@frozen
class PaymentDue:
    number: str


@event("question.asked", entity="question", key="number")
@frozen
class QuestionAsked:
    number: str


@event("question.answered", entity="question", key="number")
@frozen
class QuestionAnswered:
    """Nobody is bound for it."""

    number: str


@event("clock.started", entity="clock", key="number")
@frozen
class ClockStarted:
    number: str


@event("clock.ticked", entity="clock", key="number")
@frozen
class ClockTicked:
    number: str


@event("sum.asked", entity="sum", key="number")
@frozen
class SumAsked:
    number: str


@event("box.moved", entity="box", key="number")
@frozen
class BoxMoved:
    number: str


orders = Router("shop")


@orders.on(LetterWritten)
async def deliver(letter: LetterWritten) -> None:
    if is_broken("dead"):
        raise Fatal("no such address")


@orders.on(ParcelSent, plugins={"dead-letter": None, "retry": None})
async def pack(parcel: ParcelSent) -> None:
    if is_broken("held"):
        raise LookupError


@orders.on(RowAdded, concurrency=2, prefetch=10)
async def count(row: RowAdded) -> None:
    if is_broken("slow"):
        await until_mended("slow")


@orders.on(PaymentDue, plugins=[PATIENT])
async def charge(payment: PaymentDue) -> None:
    if is_broken("storm"):
        raise ConnectionError


@orders.on(QuestionAsked)
async def answer(question: QuestionAsked) -> QuestionAnswered:
    return QuestionAnswered(question.number)


@orders.on(ClockStarted)
async def tick(clock: ClockStarted, bus: Bus) -> None:
    while is_broken("ticking"):
        await bus.publish(ClockTicked(clock.number), timeout=3600)
        await asyncio.sleep(0.1)


@orders.on(ClockTicked)
async def hear(clock: ClockTicked) -> None: ...


store = Router("warehouse")


@store.on(SumAsked, concurrency=1)
async def calculate(asked: SumAsked) -> None:
    while is_broken("late"):
        hold_the_loop(0.4)
        await asyncio.sleep(1)


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


@store.on(BoxMoved)
async def shelve(box: BoxMoved) -> None: ...


@asynccontextmanager
async def database(folder: Path) -> AsyncGenerator[AsyncEngine]:
    """Open the warehouse's database, where its outbox is."""
    engine = _engine(folder)
    yield engine
    await engine.dispose()


def _engine(folder: Path) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/warehouse.db")
    prepare_sqlite(engine)
    return engine


def shop() -> Bus:
    return _bus(orders)


def warehouse() -> Bus:
    return _bus(store, Outbox(_engine(Path())))


def _bus(router: Router, *others: Plugin) -> Bus:
    resource = Resource.create({"service.name": router.name})
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()], resource))
    plugins = [DeadLetter(), Retry(), Metrics(interval=float(os.environ["INTERVAL"])), *others]
    return Bus(os.environ["URL"], router, plugins=plugins, grace=1)

"""The shop's door: `uvicorn web:app`. It takes orders, and says how they stand."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import uuid4

import telemetry
from events import OrderPlaced
from fastapi import Depends, FastAPI, HTTPException, Request
from prometheus_client import make_asgi_app
from pydantic import BaseModel, PositiveInt
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tables import Payment, Reservation, engine

from rabbitevents import Bus, NotSentError
from rabbitevents.asgi import health_app
from rabbitevents_metrics import Metrics
from rabbitevents_tracing import Tracing


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open what a request needs, and close it behind the last one."""
    telemetry.set_up()
    app.state.database = engine()
    async with Bus(os.environ["AMQP_URL"], name="web", plugins=[Tracing(), Metrics()]) as bus:
        app.state.bus = bus
        yield
    await app.state.database.dispose()


app = FastAPI(lifespan=lifespan)
app.mount("/bus", health_app(lambda: app.state.bus))
app.mount("/metrics", make_asgi_app())


class Order(BaseModel):
    """What a customer sends."""

    article: str
    quantity: PositiveInt = 1


class Placed(BaseModel):
    """What a customer gets at once: the order's number."""

    order_id: str


class Status(BaseModel):
    """How an order stands; None: nobody has said so yet."""

    reserved: bool | None
    receipt: str | None


def get_bus(request: Request) -> Bus:
    """Give a view the bus."""
    bus: Bus = request.app.state.bus
    return bus


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Give a view a session."""
    async with AsyncSession(request.app.state.database) as session:
        yield session


@app.post("/orders", status_code=202)
async def place(order: Order, bus: Annotated[Bus, Depends(get_bus)]) -> Placed:
    """Publish the order: once the broker has confirmed it, it will be seen to."""
    order_id = str(uuid4())
    try:
        await bus.publish(OrderPlaced(order_id, order.article, order.quantity), timeout=5)
    except NotSentError:
        raise HTTPException(503, "please try again") from None
    return Placed(order_id=order_id)


@app.get("/orders/{order_id}")
async def look(order_id: str, session: Annotated[AsyncSession, Depends(get_session)]) -> Status:
    """Say how an order stands."""
    reserved = await session.scalar(select(Reservation.reserved).where(Reservation.order_id == order_id))
    receipt = await session.scalar(select(Payment.receipt).where(Payment.order_id == order_id))
    return Status(reserved=reserved, receipt=receipt)

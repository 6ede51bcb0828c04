"""A worker: `rabbitevents run billing:bus`. It has the bank charge the customer, and keeps the receipt."""

import os

import telemetry
from events import OrderPaid, StockReserved
from redis.asyncio import Redis
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine
from tables import Payment, engine
from tenacity import stop_after_attempt, wait_exponential_jitter

from rabbitevents import Bus, Event, Router
from rabbitevents_deadletter import DeadLetter
from rabbitevents_idempotency import Idempotency, RedisStore
from rabbitevents_metrics import Metrics
from rabbitevents_retry import Retry, on, otherwise
from rabbitevents_tracing import Tracing

billing = Router("billing")


class CardRefusedError(Exception):
    """The bank says no, and will say so again."""


class Bank:
    """Charges customers. This one always says yes; yours speaks HTTP."""

    async def charge(self, order_id: str, key: str) -> str:
        """Charge what an order costs, once for each key (HTTP's Idempotency-Key); return the receipt."""
        return f"receipt of {order_id}, by {key}"


@billing.on(StockReserved, timeout=30)
async def charge(reserved: Event[StockReserved], bank: Bank, database: AsyncEngine) -> OrderPaid:
    """Charge an order once: the bank knows the event's id as its key, and so does the table."""
    order_id = reserved.payload.order_id
    receipt = await bank.charge(order_id, key=str(reserved.id))
    payment = {"event_id": reserved.id, "order_id": order_id, "receipt": receipt}
    async with database.begin() as transaction:
        await transaction.execute(insert(Payment).values(payment).on_conflict_do_nothing())
    return OrderPaid(order_id, receipt)


retry = Retry(
    on(CardRefusedError).dead_letter(),
    otherwise.retry(stop=stop_after_attempt(8), wait=wait_exponential_jitter(initial=1, max=3600)),
)


def bus() -> Bus:
    """Make the bus: called by `rabbitevents run`, in each worker process."""
    telemetry.set_up()
    store = RedisStore(Redis.from_url(os.environ["REDIS_URL"]))
    plugins = [DeadLetter(), retry, Tracing(), Metrics(), Idempotency(store)]
    made = Bus(os.environ["AMQP_URL"], billing, plugins=plugins)
    made.provide(Bank, Bank())
    made.provide(AsyncEngine, engine())
    return made

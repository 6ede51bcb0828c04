"""The ``eventsourcing`` package, on its PostgreSQL recorders, with the settings that they have by default."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar
from urllib.parse import urlsplit

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.sql import SQL, Identifier

from benchmarks.stores.workload import BLOCK, ENTITY, PAST, Contender, compete, document

projected: dict[int, float] | None = None
"""When each event was projected, where that is asked."""


class Order(Aggregate):
    @event("Opened")
    def __init__(self, number: int, customer_id: str, total: int, note: str) -> None:
        self.paid = total

    @event("Paid")
    def pay(self, number: int, customer_id: str, total: int, note: str) -> None:
        self.paid += total


class Orders(Application[Any]):
    """Keeps a snapshot of an order as often as rabbitevents does."""

    snapshotting_intervals: ClassVar = {Order: BLOCK}


class Customers(PostgresTrackingRecorder):
    """The table that the projection fills, and how far it is."""

    def __init__(self, datastore: Any, **told: Any) -> None:
        super().__init__(datastore, **told)
        self.table = SQL("{0}.{1}").format(Identifier(self.datastore.schema), Identifier("bench_customers"))
        self.sql_create_statements.append(
            SQL("CREATE TABLE IF NOT EXISTS {0} (id text PRIMARY KEY, events bigint, total bigint)").format(self.table)
        )
        self.upsert = SQL(
            "INSERT INTO {0} AS c VALUES (%s, 1, %s) ON CONFLICT (id) DO UPDATE SET events = c.events + 1, "
            "total = c.total + excluded.total"
        ).format(self.table)

    def paid(self, customer_id: str, total: int, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(self.upsert, (customer_id, total), prepare=True)

    def totals(self) -> tuple[int, int]:
        with self.datastore.transaction() as cursor:
            row = cursor.execute(SQL("SELECT sum(events) AS n, sum(total) AS t FROM {0}").format(self.table)).fetchone()
            return int(row["n"]), int(row["t"])


class CustomersProjection(Projection[Customers]):
    name = "customers"

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.view.paid(domain_event.customer_id, domain_event.total, tracking)
        if projected is not None:
            projected[domain_event.number] = time.perf_counter()


class EventSourcing(Contender):
    packages = ("eventsourcing", "psycopg")
    ways = ("single",)

    def __init__(self, postgres: str) -> None:
        super().__init__(postgres)
        parts = urlsplit(postgres)
        self.env = {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": parts.path.strip("/"),
            "POSTGRES_HOST": parts.hostname or "",
            "POSTGRES_PORT": str(parts.port),
            "POSTGRES_USER": parts.username or "",
            "POSTGRES_PASSWORD": "",
            "POSTGRES_POOL_SIZE": "20",
            "POSTGRES_MAX_OVERFLOW": "10",
        }

    def app(self) -> Application[Any]:
        return Application(env=self.env)

    def append(self, writers: int, events: int) -> float:
        app = self.app()

        def write(_writer: int) -> None:
            order = Order(**document(0))
            app.save(order)
            for number in range(1, events // writers):
                order.pay(**document(number))
                app.save(order)

        began = time.perf_counter()
        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, range(writers)))
        seconds = time.perf_counter() - began
        app.close()
        return seconds

    def fill(self, events: int) -> None:
        app = self.app()
        for first in range(0, events, BLOCK):
            orders: list[Order] = []
            for start in range(first, min(first + BLOCK, events), ENTITY):
                order = Order(**document(start))
                for number in range(start + 1, min(start + ENTITY, events)):
                    order.pay(**document(number))
                orders.append(order)
            app.save(*orders)
        app.close()

    def read(self) -> int:
        app = self.app()
        found, start = 0, None
        while True:
            notifications = app.recorder.select_notifications(start, 1000, inclusive_of_start=False)
            for each in notifications:
                app.mapper.to_domain_event(each)
                found += 1
            if len(notifications) < 1000:
                break
            start = notifications[-1].id
        app.close()
        return found

    def runner(self) -> ProjectionRunner[Any, Any]:
        return ProjectionRunner(
            application_class=Application, projection_class=CustomersProjection, view_class=Customers, env=self.env
        )

    def rebuild(self, way: str, events: int) -> None:
        app = self.app()
        last = app.recorder.max_notification_id()
        with self.runner() as runner:
            runner.wait(last, timeout=3600)
        app.close()

    def latency(self, way: str, events: int, rate: int) -> list[float]:
        global projected
        appended, projected = dict[int, float](), dict[int, float]()
        with self.runner() as runner, ThreadPoolExecutor(20) as pool:
            app = runner.app

            def append(number: int) -> None:
                appended[number] = time.perf_counter()
                app.save(Order(**document(number)))

            started = time.perf_counter() + 0.3
            for number in range(events):
                time.sleep(max(0.0, started + number / rate - time.perf_counter()))
                pool.submit(append, number)
            while len(projected) < events:
                time.sleep(0.01)
        return [projected[number] - appended[number] for number in range(events)]

    def decide(self, way: str, decisions: int) -> list[float]:
        app = Orders(env={**self.env, "IS_SNAPSHOTTING_ENABLED": "y"}) if way == "snapshot" else self.app()
        order = Order(**document(0))
        for first in range(0, PAST, BLOCK):
            for number in range(first or 1, first + BLOCK):
                order.pay(**document(number))
            app.save(order)
        delays: list[float] = []
        for _ in range(decisions):
            began = time.perf_counter()
            found: Order = app.repository.get(order.id)
            found.pay(**document(found.paid))
            app.save(found)
            delays.append(time.perf_counter() - began)
        app.close()
        return delays

    def totals(self) -> tuple[int, int]:
        with self.runner() as runner:
            return runner.projection.view.totals()


if __name__ == "__main__":
    compete(EventSourcing)

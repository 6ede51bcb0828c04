"""kombu over py-amqp, with confirms: it awaits each of them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from kombu import Connection, Consumer, Exchange, Producer, Queue

from benchmarks.contenders.python.orders import structure
from benchmarks.roles import compete
from benchmarks.workload import PREFETCH, QUIET, Document, Handle, SynchronousContender, headers, type_name


class Kombu(SynchronousContender):
    packages = ("kombu", "amqp")

    @contextmanager
    def publisher(self) -> Iterator[Callable[[Document], object]]:
        exchange = Exchange(self.told.exchange, type="topic", no_declare=True)
        with Connection(self.told.url, transport_options={"confirm_publish": True}) as connection:
            producer = Producer(connection, exchange, type_name, serializer="json", auto_declare=False)

            def publish(order: Document) -> None:
                producer.publish(
                    order,
                    delivery_mode=2,
                    mandatory=True,
                    headers=headers,
                    message_id=str(uuid4()),
                    timestamp=int(time.time()),
                    type=type_name,
                )

            yield publish

    def consume(self, handle: Handle, complete: Callable[[], bool]) -> None:
        def on_message(body: Document, message: Any) -> None:
            handle(structure(body).order_id)
            message.ack()

        queue = Queue(self.told.queue, no_declare=True)
        with (
            Connection(self.told.url) as connection,
            Consumer(connection, [queue], callbacks=[on_message], prefetch_count=PREFETCH, auto_declare=False),
        ):
            while not complete():
                connection.drain_events()
            with suppress(TimeoutError):
                connection.drain_events(timeout=QUIET)


if __name__ == "__main__":
    compete(Kombu, Kombu.packages)

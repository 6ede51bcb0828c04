"""pika's blocking connection, as its documentation shows it: it awaits each confirm."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pika

from benchmarks.contenders.python.orders import decode
from benchmarks.roles import compete
from benchmarks.workload import PREFETCH, QUIET, Document, Handle, SynchronousContender, headers, type_name


class Pika(SynchronousContender):
    packages = ("pika",)

    @contextmanager
    def publisher(self) -> Iterator[Callable[[Document], object]]:
        with pika.BlockingConnection(pika.URLParameters(self.told.url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()

            def publish(order: Document) -> None:
                properties = pika.BasicProperties(
                    content_type="application/json",
                    delivery_mode=pika.DeliveryMode.Persistent,
                    message_id=str(uuid4()),
                    timestamp=int(time.time()),
                    type=type_name,
                    headers=headers,
                )
                body = json.dumps(order, separators=(",", ":")).encode()
                channel.basic_publish(self.told.exchange, type_name, body, properties, mandatory=True)

            yield publish

    def consume(self, handle: Handle, complete: Callable[[], bool]) -> None:
        with pika.BlockingConnection(pika.URLParameters(self.told.url)) as connection:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=PREFETCH)

            def on_message(channel: Any, method: Any, _properties: Any, body: bytes) -> None:
                handle(decode(body).order_id)
                channel.basic_ack(method.delivery_tag)
                if complete():
                    channel.stop_consuming()

            channel.basic_consume(self.told.queue, on_message)
            channel.start_consuming()
            connection.process_data_events(QUIET)


if __name__ == "__main__":
    compete(Pika, Pika.packages)

"""What every broker must do: the suite that RabbitMQ and the embedded broker pass, and a third one's author runs.

Subclass `BrokerConformance` in a test module, with a fixture ``bench`` that returns a `Bench`. The tests are
coroutines (pytest-asyncio, ``asyncio_mode = "auto"``). They cover what Watermill's universal Pub/Sub suite covers, what
RabbitMQ promises besides, and what the seam promises of a consumer.
"""

from rabbitevents.testing.conformance.consumers import TestingConsumers
from rabbitevents.testing.conformance.hostility import TestingHostility
from rabbitevents.testing.conformance.pubsub import TestingPubSub
from rabbitevents.testing.conformance.semantics import TestingSemantics


class BrokerConformance(TestingPubSub, TestingSemantics, TestingConsumers, TestingHostility):
    """The whole suite. Subclass it, set ``__test__ = True``, and give a fixture ``bench``."""

    __test__ = False

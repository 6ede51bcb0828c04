"""Definitions: what a bus wants at the broker, in the form that RabbitMQ imports."""

from __future__ import annotations

from typing import Any

from rabbitevents.topology import Binding, Exchange, Queue, Topology


def definitions(topology: Topology, vhost: str) -> dict[str, Any]:
    """Return a document for ``rabbitmqctl import_definitions``, always in the same order; without users and rights.

    Other teams' exchanges are not in it. An import makes what is missing, and leaves what stands as it is, whatever its
    arguments.
    """
    exchanges = [item for item in topology.items if isinstance(item, Exchange) and item.kind is not None]
    queues = [item for item in topology.items if isinstance(item, Queue)]
    bindings = [item for item in topology.items if isinstance(item, Binding)]
    return {
        "queues": [
            {
                "name": each.name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": dict(sorted(each.arguments.items())),
            }
            for each in sorted(queues, key=lambda each: each.name)
        ],
        "exchanges": [
            {
                "name": each.name,
                "vhost": vhost,
                "type": each.kind,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": dict(sorted(each.arguments.items())),
            }
            for each in sorted(exchanges, key=lambda each: each.name)
        ],
        "bindings": [
            {
                "source": each.exchange,
                "vhost": vhost,
                "destination": each.queue,
                "destination_type": "exchange" if each.to_exchange else "queue",
                "routing_key": each.routing_key,
                "arguments": {},
            }
            for each in sorted(bindings, key=lambda each: (each.exchange, each.queue, each.routing_key))
        ],
    }

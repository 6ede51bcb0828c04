"""Which key a delivery has, where a subscription keeps an order: its entity, or what a function says of its payload."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

from rabbitevents.consuming.lanes import KeyOf
from rabbitevents.errors import ConfigurationError, DecodeError
from rabbitevents.events import event_type
from rabbitevents.fields import event_fields
from rabbitevents.message import Delivery
from rabbitevents.routing import Subscription
from rabbitevents.wire import entity_id_in

log: logging.Logger = logging.getLogger("rabbitevents.consumer")


def key_of(subscription: Subscription, payload_of: Callable[[Delivery], Any]) -> KeyOf | None:
    """Return what says the keys of a subscription; None where it keeps no order.

    ``payload_of`` decodes a delivery. Raises `ConfigurationError` for events that have no entity to go by.
    """
    ordered = subscription.options.ordered
    if ordered is False:
        return None
    if ordered is not True:
        return _by_function(ordered, payload_of)
    for cls in (cls for handler in subscription.handlers for cls in handler.classes):
        if event_type(cls).key is None:
            raise ConfigurationError(
                f"subscription {subscription.name!r} keeps the order of each entity, and {cls.__name__} has none: say "
                "@event(..., key='order_id'), or ordered= a function of the payload that returns what to go by"
            )
    return entity_id_in


def _by_function(function: Callable[[Any], Hashable | None], payload_of: Callable[[Delivery], Any]) -> KeyOf:
    def key(delivery: Delivery) -> Hashable | None:
        try:
            found = function(payload_of(delivery))
            hash(found)
        except DecodeError:
            return None  # which its handling says
        except Exception:
            # The user's function: what it cannot say the key of is handled all the same, for it may be what mends it.
            log.exception(
                "ordered=%s failed for %s, which is handled in no order",
                getattr(function, "__name__", "..."),
                delivery.describe(),
                extra=event_fields(delivery),
            )
            return None
        return found

    return key

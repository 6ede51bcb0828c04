"""Events in Django's transactions: what is published inside ``atomic`` is sent if it commits, and only then.

::

    INSTALLED_APPS = [..., "rabbitevents_django"]
    RABBITEVENTS = {"NAME": "shop", "URL": "amqp://localhost"}

    with transaction.atomic():
        order.save()
        publish(OrderPlaced(...))

`publish` writes rows into a table that a migration makes; ``manage.py relay_events`` sends them.
"""

from rabbitevents_django.publishing import publish

__all__ = ["publish"]

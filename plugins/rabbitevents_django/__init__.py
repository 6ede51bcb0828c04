"""Events in Django's transactions: what is published inside ``atomic`` is sent if it commits, and only then.

::

    INSTALLED_APPS = [..., "rabbitevents_django"]
    RABBITEVENTS = {"NAME": "shop", "URL": "amqp://localhost"}

    with transaction.atomic():
        order.save()
        publish(OrderPlaced(...))

`publish` writes rows into a table that a migration makes; ``manage.py relay_events`` sends them.
"""

try:
    from rabbitevents_django.publishing import publish
    from rabbitevents_django.relaying import relay_bus
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] not in ("aiosqlite", "asgiref", "asyncpg", "django", "sqlalchemy"):
        raise
    raise ModuleNotFoundError(
        f"rabbitevents_django needs {_error.name}: pip install 'rabbitevents[django]'", name=_error.name
    ) from _error

__all__ = ["publish", "relay_bus"]

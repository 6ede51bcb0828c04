"""Whatever meets whatever, counted by a ledger that stands outside of what is counted.

``python -m tests.chaos`` runs publishers and services as processes of their own against a RabbitMQ, a Redis and a
PostgreSQL that are killed, suspended and cut off meanwhile. Whoever publishes writes each outcome into the ledger, and
whoever handles each effect; the judge compares the two and knows nothing of the library. ``docs/reliability.md`` says
what is counted, and what came of it.
"""

"""Those that `tests.chaos` compares this library with: ``python -m benchmarks.peers.NAME serve`` or ``publish``.

Each is written as its documentation recommends where events must not be lost: durable queues, persistent messages,
confirms, and an acknowledgement after the work. They run in an environment of their own (`requirements.txt`).
"""

"""What a run is told."""

from __future__ import annotations

import msgspec

from rabbitevents.demo.sabotage import Sabotage


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is told; it travels to the processes as JSON. Times in seconds.

    ``broker`` is a URL, or None for the embedded broker. ``processes`` gives each service a process of its own.
    ``fail`` is the rate at which payments fail, and ``seed`` chooses which. ``redis`` is the URL of where services
    remember what they have handled, or None for their own memory. ``store`` is the URL of a database
    for state and events, in the place of files and that memory; ``replay`` makes what follows from its events anew, and
    compares. ``trace`` writes spans into the run's folder, ``otlp`` is
    the URL of a collector to send them to. ``patience`` is how long no new effect may come before what is missing counts
    as lost, ``start_timeout`` how long a broker that is away is waited for.
    """

    broker: str | None = None
    processes: bool = False
    fail: float = 0.0
    seed: int = 1
    redis: str | None = None
    store: str | None = None
    replay: bool = False
    trace: bool = False
    otlp: str | None = None
    patience: float = 15.0
    start_timeout: float = 10.0
    sabotage: Sabotage | None = None

"""The events that tests of the core share: a job that is given, and one that is done."""

from __future__ import annotations

from attrs import frozen

from rabbitevents import event

WORK = "work.do"
"""The queue of a router ``work`` with a handler ``do``."""


@event("job.given")
@frozen
class JobGiven:
    number: int


@event("job.done")
@frozen
class JobDone:
    number: int
    note: str = ""

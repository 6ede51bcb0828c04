"""Try again what failed, by tenacity's own strategies: short waits in the process, long ones at the broker."""

from rabbitevents_retry.plugin import Retry
from rabbitevents_retry.raised import Fatal, RetryLater
from rabbitevents_retry.timetable import Span, Step, Timetable

__all__ = ["Fatal", "Retry", "RetryLater", "Span", "Step", "Timetable"]

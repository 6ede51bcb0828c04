"""Try again what failed, by tenacity's own strategies: short waits in the process, long ones at the broker."""

from rabbitevents.failures import Fatal, RetryLater
from rabbitevents_retry.plugin import Retry
from rabbitevents_retry.rules import On, Rule, on, otherwise
from rabbitevents_retry.timetable import Sentence, Span, Step, Timetable

__all__ = ["Fatal", "On", "Retry", "RetryLater", "Rule", "Sentence", "Span", "Step", "Timetable", "on", "otherwise"]

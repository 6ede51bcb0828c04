"""The workbench: what is in dead letter queues is looked at, replayed, discarded and exported, in Python."""

from rabbitevents_deadletter.workbench.deadletters import HOLD, DeadLetters
from rabbitevents_deadletter.workbench.lines import Lines, read_lines
from rabbitevents_deadletter.workbench.results import By, Group, Result, Summary
from rabbitevents_deadletter.workbench.selection import EVERY, Selection

__all__ = ["EVERY", "HOLD", "By", "DeadLetters", "Group", "Lines", "Result", "Selection", "Summary", "read_lines"]

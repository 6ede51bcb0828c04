"""Dead letters: what was given up on goes to a queue of its own, says why, and can be looked at and replayed.

`DeadLetter` is the plugin (`plugin`, with `labels`, `announcement` and `tending`). `DeadLetters` is the workbench, which
looks into the queues (`workbench`, with `course`, `letters`, `lines`, `selection` and `results`), and ``rabbitevents dlq``
does so on the command line (`commands`, with `targets`, `edits`, `progress`, `rendering` and `harmless`).
"""

from rabbitevents_deadletter.announcement import EventProcessingFailed
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.lines import Lines, read_lines
from rabbitevents_deadletter.plugin import DeadLetter
from rabbitevents_deadletter.results import Group, Result, Summary
from rabbitevents_deadletter.selection import Selection
from rabbitevents_deadletter.workbench import DeadLetters

__all__ = [
    "DeadLetter",
    "DeadLetterMessage",
    "DeadLetters",
    "EventProcessingFailed",
    "Group",
    "Lines",
    "Result",
    "Selection",
    "Summary",
    "read_lines",
]

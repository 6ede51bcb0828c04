"""Dead letters: what was given up on goes to a queue of its own, says why, and can be looked at and replayed.

`DeadLetter` is the plugin, in `plugin`, with `labels`, `announcement` and `tending`. Apart from it stand the `workbench`
of `DeadLetters`, which look into the queues, and the `commands` of ``rabbitevents dlq``. A `DeadLetterMessage` (`letters`)
is what all of them speak of.
"""

from rabbitevents_deadletter.announcement import EventProcessingFailed
from rabbitevents_deadletter.letters import DeadLetterMessage
from rabbitevents_deadletter.plugin import DeadLetter
from rabbitevents_deadletter.workbench import DeadLetters, Group, Lines, Result, Selection, Summary, read_lines

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

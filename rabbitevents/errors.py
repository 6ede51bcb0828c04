"""What can go wrong, as one tree.

::

    RabbitEventsError
    ├── ConfigurationError        what was written cannot work; raised before anything runs
    │   └── TopologyError         the broker has it already, and otherwise
    ├── EncodeError               an event that cannot be put on the wire; raised at the caller, before any I/O
    ├── DecodeError               a delivery that cannot be read
    ├── BrokerError               the broker refused, broke off or did not answer
    │   └── BrokerUnavailableError  no broker could be reached, or none let us in
    └── PublishError              an event that was not confirmed; carries the message
        ├── NotSentError          nothing left this process: certainly not published
        ├── UnroutableError       no queue is bound for it
        ├── RefusedError          the broker answered no
        └── OutcomeUnknownError   it left, and no answer came: published, or not

Errors carry their data as attributes; none of them carries a body or a password.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rabbitevents.message import Message


class RabbitEventsError(Exception):
    """The root of everything that this library raises."""


class ConfigurationError(RabbitEventsError):
    """What was written cannot work; the text says what, where, and the way out."""


class TopologyError(ConfigurationError):
    """An exchange or a queue exists already with other arguments, or does not exist where it must.

    ``name`` is the exchange or queue, ``code`` the broker's reply code (404, 405, 406, 403). ``stands``: this user may
    not declare it, but it is there, and is used as it is.
    """

    def __init__(self, text: str, *, name: str, code: int, stands: bool = False) -> None:
        super().__init__(text)
        self.name = name
        self.code = code
        self.stands = stands


class EncodeError(RabbitEventsError):
    """An event that cannot be put on the wire: its payload, its size, its headers or its routing key."""


class DecodeError(RabbitEventsError):
    """A delivery that cannot be read; ``type`` is what it says it is, as far as that could be read.

    ``unhandled``: there is nothing wrong with it, but that no handler of its queue is for its type.
    """

    def __init__(self, text: str, *, type: str | None = None, unhandled: bool = False) -> None:
        super().__init__(text)
        self.type = type
        self.unhandled = unhandled


class BrokerError(RabbitEventsError):
    """The broker refused, broke off or did not answer; ``code`` is its reply code, 0 when it gave none."""

    def __init__(self, text: str, *, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class BrokerUnavailableError(BrokerError):
    """No broker could be reached, or none let us in; the text says where we looked and what each answered."""


class PublishError(RabbitEventsError):
    """An event that was not confirmed; ``message`` is what should have been published."""

    reason = "was not confirmed"

    def __init__(self, message: Message, detail: str = "") -> None:
        super().__init__(f"{message.describe()} {self.reason}{': ' if detail else ''}{detail}")
        self.message = message


class NotSentError(PublishError):
    """Nothing left this process before the deadline: certainly not published, safe to publish again."""

    reason = "was not sent"


class UnroutableError(PublishError):
    """The broker took it and found no queue bound for it (``basic.return``, code 312)."""

    reason = "reached no queue"


class RefusedError(PublishError):
    """The broker answered no: a queue is full or could not take it, or the one that it is to wait in may not be made."""

    reason = "was refused by the broker"


class OutcomeUnknownError(PublishError):
    """It left this process and no answer came in time: it may be published, or not.

    Publishing it again with the same event id is safe where handlers are idempotent.
    """

    reason = "got no answer"

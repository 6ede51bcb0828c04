"""What a process answers to an event: a new state, events, and what is to be waited for."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from enum import Enum
from typing import Any, Final

from attrs import field, frozen

from rabbitevents import ConfigurationError
from rabbitevents.arguments import Seconds, several, span, text


class Done(Enum):
    """The type of `DONE`, which is its one member."""

    DONE = "done"

    def __repr__(self) -> str:
        return self.name


DONE: Final = Done.DONE
"""In place of a state: the process has ended."""


def _name(name: str) -> str:
    return text("Timeout: name", name, such_as="unpaid")


def _after(after: Seconds) -> timedelta:
    return span("Timeout: after", after)


@frozen
class Timeout:
    """What a process waits for, and how long: after that time its function for ``name`` is called.

    One of the same name that was set before is replaced. It never comes earlier, and later by as much as the outbox's relay
    is behind, or waits are rounded up at the broker (10 %).

    :param name: That of a function that `Process.timeout` decorates.
    :param after: How long, from the commit on: seconds, or a timedelta.

    Raises `ConfigurationError`.
    """

    name: str = field(converter=_name)
    after: timedelta = field(converter=_after)


@frozen(init=False)
class Step:
    """What comes of an event: the process's new state, or `DONE`; events; and timeouts. They commit together.

    ::

        return Step(Fulfilment(order_id), ChargeCard(order_id), timeout=Timeout("unpaid", timedelta(minutes=30)))
        return Step(DONE, OrderCancelled(order_id))

    :param state: The new state, or `DONE`.
    :param events: What is published: instances of `@event` classes, or `Event` values.
    :param timeout: A `Timeout`, or a list of them, each under a name of its own. What was set before stays set.
    :param clear: The name of a timeout that is waited for no more, or a list of them. (`DONE` clears all.)

    Raises `ConfigurationError`.
    """

    state: Any
    """The new state, or `DONE`."""
    events: tuple[Any, ...]
    """What is published."""
    timeouts: tuple[Timeout, ...]
    """What is waited for from now on."""
    cleared: tuple[str, ...]
    """The timeouts that are waited for no more."""

    def __init__(
        self,
        state: Any,
        *events: Any,
        timeout: Timeout | Iterable[Timeout] = (),
        clear: str | Iterable[str] = (),
    ) -> None:
        timeouts = (timeout,) if isinstance(timeout, Timeout) else _timeouts(timeout)
        cleared = (clear,) if isinstance(clear, str) else several("Step: clear", clear, str, '["unpaid"]')
        names = [each.name for each in timeouts]
        twice = next((name for name in (*names, *cleared) if [*names, *cleared].count(name) > 1), None)
        if twice is not None:
            raise ConfigurationError(f"Step: it says twice what becomes of the timeout {twice!r}: say it once")
        if state is DONE and timeouts:
            raise ConfigurationError("Step(DONE, timeout=...): what has ended waits for nothing; leave the timeout out")
        for name, value in {"state": state, "events": events, "timeouts": timeouts, "cleared": cleared}.items():
            object.__setattr__(self, name, value)


def _timeouts(given: Iterable[Timeout]) -> tuple[Timeout, ...]:
    return several("Step: timeout", given, Timeout, 'Timeout("unpaid", timedelta(minutes=30))')

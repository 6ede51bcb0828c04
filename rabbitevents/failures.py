"""What a handler raises that knows better than the policy: not again, or not before.

Both derive from `Exception` and not from the library's root: their text is the handler's, and may hold what was in the
event. The house shows the texts of its own errors in logs and health, and of all others the class alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import cast

from rabbitevents.arguments import Seconds, kind_of

__all__ = ["BatchError", "Fatal", "RetryLater", "members"]


class Fatal(Exception):
    """A failure that no repetition mends: the event is given up on at once.

    ``raise Fatal("there is no such customer") from error``
    """


class RetryLater(Exception):
    """A failure whose handler knows when to try again: ``after`` so many seconds, or a timedelta, and not before.

    It stands in for the policy's ``wait`` and ``retry``; it is an attempt like another, and obeys ``stop``.

    ``raise RetryLater(float(response.headers["Retry-After"])) from error``

    :param after: How long to wait: seconds, or a timedelta. A time that is past means at once.
    :param text: What the exception says.

    Raises ValueError for what is no time: a text, NaN.
    """

    def __init__(self, after: Seconds, text: str = "") -> None:
        if isinstance(after, bool) or not isinstance(cast("object", after), (int, float, timedelta)):
            raise ValueError(f"RetryLater: after is {kind_of(after)}: say seconds, such as 30, or a timedelta")
        seconds = after.total_seconds() if isinstance(after, timedelta) else float(after)
        if math.isnan(seconds):
            raise ValueError("RetryLater(nan): say seconds, or a timedelta")
        super().__init__(text or f"in {seconds:g} s")
        self.after: float = max(0.0, seconds)


class BatchError(Exception):
    """Which events of a batch failed, and of what: the others of it are done.

    ``raise BatchError({3: error})``: the fourth event of the list failed. Each is tried again, or given up on, by itself.

    :param errors: The exceptions by the index of their event in the list that the handler got.

    Raises ValueError for what is no such mapping.
    """

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        if not isinstance(cast("object", errors), Mapping) or not errors:
            raise ValueError("BatchError: say the exceptions by index: BatchError({3: error})")
        for index, error in errors.items():
            if isinstance(index, bool) or not isinstance(cast("object", index), int):
                raise ValueError(f"BatchError: an index is {kind_of(index)}: say the place in the list, from 0")
            if not isinstance(cast("object", error), BaseException):
                raise ValueError(f"BatchError: what is said of {index} is {kind_of(error)}: say an exception")
        super().__init__(f"{len(errors)} of a batch failed")
        self.errors: dict[int, BaseException] = dict(errors)


def members(error: BaseException) -> Iterator[BaseException]:
    """Yield what failed: ``error`` itself, or each member of a group, however deep (a TaskGroup in a handler)."""
    if isinstance(error, BaseExceptionGroup):
        for each in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from members(each)
    else:
        yield error

"""The loads, each by its name, and what each promises. What they do is in `tests.chaos.services`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.chaos.judge import Promises
from tests.chaos.services import CONCURRENCY, dies

LOADS: Final[Mapping[str, Promises]] = {
    "handle": Promises(),
    "retries": Promises(dies=dies),
    "ordered": Promises(in_order=True),
    "batches": Promises(),
    "idempotent": Promises(per_crash=CONCURRENCY),  # those that were between their effect and their mark
    "transactions": Promises(stages=("effect", "passed"), per_crash=0),
}

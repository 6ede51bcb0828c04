"""What was set out to be reached, and whether it is: each target says met or missed, with its figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.field import OURS, REFERENCE
from benchmarks.figures import Figures, Spread

Measured = tuple[str, str, str]
"""A case, a role, a contender."""


@dataclass(frozen=True)
class Target:
    """A bound, and how what it binds is found."""

    name: str
    bound: float
    find: Callable[[Figures], float | None]
    unit: str = "x"
    at_least: bool = True


@dataclass(frozen=True)
class Verdict:
    """A target, and what was found."""

    name: str
    bound: str
    figure: str
    verdict: str
    """``met``, ``missed`` or ``not measured``."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def _middle(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median


def _ratio(what: str, over: Measured, under: Measured) -> Callable[[Figures], float | None]:
    return lambda figures: _middle(figures.ratio(what, over, under))


TITLES = {
    REFERENCE: "FastStream",
    "librabbitmq": "a C program",
    "watermill": "Watermill",
    "spring": "Spring AMQP",
    "aio-pika": "aio-pika by hand",
}


def _against(what: str, case: str, role: str, least: Mapping[str, float]) -> Iterator[Target]:
    """Yield the targets of one of our rates against those of others, by their names."""
    for other, bound in least.items():
        title = f"{what}, beside {TITLES[other]}"
        yield Target(title, bound, _ratio("rate", (case, role, OURS), (case, role, other)))


def _chained(title: str, ours: str, other: str, least: float) -> Target:
    consumed = ("chain", "consume")
    return Target(title, least, _ratio("rate", (*consumed, ours), (*consumed, other)))


def _flat(title: str, case: str, few: str, many: str) -> Target:
    find = _ratio("cpu_us", (case, many, OURS), (case, few, OURS))
    return Target(title, 1.1, find, at_least=False)


def _growth(figures: Figures) -> float | None:
    """Return how much the peak over the backlog is above that of an idle consumer."""
    peak, idle = (figures.spread("backlog", "consume", OURS, what) for what in ("peak_mb", "idle_mb"))
    return None if peak is None or idle is None else peak.median - idle.median


def _start(figures: Figures) -> float | None:
    return _middle(figures.spread("start", "200 handlers", OURS, "seconds"))


P99 = ("latency-1000", "latency")
TARGETS: Sequence[Target] = (
    *_against("consume, no-op", "flow", "consume", {REFERENCE: 10, "librabbitmq": 0.9, "watermill": 1, "spring": 1}),
    *_against(
        "publish, 500 in flight",
        "flow",
        "publish_in_flight",
        {REFERENCE: 6, "librabbitmq": 0.8, "watermill": 1, "spring": 1},
    ),
    *_against("publish, one at a time", "publish", "publish_one", {"aio-pika": 1.35}),
    _chained("DeadLetter, Retry, Idempotency in memory, beside bare FastStream", "rabbitevents-memory", REFERENCE, 6.5),
    _chained("the same on Redis, beside bare FastStream", "rabbitevents-redis", REFERENCE, 4),
    _chained(
        "the whole card, beside FastStream with its tracing and metrics", "rabbitevents-card", "faststream-seeing", 4
    ),
    _chained("Tracing, 1 in 100, beside bare FastStream", "rabbitevents-traced", REFERENCE, 4),
    Target(
        "p99 at 1,000/s, of that of aio-pika by hand",
        1,
        _ratio("p99_ms", (*P99, OURS), (*P99, "aio-pika")),
        at_least=False,
    ),
    Target(
        "import rabbitevents, of import aio_pika",
        1,
        _ratio("cpu_ms", ("import", "rabbitevents", OURS), ("import", "aio_pika", OURS)),
        at_least=False,
    ),
    _flat("CPU an event with 1,000 types, of that with 1", "types", "1 types", "1,000 types"),
    _flat(
        "CPU an event with 200 subscriptions, of that with 1", "subscriptions", "1 subscriptions", "200 subscriptions"
    ),
    Target("start with 200 handlers", 1, _start, " s", at_least=False),
    Target(
        "peak memory over 1,000,000 events, above that of few", 30 + 200 * 400 / 1e6, _growth, " MB", at_least=False
    ),
)


def judged(figures: Figures) -> list[Verdict]:
    """Judge every target."""
    return [_judged(target, target.find(figures)) for target in TARGETS]


def _judged(target: Target, found: float | None) -> Verdict:
    bound = f"{'at least' if target.at_least else 'at most'} {target.bound:g}{target.unit}"
    if found is None:
        return Verdict(target.name, bound, "", "not measured")
    met = found >= target.bound if target.at_least else found <= target.bound
    return Verdict(target.name, bound, f"{found:.2f}{target.unit}", "met" if met else "missed")

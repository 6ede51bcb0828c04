"""What was measured, and how to ask it: medians over the rounds, and ratios within a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Figure = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """The median of some values, and from which to which they go."""

    median: float
    least: float
    most: float

    def shown(self, show: Callable[[float], str]) -> str:
        """Return it as text, without a range where there is none."""
        if self.least == self.most:
            return show(self.median)
        return f"{show(self.median)} ({show(self.least)} to {show(self.most)})"


class Figures:
    """All figures of a run, each with its round."""

    def __init__(self, figures: Sequence[Figure]) -> None:
        self._all = figures

    def cases(self) -> list[str]:
        """Return the cases that something was measured of."""
        return list(dict.fromkeys(each["case"] for each in self._all))

    def roles(self, case: str) -> list[str]:
        return list(dict.fromkeys(each["role"] for each in self._all if each["case"] == case))

    def contenders(self, case: str, role: str) -> list[str]:
        """Return who was measured, the first one first."""
        return list(dict.fromkeys(each["contender"] for each in self._of(case, role)))

    def spread(self, case: str, role: str, contender: str, what: str) -> Spread | None:
        """Return one figure over the rounds; None where it was not measured."""
        found = [each[what] for each in self._of(case, role, contender) if what in each]
        return Spread(median(found), min(found), max(found)) if found else None

    def ratio(self, what: str, over: tuple[str, str, str], under: tuple[str, str, str]) -> Spread | None:
        """Return the median of the rounds' ratios of two measurements: their case, role and contender."""
        both = [dict[int, list[float]](), dict[int, list[float]]()]
        for each, found in zip((over, under), both, strict=True):
            for figure in self._of(*each):
                found.setdefault(figure["round"], []).append(figure[what])
        rounds = [number for number in both[0] if number in both[1]]
        ratios = [median(both[0][number]) / median(both[1][number]) for number in rounds]
        return Spread(median(ratios), min(ratios), max(ratios)) if ratios else None

    def _of(self, case: str, role: str, contender: str = "") -> Iterator[Figure]:
        for each in self._all:
            if each["case"] == case and each["role"] == role and contender in ("", each["contender"]):
                yield each

"""A trace as a tree of text: what happened, in order, with durations, for a terminal or a test.

::

    exporter = InMemorySpanExporter()   # of the SDK
    ...
    print(story(Step.of(span) for span in exporter.get_finished_spans()))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from rabbitevents.texts import printable
from rabbitevents_tracing.carrier import LINK


class Step(msgspec.Struct, frozen=True):
    """A span that has ended, as a value that can be written (with msgspec, say) and read by another process.

    Times are seconds since 1970. ``producer`` is the span that a trace of its own is linked to.
    """

    id: str
    trace: str
    name: str
    start: float
    end: float
    parent: str = ""
    producer: str = ""
    failed: bool = False
    attributes: dict[str, Any] = {}
    events: tuple[str, ...] = ()

    @classmethod
    def of(cls, span: Any) -> Step:
        """Return the step that a span is, as the SDK gives it to an exporter (``ReadableSpan``)."""
        links = [(link.context.span_id, dict[str, Any](link.attributes or {})) for link in span.links]
        producers = [id for id, attributes in links if attributes.get(LINK) == "producer"]
        return cls(
            id=format_span_id(span.context.span_id),
            trace=format_trace_id(span.context.trace_id),
            name=span.name,
            start=span.start_time / 1e9,
            end=span.end_time / 1e9,
            parent=format_span_id(span.parent.span_id) if span.parent is not None else "",
            producer=format_span_id(producers[0]) if producers else "",
            failed=span.status.status_code is StatusCode.ERROR,
            attributes=dict(span.attributes or {}),
            events=tuple(event.name for event in span.events),
        )

    @property
    def notes(self) -> str:
        """What is worth saying of it: how long it waited, which attempt it was, how it failed, what happened in it."""
        said: list[str] = []
        attempt, wait = self.attributes.get("rabbitevents.attempt", 1), self.attributes.get("rabbitevents.wait")
        if wait is not None:
            said.append(f"waited {_duration(wait)}")
        if attempt > 1 or self.failed:
            said.append(f"attempt {attempt}")
        error = self.attributes.get("error.type")
        if self.failed and error is not None:
            where = self.attributes.get("rabbitevents.error.location")
            said.append(f"failed with {error}" + (f" at {where}" if where is not None else ""))
        if delay := self.attributes.get("rabbitevents.delay"):
            said.append(f"in {delay:.3g} s")
        happened = ("duplicate", "unroutable")
        said += [each for each in happened if self.attributes.get(f"rabbitevents.{each}")]
        return ", ".join([*said, *(each for each in self.events if each != "exception")])


def story(steps: Iterable[Step], width: int | None = None) -> str:
    """Return steps as lines of text: when each began, how long it took, what it was.

    What a step led to stands below it, linked traces too. The times of beginning count from the first step. Where the
    lines would be wider than ``width`` columns, the branches come first, and each line is broken within its own.
    """
    ordered = sorted(steps, key=lambda step: step.start)
    if not ordered:
        return "(nothing was traced)"
    known = {step.id for step in ordered}
    below: dict[str, list[Step]] = {}
    for step in ordered:
        cause = next((each for each in (step.parent, step.producer) if each in known), "")
        below.setdefault(cause, []).append(step)
    began = ordered[0].start
    branches = list(_branches(below))
    across = max(len(branch) + len(printable(step.name)) for step, branch, _ in branches)
    lines = [
        f"{step.start - began:>9.3f} s {_duration(step.end - step.start):>9}  "
        f"{branch + printable(step.name):<{across}}  {printable(step.notes)}".rstrip()
        for step, branch, _ in branches
    ]
    if width is not None and max(map(len, lines)) > width:
        lines = [line for step, branch, guide in branches for line in _narrow(step, began, branch, guide, width)]
    return "\n".join(lines)


def _narrow(step: Step, began: float, branch: str, guide: str, width: int) -> Iterator[str]:
    """Yield a step's lines where there is little room: its branch and name, and below it what else there is to say."""
    times = f"at {step.start - began:.3f} s, {_duration(step.end - step.start)}"
    for text in (step.name, f"{times}, {step.notes}" if step.notes else times):
        for line in _broken(printable(text), max(width - len(guide), 10)):
            yield branch + line
            branch = guide


def _broken(text: str, room: int) -> Iterator[str]:
    """Yield a text in lines, broken behind a space, or a sign that stands between names."""
    line = ""
    for word in re.findall(rf"[^\s:.]{{,{room - 1}}}[\s:.]?", text):
        if len(line) + len(word.rstrip()) > room:
            yield line.rstrip()
            line = ""
        line += word
    yield line


def _branches(below: dict[str, list[Step]]) -> Iterator[tuple[Step, str, str]]:
    """Yield each step with the branch that leads to it, what a step led to right after it. Traces may be deep.

    The last of the three is what stands before a second line of the step: its branches go on.
    """
    left = [(step, "", "") for step in reversed(below.get("", ()))]
    while left:
        step, branch, indent = left.pop()
        led_to = below.get(step.id, [])
        yield step, branch, indent + ("│  " if led_to else "   ")
        for place in reversed(range(len(led_to))):
            last = place == len(led_to) - 1
            left.append((led_to[place], f"{indent}{'└─ ' if last else '├─ '}", f"{indent}{'   ' if last else '│  '}"))


def _duration(seconds: float) -> str:
    """Return a duration as people read it."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms" if seconds >= 0.01 else f"{seconds * 1000:.2f} ms"
    return f"{seconds:.2f} s" if seconds < 60 else f"{seconds / 60:.1f} min"

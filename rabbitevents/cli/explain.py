"""``rabbitevents explain``: which handler is called for what, and what becomes of an event. No broker is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Final

import click
import msgspec
from rich.text import Text

from rabbitevents import ConfigurationError
from rabbitevents.cli.console import one_line, out
from rabbitevents.cli.layout import hanging, rows, width_of
from rabbitevents.cli.loop import run
from rabbitevents.cli.reference import BusReference, load_bus
from rabbitevents.cli.seeing import HTTP, http_url
from rabbitevents.operations.live import Live, live
from rabbitevents.operations.wiring import (
    EventWiring,
    HandlerWiring,
    SubscriptionWiring,
    Wiring,
    meant,
    wiring,
)

GIVEN_UP: Final = "given up on"
"""The label of where an event goes in the end, which stands last."""

_HELD: Final = "nothing: without DeadLetter() what fails is held, and tried again after a growing pause"


@click.command(
    epilog="""\b
Examples:
  rabbitevents explain shop.inventory:bus                    all handlers
  rabbitevents explain shop.inventory:bus inventory.reserve  one of them
  rabbitevents explain shop.inventory:bus order.placed       who gets an event
  rabbitevents explain shop.inventory:bus --json > wiring.json"""
)
@click.argument("reference", metavar="MODULE:BUS", type=BusReference())
@click.argument("pattern", metavar="[PATTERN]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Write it as JSON, in a form that stays.")
@click.option("--live", "look", is_flag=True, help="Ask the broker what stands there, over HTTP.")
@HTTP
def explain(reference: str, pattern: str | None, as_json: bool, look: bool, http: str | None) -> None:
    """Say how a bus is wired: handlers, queues, plugins.

    PATTERN is a queue, a handler, an event type or its class, or a topic
    pattern such as 'inventory.*'. The module is imported, and no connection is
    opened, unless --live is said.
    """
    if http is not None and not look:
        raise click.UsageError("--http is where --live looks: say that too")
    bus = load_bus(reference)
    wired = wiring(bus)
    shown = wired.subscriptions if pattern is None else meant(wired, pattern)
    if pattern is not None and not shown:
        raise ConfigurationError(f"{reference} has nothing that {pattern[:80]!r} is about; {_there(wired, pattern)}")
    seen = run(live(bus, http_url(http))) if look else None
    if as_json:
        click.echo(as_document(msgspec.structs.replace(wired, subscriptions=shown), seen))
        return
    width = width_of(out)
    for line in _overview(wired, width, seen) if pattern is None else _whole(wired, shown, width, seen):
        out.print(line)


def _there(wired: Wiring, pattern: str) -> str:
    names = [name for each in wired.subscriptions for name in (each.queue, *(e.type for e in _events(each)))]
    close = get_close_matches(pattern, names, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"its queues are {', '.join(each.queue for each in wired.subscriptions) or 'none'}"


def as_document(wired: Wiring, seen: Live | None) -> str:
    """Return the wiring as JSON, and under ``live`` what stands at the broker, if that was asked."""
    document: dict[str, Any] = msgspec.to_builtins(wired)
    if seen is not None:
        document["live"] = msgspec.to_builtins(seen)
    return json.dumps(document, indent=2)


# --- all of it -------------------------------------------------------------------------------------------------------


def _overview(wired: Wiring, width: int, seen: Live | None) -> Iterator[Text]:
    yield from hanging(Text(wired.bus, "bold"), f" on {wired.broker}, exchange {wired.exchange}", width, indent=2)
    for each in wired.subscriptions:
        yield Text()
        yield from _title(each, width)
        yield from rows(_calls(each, brief=True) + _published(each) + _live(each, seen, brief=True), width)
    if not wired.subscriptions:
        yield from rows([("handlers", "none: this bus only publishes")], width)
    if wired.elsewhere:
        yield Text()
        types = ", ".join(event.type for event in wired.elsewhere)
        yield from rows([("handled elsewhere", f"{types} (no handler of this bus is called for it)")], width, indent="")
    if seen is not None and seen.problem:
        yield Text()
        yield from rows([("not looked at", seen.problem)], width, indent="")


def _title(each: SubscriptionWiring, width: int) -> Iterator[Text]:
    """Yield the name, and at the right where the handler stands."""
    places = ", ".join(handler.place for handler in each.handlers if handler.place)
    gap = min(width, 78) - len(each.name) - len(places)
    yield Text.assemble((each.name, "bold"), " " * max(gap, 2), (places, "dim")) if gap > 1 else Text(each.name, "bold")
    if gap <= 1 and places:
        yield from rows([("", places)], width, indent="")


def _calls(each: SubscriptionWiring, *, brief: bool = False) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for handler in each.handlers:
        which = f"{handler.name}: " if len(each.handlers) > 1 else ""
        named = [event.type if brief else _named(event) for event in handler.events]
        found += [("is called for", f"{which}{text}") for text in (*named, *handler.patterns)]
    return _joined(found) if brief else found


def _joined(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(pairs[0][0], ", ".join(text for _, text in pairs))] if pairs else []


def _named(event: EventWiring) -> str:
    older = f", reads {event.oldest} on" if event.oldest < event.version else ""
    aliases = f", also {', '.join(event.aliases)}" if event.aliases else ""
    return f"{event.type} ({event.name}, version {event.version}{older}{aliases})"


def _published(each: SubscriptionWiring) -> list[tuple[str, str]]:
    types = ", ".join(event.type for event in each.published)
    return [("publishes", f"{types} (by annotation)")] if types else []


def _events(each: SubscriptionWiring) -> Iterator[EventWiring]:
    for handler in each.handlers:
        yield from handler.events


# --- one of them -----------------------------------------------------------------------------------------------------


def _whole(wired: Wiring, shown: tuple[SubscriptionWiring, ...], width: int, seen: Live | None) -> Iterator[Text]:
    for number, each in enumerate(shown):
        if number:
            yield Text()
        yield from _title(each, width)
        yield from rows(_rows(each) + _live(each, seen), width)
    if seen is not None and seen.problem:
        yield Text()
        yield from rows([("not looked at", seen.problem)], width, indent="")


def _rows(each: SubscriptionWiring) -> list[tuple[str, str]]:
    kind, limit = each.arguments.get("x-queue-type", "classic"), each.arguments.get("x-delivery-limit")
    timeout = "no timeout" if each.timeout is None else f"{each.timeout:g} s at most for one"
    said = [(each_said.label, each_said.text) for each_said in each.said]
    in_the_end = [] if any(label == GIVEN_UP for label, _ in said) else [(GIVEN_UP, _HELD)]
    return [
        *_calls(each),
        ("queue", f"{_queues(each)}, {kind}, delivery limit {limit}"),
        *([("was", f"{each.was}: that is consumed as long as it stands")] if each.was else []),
        *(("bound to", f"{bound.exchange}: {', '.join(bound.keys)}") for bound in each.bound),
        ("works with", f"workers {each.workers}, prefetch {each.prefetch}, {timeout}"),
        *(
            [("in order", f"of each {each.order}" if each.order == "entity" else f"by {each.order}")]
            if each.order
            else []
        ),
        *([("in batches", each.batch)] if each.batch else []),
        ("plugins", " > ".join(plugin.name for plugin in each.plugins) or "none"),
        *_by_label(said + in_the_end),
        ("at the broker", f"after {limit} deliveries that nobody settled, {each.dead_queue}"),
        *_published(each),
        *(("function", _function(handler)) for handler in each.handlers),
        ("identity", f"{each.identity} (derived ids and claims of idempotency use it)"),
    ]


def _queues(each: SubscriptionWiring) -> str:
    return f"{each.queue} to {each.partitions[-1]}" if each.partitions else each.queue


def _function(handler: HandlerWiring) -> str:
    return f"{handler.function} {handler.place}".rstrip()


def _by_label(said: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return lines with those of one label together, what comes in the end last."""
    order = {label: place for place, label in enumerate(dict.fromkeys(label for label, _ in said))}
    return sorted(said, key=lambda pair: (pair[0] == GIVEN_UP, order[pair[0]]))


def _live(each: SubscriptionWiring, seen: Live | None, *, brief: bool = False) -> list[tuple[str, str]]:
    if seen is None or seen.problem:
        return []
    queues = each.partitions or (each.queue,)
    found = [("stands", seen.said(queue, each.dead_queue)) for queue in queues]
    found += [(one.grade, one_line(one.what)) for one in seen.found if one.where in queues]
    return found

"""The command ``rabbitevents demo``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs
import click
from yarl import URL

from rabbitevents import ConfigurationError, cli
from rabbitevents.demo.orders import SAMPLE, BadLine, Order, make_orders, poisoned, read_orders
from rabbitevents.demo.progress import watching
from rabbitevents.demo.quiet import quiet
from rabbitevents.demo.report import show
from rabbitevents.demo.run import run
from rabbitevents.demo.sabotage import Sabotage
from rabbitevents.demo.settings import Settings

FLAWED: Final = 1
INTERRUPTED: Final = 130
"""Exit codes. 0 says that nothing was lost, and nothing handled twice unless a service was killed."""

MOST: Final = 100_000
"""The most orders of one run: what is counted is kept in memory."""

MOST_TRACED: Final = 5_000
"""The most orders of a run with --trace: each writes about 25 kB of spans."""

JSON_KEYS: Final = (
    "broker",
    "store",
    "placed",
    "confirmed",
    "cancelled",
    "published",
    "handled",
    "lost",
    "duplicates",
    "seconds",
    "retried",
    "dead",
)
"""What ``--json`` says, in this order; `Counts` says what each is."""

STORE_KEYS: Final = ("overdue",)
REPLAY_KEYS: Final = ("replayed", "equal")
"""What it says then, with ``--store`` and with ``--replay``."""


def _number(text: str) -> int:
    """Read a whole number from 1 to `MOST`."""
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= MOST):
        raise click.BadParameter(f"{text[:20]!r} is no number from 1 to {MOST:,}")
    return int(text)


def _rate(text: str) -> float:
    """Read a rate from 0 to 1."""
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:  # so is what is no number at all ("nan")
        raise click.BadParameter(f"{text[:20]!r} is no rate from 0 to 1")
    return rate


def _collector(text: str) -> str:
    """Read the URL of a collector."""
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise click.BadParameter("say where the collector is, such as http://localhost:4318")
    return text


@click.command()
@click.option("--orders", type=_number, metavar="N", help="Make N orders (1000).")
@click.option("--seed", type=int, default=1, metavar="S", help="Make other orders, and let others fail (1).")
@click.option(
    "--input", "source", type=click.Path(path_type=Path), metavar="FILE", help=f"Read orders, as in {SAMPLE.name}."
)
@click.option("--broker", metavar="URL", help="amqp://... for RabbitMQ; without it, the embedded broker.")
@click.option("--processes", is_flag=True, help="Give each service a process of its own (on RabbitMQ).")
@click.option("--redis", metavar="URL", help="Remember in Redis what was handled, and not in each process.")
@click.option("--store", metavar="URL", help="Write state and events in one transaction: sqlite:///shop.db.")
@click.option("--replay", is_flag=True, help="Make the store's read models anew from its events, and compare.")
@click.option("--fail", type=_rate, default="0", metavar="RATE", help="Let payments fail: 0.2 is every fifth try (0).")
@click.option("--poison", is_flag=True, help="Place one order that no service can handle.")
@click.option("--trace", is_flag=True, help="Show the trace of one order.")
@click.option("--otlp", type=_collector, metavar="URL", help="Send traces to a collector: http://localhost:4318.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object, and nothing else.")
@click.option(
    "--patience", type=_number, default="15", metavar="S", help="Seconds without a new effect until one is lost (15)."
)
@click.option("--sabotage", type=click.Choice(["drop", "dup"]), hidden=True)
def demo(
    orders: int | None,
    seed: int,
    source: Path | None,
    broker: str | None,
    processes: bool,
    redis: str | None,
    store: str | None,
    replay: bool,
    fail: float,
    poison: bool,
    trace: bool,
    otlp: str | None,
    as_json: bool,
    patience: int,
    sabotage: Sabotage | None,
) -> int:
    """Run a shop of five services, and count every effect.

    Every event that the broker confirms must have each of its effects, once, or be among the dead letters: what counts
    is in files that are fsynced before an event is acknowledged, and with --store in the transaction of what it counts.
    The exit code is 0 if so, and 1 if not.

    One run at a time on a broker: services of the same name share their queues.
    """
    if orders is not None and source is not None:
        raise click.UsageError("--orders and --input exclude each other: leave one of them out")
    if trace and as_json:
        raise click.UsageError("--trace is for people, and --json prints nothing else: leave one of them out")
    if redis is not None and store is not None:
        raise click.UsageError("--redis and --store both remember what was handled: leave one of them out")
    if replay and store is None:
        raise click.UsageError("--replay needs --store sqlite:///shop.db: without a store, no events are kept")
    embedded = broker is None or broker.startswith("memory:")
    if processes and embedded:
        raise click.UsageError("--processes needs --broker amqp://...: the embedded broker lives in one process")
    settings = Settings(
        broker=None if embedded else broker,
        processes=processes,
        fail=fail,
        seed=seed,
        redis=redis,
        store=store,
        replay=replay,
        trace=trace,
        otlp=otlp,
        patience=patience,
        sabotage=sabotage,
    )
    wanted = list(make_orders(orders or 1000, seed)) if source is None else _read(source)
    if trace and len(wanted) > MOST_TRACED:
        raise click.UsageError(f"--trace writes down every span: place at most {MOST_TRACED:,} orders with it")
    return _run(poisoned(wanted) if poison else wanted, settings, as_json)


def _run(orders: Sequence[Order], settings: Settings, as_json: bool) -> int:
    """Run it, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        with quiet(), watching(len(orders)) as audience:
            result = cli.run(run(orders, settings, audience))
    except OSError as error:
        raise ConfigurationError(f"{error.filename or 'the ledger'}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        cli.say.print("stopped; nothing was counted")
        return INTERRUPTED
    if as_json:
        counts = attrs.asdict(result.counts)
        keys = (*JSON_KEYS, *(STORE_KEYS if settings.store else ()), *(REPLAY_KEYS if settings.replay else ()))
        click.echo(json.dumps({key: counts[key] for key in keys}))
    else:
        show(result)
    return 0 if result.counts.flawless else FLAWED


def _read(path: Path) -> list[Order]:
    """Read a file of orders; each bad line is reported, and skipped. Raises `ConfigurationError`."""
    orders: list[Order] = []
    try:
        with path.open("rb") as lines:
            for item in read_orders(lines):
                if isinstance(item, BadLine):
                    cli.say.print(f"{path}, line {item.number}: {item.reason}; skipped")
                else:
                    orders.append(item)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    return orders

"""The command line of the demonstration: ``make demo``, or ``python -m rabbitevents.demo``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from rabbitevents import RabbitEventsError
from rabbitevents.demo.orders import SAMPLE, BadLine, Order, make_orders, read_orders
from rabbitevents.demo.run import Counts, Settings, run

FLAWED: Final = 1
USAGE_ERROR: Final = 2
INTERRUPTED: Final = 130
"""Exit codes. 0 says that nothing was lost and nothing handled twice."""

MOST_ORDERS: Final = 1_000_000


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"demo: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m rabbitevents.demo",
        description="An order service and an inventory service. Every event that the broker confirms must have its "
        "effect, once: the records that the handlers fsync are counted. The exit code is 0 if so, and 1 if not.",
        epilog="One run at a time on a broker: services of the same name share their queues.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--orders", type=_number, default=1000, metavar="N", help="make N orders (1000)")
    source.add_argument(
        "--input", type=Path, metavar="FILE", help=f"read orders, a JSON object a line, as in {SAMPLE.name}"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="make other orders (1)")
    parser.add_argument("--broker", metavar="URL", help="amqp://... for RabbitMQ; without it, the embedded broker")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object, as the last line")
    parser.add_argument(
        "--patience", type=_number, default=15, metavar="S", help="seconds without a new effect until one is lost (15)"
    )
    parser.add_argument("--sabotage", choices=["drop", "dup"], help=argparse.SUPPRESS)
    return parser


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= MOST_ORDERS):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no number from 1 to {MOST_ORDERS:,}")
    return int(text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _read(path: Path) -> list[Order]:
    """Read a file of orders; each bad line is reported, and skipped. Raises OSError."""
    orders: list[Order] = []
    with path.open("rb") as lines:
        for item in read_orders(lines):
            if isinstance(item, BadLine):
                _say(f"{path}, line {item.number}: {item.reason}; skipped")
            else:
                orders.append(item)
    return orders


def _show(counts: Counts) -> None:
    print(
        f"{counts.placed:,} orders placed: stock was reserved for {counts.reserved:,}, and short for {counts.refused:,}"
    )
    print(
        f"{counts.published:,} events confirmed by {counts.broker}, {counts.handled:,} handled, in {counts.seconds:.2f} s"
    )
    print(f"{counts.lost:,} lost, {counts.duplicates:,} duplicates")


def _show_json(counts: Counts) -> None:
    names = ("broker", "placed", "published", "handled", "lost", "duplicates", "seconds")
    print(json.dumps({name: getattr(counts, name) for name in names}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    embedded = given.broker is None or given.broker.startswith("memory:")
    settings = Settings(None if embedded else given.broker, patience=given.patience, sabotage=given.sabotage)
    try:
        orders = list(make_orders(given.orders, given.seed)) if given.input is None else _read(given.input)
        counts = asyncio.run(run(orders, settings, _say))
    except OSError as error:
        parser.error(f"{error.filename or 'the ledger'}: {error.strerror or error}")
    except RabbitEventsError as error:
        parser.exit(USAGE_ERROR, f"demo: {' '.join(str(error).split())}\n")
    except KeyboardInterrupt:
        _say("stopped; nothing was counted")
        return INTERRUPTED
    (_show_json if given.json else _show)(counts)
    return 0 if counts.flawless else FLAWED


if __name__ == "__main__":
    sys.exit(main())

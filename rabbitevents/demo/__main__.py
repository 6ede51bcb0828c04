"""The command line of the demonstration: ``python -m rabbitevents.demo``, or ``make demo``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rabbitevents import RabbitEventsError
from rabbitevents.demo.orders import SAMPLE, BadLine, Order, make_orders, read_orders
from rabbitevents.demo.run import Counts, Settings, run

USAGE_ERROR = 2
INTERRUPTED = 130
"""Exit codes: 0 when nothing was lost or repeated, 1 otherwise, and these two."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        self.exit(USAGE_ERROR, f"demo: {message} (--help says more)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="make demo ARGS=...",
        description="An order service and an inventory service. Every event that the broker confirms must have its "
        "effect, once: the handlers' fsynced records are counted. Exits with 0 if so, with 1 if not. "
        "One run at a time on one broker.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--input", type=Path, metavar="FILE", help=f"read orders, one JSON object a line (see {SAMPLE.name})")
    source.add_argument("--orders", type=_positive, default=1000, metavar="N", help="make N orders (1000)")
    parser.add_argument("--seed", type=int, default=1, help="make other orders (1)")
    parser.add_argument("--broker", metavar="URL", help="amqp://..., or memory:// for the embedded broker (the default)")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object, as the last line")
    parser.add_argument(
        "--patience", type=_positive, default=15, metavar="S", help="seconds without a new effect until one is lost (15)"
    )
    parser.add_argument("--sabotage", choices=["drop", "dup"], help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number from 1 up")
    return int(text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _read(path: Path) -> list[Order]:
    """Read a file of orders; each bad line is reported, and skipped. Raises OSError."""
    orders: list[Order] = []
    with path.open("rb") as lines:
        for item in read_orders(lines):
            if isinstance(item, BadLine):
                _say(f"{path}:{item.number}: skipped: {item.reason}")
            else:
                orders.append(item)
    return orders


def _show(counts: Counts) -> None:
    print(f"{counts.placed:,} orders placed: {counts.confirmed:,} confirmed, {counts.cancelled:,} out of stock")
    print(f"{counts.published:,} events published on {counts.broker}, {counts.handled:,} handled, {counts.seconds:.2f} s")
    print(f"{counts.lost:,} lost, {counts.duplicates:,} handled twice")


def _show_json(counts: Counts) -> None:
    names = ("broker", "placed", "published", "handled", "lost", "duplicates", "seconds")
    print(json.dumps({name: getattr(counts, name) for name in names}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    settings = Settings(
        broker=None if given.broker in (None, "memory://") else given.broker,
        patience=given.patience,
        sabotage=given.sabotage,
    )
    try:
        orders = _read(given.input) if given.input is not None else list(make_orders(given.orders, given.seed))
        counts = asyncio.run(run(orders, settings, _say))
    except OSError as error:
        parser.error(f"{error.filename or 'input/output'}: {error.strerror or error}")
    except RabbitEventsError as error:
        parser.exit(USAGE_ERROR, f"demo: {' '.join(str(error).split())}\n")
    except KeyboardInterrupt:
        _say("stopped; nothing was counted")
        return INTERRUPTED
    (_show_json if given.json else _show)(counts)
    return 0 if counts.flawless else 1


if __name__ == "__main__":
    sys.exit(main())

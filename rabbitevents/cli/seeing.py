"""How commands are told where RabbitMQ's management API is."""

from __future__ import annotations

import os
from typing import Final

import click

from rabbitevents import ConfigurationError

HTTP_URL: Final = "RABBITMQ_HTTP_URL"
"""The environment variable that ``--http -`` reads, so that no password stands in a list of processes."""

HTTP = click.option(
    "--http",
    metavar="URL",
    help=f"Where the management API is; - reads {HTTP_URL} (beside the broker, port 15672, as its user).",
)


def http_url(told: str | None) -> str | None:
    """Return the URL that is meant by ``--http``. Raises `ConfigurationError` for an environment that has none."""
    if told != "-":
        return told
    if not (url := os.environ.get(HTTP_URL)):
        raise ConfigurationError(f"--http - reads the URL from {HTTP_URL}, which is not set")
    return url

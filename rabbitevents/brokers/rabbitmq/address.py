"""Where a broker is: its URL, shown without its password."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from yarl import URL

from rabbitevents.errors import ConfigurationError


class Address(msgspec.Struct, frozen=True):
    """A broker's URL, shown without its password."""

    url: str

    @property
    def parsed(self) -> URL:
        """The URL in parts."""
        return URL(self.url)

    def __str__(self) -> str:
        url = self.parsed
        port = url.port or (5671 if url.scheme == "amqps" else 5672)
        return f"{url.scheme}://{url.user + '@' if url.user else ''}{url.host}:{port}{url.raw_path}"

    def __repr__(self) -> str:
        return f"Address({self!s})"


def addresses(urls: Sequence[str]) -> tuple[Address, ...]:
    """Check URLs. Raises `ConfigurationError` for one that cannot be meant."""
    for number, text in enumerate(urls, 1):
        which = "the broker's URL" if len(urls) == 1 else f"URL number {number}"
        try:
            url = URL(text)
        except ValueError:
            url = URL()
        if url.scheme not in ("amqp", "amqps") or not url.host:  # not shown: a password may be anywhere in it
            raise ConfigurationError(
                f"{which} cannot be read; write amqp://user:password@host:5672/vhost, amqps:// for TLS, "
                "or memory:// for the embedded broker (and %2F and the like for signs such as / in a password)"
            )
        if url.query.get("no_verify_ssl", "0") != "0":
            raise ConfigurationError(
                f"{which}: no_verify_ssl would switch TLS's checks off; pass ssl_context= to say so in code"
            )
    if not urls:
        raise ConfigurationError("a bus needs the URL of at least one broker")
    return tuple(Address(text) for text in urls)

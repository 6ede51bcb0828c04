"""Where a broker is: its URL, read once and strictly, and shown without its password."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec
from yarl import URL

from rabbitevents.arguments import kind_of
from rabbitevents.errors import ConfigurationError

KNOWN: Final = ("auth", "cadata", "cafile", "capath", "certfile", "heartbeat", "keyfile")
"""The parameters of a URL that count: how to log in, the files of TLS, and the heartbeat in seconds."""

_ELSEWHERE = {
    "blocked_connection_timeout": "Bus(publish_timeout=)",
    "connection_attempts": "Bus(start_timeout=)",
    "connection_timeout": "Bus(start_timeout=)",
    "name": "Bus(name=)",
    "ssl_options": "Bus(ssl_context=)",
    "timeout": "Bus(start_timeout=)",
}
"""What others' URLs say, and where it is said here."""

_WRITE = "write amqp://user:password@host:5672/vhost, amqps:// for TLS, or memory:// for the embedded broker"


class Address(msgspec.Struct, frozen=True):
    """A broker's URL, shown without its password."""

    url: str

    @property
    def parsed(self) -> URL:
        """The URL in parts."""
        return URL(self.url)

    def heartbeat(self, otherwise: int) -> int:
        """Return the heartbeat that the URL asks for, in seconds; ``otherwise``, where it does not say."""
        said = self.parsed.query.get("heartbeat")
        return otherwise if said is None else int(said)

    def __str__(self) -> str:
        url = self.parsed
        port = url.port or (5671 if url.scheme == "amqps" else 5672)
        host = f"[{url.host}]" if ":" in (url.host or "") else url.host
        return f"{url.scheme}://{url.raw_user + '@' if url.raw_user else ''}{host}:{port}{url.raw_path}"

    def __repr__(self) -> str:
        return f"Address({self!s})"


def addresses(urls: Sequence[str]) -> tuple[Address, ...]:
    """Check URLs. Raises `ConfigurationError` for one that cannot be meant, which shows nothing of it but its host.

    A password may be anywhere in a URL that cannot be read.
    """
    if not urls:
        raise ConfigurationError("a bus needs the URL of at least one broker")
    return tuple(
        _address("the broker's URL" if len(urls) == 1 else f"URL number {number}", text)
        for number, text in enumerate(urls, 1)
    )


def _address(which: str, text: object) -> Address:
    if not isinstance(text, str):
        unset = " (an environment variable that is not set?)" if text is None else ""
        raise ConfigurationError(f"{which} is {kind_of(text)}{unset}: {_WRITE}")
    text = text.strip()
    problem = _problem(text) if text else "is empty"
    if problem:
        raise ConfigurationError(f"{which} {problem}: {_WRITE}")
    _check_parameters(which, URL(text))
    return Address(text)


def _problem(text: str) -> str:
    """Say what is wrong with a URL, without showing any of it; nothing, where it can be read."""
    scheme, there, rest = text.partition("://")
    if not there or scheme.lower() not in ("amqp", "amqps"):
        return _problem_of_scheme(scheme if there else "")
    if not text.isprintable() or " " in text:
        return "has a blank or an invisible sign in it"
    if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        return "has a % that stands for nothing; a % in a password is written %25"
    authority, path, query = _split(rest)
    if "#" in rest:
        return "has a # in it; in a password it is written %23"
    if authority.count("@") > 1:
        return "has two @ in it; one in a password is written %40"
    if "@" in path + query:
        return "has an @ after its host; in a password @ is written %40, / %2F and ? %3F"
    host = authority.rpartition("@")[2]
    return _problem_of_host(host) or _problem_of_path(path) or _problem_for_yarl(text)


def _problem_of_scheme(scheme: str) -> str:
    if scheme.lower() == "memory":
        return "says memory:// with more after it, or among others, where it stands alone"
    shown = f"begins with {scheme.lower()}://" if scheme.isalpha() and len(scheme) <= 12 else "does not begin"
    return f"{shown}, and not with amqp:// or amqps://" if scheme else "does not begin with amqp:// or amqps://"


def _split(rest: str) -> tuple[str, str, str]:
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    path, _, query = rest[len(authority) :].partition("?")
    return authority, path, query


def _problem_of_host(host: str) -> str:
    if host.count(":") > 1 and not host.startswith("["):
        return "has an IPv6 address without brackets (write [::1]:5672)"
    if not host or host.startswith(":"):
        return "has no host"
    found = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[\w.-]+)(?::(\d{1,6}))?", host)
    if found is None:
        return "has a host or a port that cannot be one; a / in a password is written %2F"
    if found[1] is not None and not 1 <= int(found[1]) <= 65535:
        return f"has the port {int(found[1])}, and ports go from 1 to 65535"
    return ""


def _problem_of_path(path: str) -> str:
    if path != "//" and path.count("/") > 1:  # "//" is what Celery writes for the virtual host /
        return "has more than one / after its host; in a virtual host / is written %2F"
    return ""


def _problem_for_yarl(text: str) -> str:
    try:
        return "" if URL(text).host else "has no host"
    except ValueError:  # whose text may show the password
        return "cannot be read"


def _check_parameters(which: str, url: URL) -> None:
    query = url.query
    if query.get("no_verify_ssl", "0") != "0":
        raise ConfigurationError(
            f"{which}: no_verify_ssl would switch TLS's checks off; pass ssl_context= to say so in code"
        )
    for name in query:
        if name not in KNOWN and name != "no_verify_ssl":
            shown = name if re.fullmatch(r"\w{1,40}", name) else "..."
            instead = f"; say {_ELSEWHERE[name]} instead" if name in _ELSEWHERE else ""
            raise ConfigurationError(
                f"{which} has the parameter ?{shown}=, which is not known{instead}; known are {', '.join(KNOWN)}"
            )
        if len(query.getall(name)) > 1:
            raise ConfigurationError(f"{which} has the parameter ?{name}= twice: say it once")
    beat = query.get("heartbeat")
    if beat is not None and not (re.fullmatch(r"[0-9]{1,5}", beat) and int(beat) <= 65535):
        raise ConfigurationError(f"{which}: ?heartbeat= takes whole seconds, 0 to 65535")
    if query.get("auth", "plain").lower() not in ("plain", "amqplain", "external"):
        raise ConfigurationError(f"{which}: ?auth= takes plain, amqplain or external")

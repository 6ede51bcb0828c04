"""RabbitMQ's management API: what AMQP cannot say, over HTTP. It is read, and never written."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Mapping
from typing import Final, cast
from urllib.parse import quote

from yarl import URL

from rabbitevents.brokers.rabbitmq.address import Address
from rabbitevents.brokers.rabbitmq.rights import login
from rabbitevents.brokers.rabbitmq.site import Answer, Site, read_url
from rabbitevents.errors import BrokerError, ConfigurationError

_BESIDE: Final[Mapping[str, tuple[str, int]]] = {"amqp": ("http", 15672), "amqps": ("https", 15671)}
"""Where it is beside a broker, unless somebody says otherwise. What goes encrypted over AMQP is not sent in the clear."""


_SUCH_AS: Final = "http://user:password@host:15672"


class Management:
    """Asks one node. ``told`` is its URL; without one it is looked for beside ``address``, whose user it is by default.

    Raises `ConfigurationError` for a URL that cannot be meant.
    """

    def __init__(self, address: Address, told: str | None = None, *, context: ssl.SSLContext | None = None) -> None:
        url = _beside(address) if told is None else read_url(told, "the URL of the management API", _SUCH_AS)
        who = address.parsed if url.user is None else url
        self.vhost: str = login(address)[1]
        self.user: str = who.user or "guest"
        password = who.password or ("guest" if who.user is None else "")
        secure = url.scheme == "https"
        self._site = Site(
            url,
            login=b64encode(f"{self.user}:{password}".encode()).decode(),
            context=(context or _context(address)) if secure else None,
        )

    def __str__(self) -> str:
        return str(self._site)

    @property
    def skew(self) -> float | None:
        """How many seconds our clock is ahead of the broker's, give or take one."""
        return self._site.skew

    async def get(self, path: str) -> Answer:
        """Ask for ``/api/PATH``; ``{vhost}`` in it is the virtual host.

        A health check that fails is an answer (503). Raises `BrokerError` for everything else that is none, with the
        status as its code.
        """
        try:
            return await self._site.get(f"/api/{path.replace('{vhost}', quote(self.vhost, safe=''))}")
        except BrokerError as error:
            if error.code == 401:
                raise BrokerError(f"{error} to user {self.user!r}", code=401) from error
            raise

    async def list(self, path: str) -> list[object]:
        """Ask for a list. Raises `BrokerError`, also for a document that is none."""
        answer = await self.get(path)
        document = answer.document
        if answer.status != 200 or not isinstance(document, list):
            raise BrokerError(f"{self} answers {answer.status} with no list: is that RabbitMQ's management API?")
        return cast("list[object]", document)


def _beside(address: Address) -> URL:
    parsed = address.parsed
    scheme, port = _BESIDE[parsed.scheme]
    return URL.build(scheme=scheme, host=parsed.host or "localhost", port=port)


def _context(address: Address) -> ssl.SSLContext:
    """Return what is trusted, and shown: the files that the broker's own URL names."""
    query = address.parsed.query
    try:
        context = ssl.create_default_context(cafile=query.get("cafile"), capath=query.get("capath"))
        if "certfile" in query:
            context.load_cert_chain(query["certfile"], query.get("keyfile"))
    except OSError as error:
        raise ConfigurationError(
            f"a file of TLS that the broker's URL names cannot be read: {error.strerror}"
        ) from error
    return context

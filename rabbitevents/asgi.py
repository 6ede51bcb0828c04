"""Health as an ASGI application, to mount in the one that a service has already.

::

    app = FastAPI(lifespan=lifespan)  # which makes the bus, and keeps it as app.state.bus
    app.mount("/bus", health_app(lambda: app.state.bus))  # GET /bus/live, /bus/ready, /bus/health
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, TypeAlias, cast

from rabbitevents.arguments import kind_of
from rabbitevents.bus import Bus
from rabbitevents.errors import ConfigurationError
from rabbitevents.health import Answer, answer
from rabbitevents.states import Health

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An application as the ASGI specification has it (version 3)."""


_NOT_ALLOWED = Answer(HTTPStatus.METHOD_NOT_ALLOWED, b'{"status": "use GET", "checks": []}')


def health_app(bus: Bus | Callable[[], Bus]) -> Application:
    """Return an application that answers ``GET .../live``, ``.../ready`` and ``.../health`` for ``bus``.

    ``bus`` may be a function that returns it, asked at each request: for a bus that the lifespan makes. They answer 200
    or 503 with a JSON document; what each means says `rabbitevents.health`. The bus has to run on the event loop that
    serves the application, as it does when it is started in the lifespan. Raises `ConfigurationError` for anything else.
    """
    given = cast("object", bus)
    if not isinstance(given, Bus) and (not callable(given) or isinstance(given, type)):
        kind = given.__name__ if isinstance(given, type) else type(given).__name__
        raise ConfigurationError(
            "health_app takes a Bus that runs on the application's event loop, or a function that returns it "
            f"(lambda: app.state.bus); this is {kind}"
        )

    def look() -> Health:
        found = bus if isinstance(bus, Bus) else bus()
        if not isinstance(cast("object", found), Bus):
            raise ConfigurationError(
                f"health_app was given a function that returned {kind_of(found)}, and no Bus: the lifespan has to make the "
                "bus before it yields, and keep it where the function finds it"
            )
        return found.health()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"this application answers HTTP, not {scope['type']}")  # as ASGI asks for
        method = scope["method"]
        found = answer(look, scope["path"]) if method in ("GET", "HEAD") else _NOT_ALLOWED
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(found.body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if found is _NOT_ALLOWED:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": found.status.value, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else found.body})

    return application

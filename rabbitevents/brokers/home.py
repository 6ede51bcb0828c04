"""The event loop that a broker lives on: whoever calls from another one, or another thread, is told so at once."""

from __future__ import annotations

from asyncio import AbstractEventLoop, get_running_loop

from rabbitevents.errors import ConfigurationError


class Home:
    """One event loop, from `settle` on.

    What a broker holds (futures, sockets, timers) belongs to one loop: used from another one, a call waits for ever,
    or wakes nobody. So each of a broker's calls asks `check` before it changes anything.
    """

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop: AbstractEventLoop | None = None

    def settle(self) -> None:
        """Take the running loop for home, also after another one."""
        self._loop = get_running_loop()

    def check(self) -> None:
        """Raise `ConfigurationError` on another loop than home's; before `settle` every one will do.

        Costs 0.2 us, nearly all of it `get_running_loop`'s own (on 3.11, which asks for the process id each time).
        """
        if self._loop is not get_running_loop() and self._loop is not None:
            raise ConfigurationError(
                "this bus runs on another event loop: await its methods there, on the loop that started it. From "
                "another thread, hand the call over with asyncio.run_coroutine_threadsafe(...), or use a SyncBus"
            )

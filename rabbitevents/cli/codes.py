"""What commands exit with. 0 says that all went well, of a service that it has drained."""

from __future__ import annotations

from typing import Final

CRASHED: Final = 1
"""A defect, here or in the user's code; its traceback is shown."""

WRONG: Final = 2
"""Something is written wrong, or no broker can be used; one line says what, and the way out."""

FOUND: Final = 3
"""What was looked for is there: something is wrong at the broker, and the service itself was not asked to run."""

INTERRUPTED: Final = 130
"""Ctrl-C in a command that is no service: what shells expect of SIGINT."""

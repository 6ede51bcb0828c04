"""The command line's door: the console script ``rabbitevents``, and ``python -m rabbitevents``."""

from __future__ import annotations

import sys
from typing import NoReturn

OUR_LIBRARIES = ("click", "rich")
"""What the command line cannot do without; an installation without the extra ``cli`` has neither."""


def main() -> NoReturn:
    """Run the command line, and exit: 0 when it went well, 2 for what was written wrong, 1 for a crash."""
    try:
        from rabbitevents.cli.commands import command_line
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OUR_LIBRARIES:
            raise
        sys.stderr.write(
            f"rabbitevents: the command line needs {error.name}, which comes with an extra: "
            "pip install 'rabbitevents[cli]'\n"
        )
        sys.exit(2)
    command_line.main()


if __name__ == "__main__":
    main()

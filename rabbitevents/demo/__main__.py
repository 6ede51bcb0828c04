"""A door to the demonstration: ``python -m rabbitevents.demo`` is ``rabbitevents demo``."""

from __future__ import annotations

import sys

from rabbitevents.__main__ import main

if __name__ == "__main__":
    sys.argv[1:1] = ["demo"]
    main()

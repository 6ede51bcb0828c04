"""How long lasts what is slow by itself, and how often what repeats: less in `make test` than in `make test-versions`."""

import os
from typing import Final

WHOLE: Final = "RABBITEVENTS_MATRIX" in os.environ
"""Whether waits and outages last as long as they do in production; else so long that what they show shows. And whether a
promise that holds each time is asked for each time; else now and then, at other places in each run."""

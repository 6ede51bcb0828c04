"""How long lasts what is slow by itself: less in `make test`, the whole in `make test-matrix`."""

import os
from typing import Final

WHOLE: Final = "RABBITEVENTS_MATRIX" in os.environ
"""Whether waits and outages last as long as they do in production; else so long that what they show shows."""

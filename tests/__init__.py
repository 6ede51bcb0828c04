"""The tests of rabbitevents."""

import os

for _size in ("COLUMNS", "LINES"):  # before anything of ours is imported
    os.environ.pop(_size, None)  # a test process is told 80 by 24; what it writes is read by no terminal

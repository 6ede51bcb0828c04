"""Where in the user's own files something was raised, or is at this moment."""

from __future__ import annotations

import sys
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Final

_OURS: Final = Path(__file__).parent.parent
_NOT_THEIRS: Final = ("site-packages", "dist-packages", ".venv")


def place_of(error: BaseException) -> str:
    """Return "shop.py, line 12: ", the last line of the user's that led to ``error``; empty where there is none.

    The user's are the files below the current folder that are no installed packages.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_absolute():
        return f"{_shown(error.filename)}, line {error.lineno}: "
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    theirs = [(name, line) for name, line in frames if _is_theirs(Path(name))]
    return f"{_shown(theirs[-1][0])}, line {theirs[-1][1]}: " if theirs else ""


def place_of_main_thread() -> str:
    """Return "shop.py, line 12, in reserve", the innermost line of the user's in the main thread; else of anybody's."""
    running: dict[int | None, FrameType] = vars(sys)["_current_frames"]()
    frame = running.get(threading.main_thread().ident)
    frames = [(each.f_code, line) for each, line in traceback.walk_stack(frame)] if frame is not None else []
    theirs = [each for each in frames if _is_theirs(Path(each[0].co_filename))] or frames
    return f"{_shown(theirs[0][0].co_filename)}, line {theirs[0][1]}, in {theirs[0][0].co_name}" if theirs else ""


def _is_theirs(path: Path) -> bool:
    if not path.is_absolute() or not path.is_relative_to(Path.cwd()) or path.is_relative_to(_OURS):
        return False
    return not any(part in _NOT_THEIRS for part in path.relative_to(Path.cwd()).parts)


def _shown(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name

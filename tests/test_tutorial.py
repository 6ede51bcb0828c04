"""The tutorial, followed literally by somebody who begins in an empty folder.

With RABBITEVENTS_TEST_BIN=FOLDER, the ``python``, ``pytest`` and ``rabbitevents`` of that folder are used, of an
environment in which the wheel is installed (and pytest and pytest-asyncio), and nothing of this checkout.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.documents import CHECKOUT, blocks
from tests.follow import follow

TUTORIAL = CHECKOUT / "docs" / "tutorial.md"


async def test_the_tutorial_can_be_followed_in_an_empty_folder(tmp_path: Path, rabbit_url: str) -> None:
    await follow(TUTORIAL, tmp_path, rabbit_url)

    written = {name for name in os.listdir(tmp_path) if "." in name[1:]}
    assert written == {block.file for block in blocks(TUTORIAL) if block.file}


def test_the_tutorial_shows_all_that_its_reader_does() -> None:
    assert all(block.file for block in blocks(TUTORIAL, "python"))
    assert len([command for block in blocks(TUTORIAL, "console") for command in block.commands]) >= 7

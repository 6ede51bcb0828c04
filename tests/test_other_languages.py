"""The wire contract's programs in other languages: all are there and can be parsed, and pika's run where it is installed.

`tests.other_languages` runs them all, and fetches what they need.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.other_languages import LANGUAGES, check, here, programs

NAMES = {
    "go": {"publish.go", "consume.go"},
    "java": {"Publish.java", "Consume.java"},
    "node": {"publish.js", "consume.js"},
    "python": {"publish.py", "consume.py"},
}
PARSERS = {"go": ["gofmt", "-l", "-e"], "node": ["node", "--check"]}


@pytest.mark.parametrize("name", LANGUAGES)
def test_each_language_has_a_program_that_publishes_and_one_that_receives(name: str) -> None:
    found = programs(LANGUAGES[name].fence)

    assert set(found) == NAMES[name]
    for file, text in found.items():
        assert len(text.splitlines()) < 45
        if file.lower().startswith("consume"):
            assert '"events.due"' in text, "a consumer is bound to what is delayed, too"


def test_pika_s_programs_can_be_parsed() -> None:
    for file, text in programs("py").items():
        compile(text, file, "exec")


@pytest.mark.parametrize("name", PARSERS)
def test_go_s_and_node_s_programs_can_be_parsed(name: str, tmp_path: Path) -> None:
    tool, *options = PARSERS[name]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not here")
    for file, text in programs(LANGUAGES[name].fence).items():
        (tmp_path / file).write_text(text)

        done = subprocess.run([tool, *options, tmp_path / file], capture_output=True, text=True, timeout=60)

        assert (done.returncode, done.stdout) == (0, ""), done.stderr


async def test_pika_s_programs_publish_and_receive(rabbit_url: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("pika") is None:
        pytest.skip("pika is not installed: python -m tests.other_languages python")

    await check(LANGUAGES["python"]._replace(prepare=here), rabbit_url, tmp_path)

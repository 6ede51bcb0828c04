"""A boot script that loads at once what a node of the kind consists of, as the first one of a test process had it.

RabbitMQ's modules, some seven hundred, are loaded when they are first called, one by one: each is looked for in sixty
folders, and the machine's table of functions is copied for each. That is a third of the processor time of a boot.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.bed.layout import PREFIX, Layout, parent_folder, path_inside

_known: Final[dict[tuple[Path | None, bool], tempfile.TemporaryDirectory[str]]] = {}
"""A folder with the script: by the system's root folder, and whether the management plugin is there."""

# What is in `primLoad` before `kernel_load_completed` is loaded together, by several processes: init(3erts). Modules that
# RabbitMQ 4 makes as it runs have no file.
_WRITE: Final = """
    {{ok, Read}} = file:read_file(filename:join([code:root_dir(), "bin", "start_sasl.boot"])),
    {{script, Name, Steps}} = binary_to_term(Read),
    Known = erlang:pre_loaded() ++ lists:append([Modules || {{primLoad, Modules}} <- Steps]),
    Files = [{{Module, File}} || {{Module, File}} <- code:all_loaded(), filelib:is_regular(File)],
    Loaded = [{{Module, File}} || {{Module, File}} <- Files, not lists:member(Module, Known)],
    Folders = lists:usort([filename:dirname(File) || {{_, File}} <- Loaded]),
    Load = [{{path, Folders}}, {{primLoad, [Module || {{Module, _}} <- Loaded]}}, {{kernel_load_completed}}],
    Now = lists:append([case Step of {{kernel_load_completed}} -> Load; _ -> [Step] end || Step <- Steps]),
    ok = file:write_file("{file}.boot", term_to_binary({{script, Name, Now}}))"""


def learn(layout: Layout, evaluate: Callable[[str], str]) -> None:
    """Write the script, if a node that has just started is the first one of its kind; ``evaluate`` asks the node."""
    if _kind(layout) not in _known:
        folder = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-boot-", dir=parent_folder(layout.root))
        evaluate(_WRITE.format(file=_script(folder, layout)))
        _known[_kind(layout)] = folder


def use(layout: Layout) -> None:
    """Have a node that is about to start boot with the script, if there is one for its kind."""
    if (folder := _known.get(_kind(layout))) is not None:
        layout.variables.write_text(f"SASL_BOOT_FILE={_script(folder, layout)}\n")


def _kind(layout: Layout) -> tuple[Path | None, bool]:
    return layout.root, layout.http_port is not None


def _script(folder: tempfile.TemporaryDirectory[str], layout: Layout) -> Path:
    return path_inside(Path(folder.name), layout.root) / "rabbit"

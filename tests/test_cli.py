"""The commands by themselves: what they are called, what they say, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rabbitevents import cli
from rabbitevents.cli.commands import command_line
from rabbitevents.cli.console import one_line
from rabbitevents.cli.extras import way_out
from rabbitevents.logs import without_passwords

ROOT = Path(__file__).parent.parent
PASSWORD = "marker-in-the-password"


def called(*arguments: str) -> Result:
    """Call the command line here."""
    return CliRunner().invoke(command_line, list(arguments))


def environment(*folders: Path, **others: str) -> dict[str, str]:
    """The environment of a process that finds the checkout, and `folders` before it."""
    path = os.pathsep.join(str(folder) for folder in (*folders, ROOT, ROOT / "plugins"))
    ours = ("COLUMNS", "FORCE_COLOR", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "PYTHONPATH": path, **others}


def started(
    *arguments: str, folder: Path, env: Mapping[str, str] | None = None, within: float = 60
) -> subprocess.CompletedProcess[str]:
    """Call the command line as a process of its own, in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "rabbitevents", *arguments],
        cwd=folder,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=within,
    )


def the_line(result: Result | subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr; fails for more, or none, and for a traceback."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def installed(folder: Path, name: str, module: str, source: str) -> None:
    """Write a package into `folder` that brings one command."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[rabbitevents.commands]\n{name} = {module}:{name}\n")


def on_the_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python find what is installed in `folder`, and nothing of an earlier test."""
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    for module in ("counter", "impostor"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def a_command(body: str) -> str:
    """A module with the command `count`, which does `body`."""
    return f"import click\nimport rabbitevents as r\n\n@click.command()\ndef count():\n    '''Count.'''\n    {body}\n"


# --- calling it ----------------------------------------------------------------------------------------------------


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_that_of_a_wrong_call() -> None:
    result = called()

    assert result.exit_code == 2
    assert "Usage: rabbitevents" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command_in_a_line_and_shows_examples(flag: str) -> None:
    result = called(flag)

    assert result.exit_code == 0
    for command in ("completion", "demo", "run", "version"):
        assert f"\n  {command}  " in result.stdout
    assert "rabbitevents run shop.inventory:bus" in result.stdout
    assert "\\b" not in result.stdout


@pytest.mark.parametrize("command", ["completion", "run", "version"])
def test_each_command_has_a_help_with_an_example(command: str) -> None:
    result = called(command, "--help")

    assert result.exit_code == 0
    assert f"Usage: rabbitevents {command}" in result.stdout
    assert f"  rabbitevents {command}" in result.stdout or f"$(rabbitevents {command}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "rabbitevents: there is no command 'rnu'; did you mean 'run'? (see rabbitevents --help)"),
        (["frobnicate"], "rabbitevents: there is no command 'frobnicate'; there are completion, demo, "),
        (["shop:bus"], "there is no command 'shop:bus'; did you mean rabbitevents run shop:bus?"),
        (["RUN"], "there is no command 'RUN'"),
        ([""], "there is no command ''"),
        (["--debgu", "run"], "Did you mean"),
        (["-x"], "No such option"),
        (["run"], "rabbitevents run: Missing argument 'MODULE:BUS'. (see rabbitevents run --help)"),
        (["run", "shop:bus", "extra"], "unexpected extra argument (extra)"),
        (["run", "shop:bus", "--worker", "3"], "Did you mean"),
        (["run", "shop:bus", "--workers"], "'--workers' requires an argument"),
        (["run", "shop:bus", "--workers", "0"], "Invalid value for '--workers': 0 is not in the range"),
        (["run", "shop:bus", "--workers", "-1"], "Invalid value for '--workers'"),
        (["run", "shop:bus", "--workers", "many"], "Invalid value for '--workers': 'many' is not a valid integer"),
        (["run", "shop:bus", "--workers", "100000"], "Invalid value for '--workers'"),
        (["run", "shop:bus", "--grace", "soon"], "Invalid value for '--grace': 'soon' is no number of seconds"),
        (["run", "shop:bus", "--grace", "-1"], "Invalid value for '--grace': '-1' is no number of seconds"),
        (["run", "shop:bus", "--grace", "nan"], "Invalid value for '--grace'"),
        (["run", "shop:bus", "--grace", "inf"], "Invalid value for '--grace'"),
        (["run", "shop:bus", "--reload", "--workers", "2"], "--reload runs one process"),
        (["run", "shop:bus", "--settings", "{}"], "--settings is for the processes that --workers starts"),
        (["version", "now"], "rabbitevents version: Got unexpected extra argument (now)"),
        (["completion"], "rabbitevents completion: Missing argument"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    ],
)
def test_a_wrong_call_gets_one_line_that_names_it_and_exit_code_2(arguments: list[str], said: str) -> None:
    result = called(*arguments)

    assert result.exit_code == 2
    assert said in the_line(result)
    assert "--help)" in the_line(result)
    assert result.stdout == ""


def test_the_same_holds_for_a_process(tmp_path: Path) -> None:
    result = started("rnu", folder=tmp_path)

    assert result.returncode == 2
    assert the_line(result) == "rabbitevents: there is no command 'rnu'; did you mean 'run'? (see rabbitevents --help)"


@pytest.mark.parametrize("library", ["click", "rich"])
def test_without_the_extra_the_line_says_which_one_to_install(library: str, tmp_path: Path) -> None:
    (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError('it is not there', name={library!r})")

    result = started("version", folder=ROOT, env=environment(tmp_path))

    assert result.returncode == 2
    assert the_line(result) == (
        f"rabbitevents: the command line needs {library}, which comes with an extra: pip install 'rabbitevents[cli]'"
    )


def test_another_module_that_is_missing_is_not_taken_for_the_extra(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import nowhere_to_be_found")

    result = started("version", folder=ROOT, env=environment(tmp_path))

    assert result.returncode == 1
    assert "No module named 'nowhere_to_be_found'" in result.stderr


def test_reload_without_watchfiles_says_what_brings_it(tmp_path: Path) -> None:
    (tmp_path / "watchfiles.py").write_text("raise ModuleNotFoundError('none', name='watchfiles')")

    result = started("run", "shop:bus", "--reload", folder=tmp_path, env=environment(tmp_path))

    assert result.returncode == 2
    assert "--reload needs watchfiles: pip install 'rabbitevents[cli]' brings it" in the_line(result)


def test_importing_the_command_line_imports_neither_the_client_library_nor_the_demo(tmp_path: Path) -> None:
    told = "import sys, rabbitevents.cli, rabbitevents.cli.service; print([m for m in sys.modules if {}])".format(
        "m.split('.')[0] in ('aio_pika', 'aiormq', 'watchfiles') or m.startswith('rabbitevents.demo')"
    )

    found = subprocess.run(
        [sys.executable, "-c", told], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )

    assert found.stdout == "[]\n"


# --- what it shows -------------------------------------------------------------------------------------------------


def test_version_names_what_a_report_of_a_defect_needs() -> None:
    result = called("version")

    rows = {line[:14].strip(): line[14:] for line in result.stdout.splitlines()}
    assert result.exit_code == 0
    assert {"rabbitevents", "Python", "aio-pika", "event loop", "platform", "plugins", "commands", "[cli]"} <= set(rows)
    assert rows["Python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert rows["[cli]"] == "installed"
    assert rows["aio-pika"][0].isdigit()


def test_version_finds_plugins_and_what_an_extra_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rabbitevents_coffee.py").touch()
    info = tmp_path / "rabbitevents-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: rabbitevents\nVersion: 9\nProvides-Extra: tea\nProvides-Extra: all\n"
        'Requires-Dist: no-such-kettle>=1; extra == "tea"\nRequires-Dist: rabbitevents[tea]; extra == "all"\n'
    )
    on_the_path(tmp_path, monkeypatch)

    shown = called("version").stdout

    assert "rabbitevents  9\n" in shown
    assert "rabbitevents_coffee" in shown
    assert "[tea]         without no-such-kettle: pip install 'rabbitevents[tea]'" in shown
    assert "[all]" not in shown


def test_the_version_is_also_an_option() -> None:
    result = called("--version")

    assert result.exit_code == 0
    assert result.stdout.startswith("rabbitevents ")
    assert len(result.stdout.splitlines()) == 1


def test_a_reader_that_goes_away_gets_no_traceback(tmp_path: Path) -> None:
    installed(tmp_path, "count", "counter", a_command("print('x' * 100)"))
    for arguments in ("version", "--help", "completion bash", "count"):
        command = f"{sys.executable} -m rabbitevents {arguments} | true"

        result = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60
        )

        assert result.stderr == "", arguments


def test_a_connection_that_breaks_is_not_taken_for_a_reader_that_went_away(tmp_path: Path) -> None:
    installed(tmp_path, "count", "counter", a_command("raise BrokenPipeError(32, 'the cache hung up')"))

    result = started("count", folder=tmp_path, env=environment(tmp_path))

    assert result.returncode == 1
    assert "BrokenPipeError: [Errno 32] the cache hung up" in result.stderr


def test_output_that_no_terminal_reads_has_no_colours_and_is_neither_wrapped_nor_cut(tmp_path: Path) -> None:
    installed(
        tmp_path, "count", "counter", a_command("from rabbitevents.cli import out; out.print('x' * 500 + '[cli]')")
    )

    result = started("count", folder=tmp_path, env=environment(tmp_path))

    assert result.stdout == "x" * 500 + "[cli]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_each_shell_calls_us(shell: str) -> None:
    result = called("completion", shell)

    assert result.exit_code == 0
    assert "_RABBITEVENTS_COMPLETE" in result.stdout


def test_the_shell_completes_commands_options_and_buses(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("raise SystemExit('completion imports nothing')\nbus: Bus = Bus('memory://')\n")
    (tmp_path / "parcel").mkdir()
    (tmp_path / "parcel" / "__init__.py").touch()
    (tmp_path / "parcel" / "post.py").write_text("import rabbitevents\nletters = rabbitevents.Bus(\n  'memory://')\n")

    def completed(words: str) -> list[str]:
        env = environment(_RABBITEVENTS_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
        return [line.partition(",")[2] for line in started(folder=tmp_path, env=env).stdout.splitlines()]

    assert completed("rabbitevents ver") == ["version"]
    assert completed("rabbitevents run --wo") == ["--workers"]
    assert completed("rabbitevents run ") == ["shop:bus", "parcel.post:letters"]
    assert completed("rabbitevents run pa") == ["parcel.post:letters"]


def test_bash_completes_behind_the_colon_too(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("bus = Bus('memory://')\nbuyers = Bus('memory://')\nqueue = 3\n")
    (tmp_path / "rabbitevents").write_text(f'#!/bin/sh\nexec {sys.executable} -m rabbitevents "$@"\n')
    (tmp_path / "rabbitevents").chmod(0o755)
    script = (
        'eval "$(./rabbitevents completion bash)"; COMP_WORDS=(rabbitevents run shop:bu); COMP_CWORD=2; '
        '_rabbitevents_completion ./rabbitevents; echo "${COMPREPLY[@]}" "[$COMP_WORDBREAKS]"'
    )

    result = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )

    assert result.stdout.startswith("shop:bus shop:buyers [")
    assert ":" not in result.stdout.partition("[")[2]


# --- commands of others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("return None", 0, None),
        ("return 3", 3, None),
        ("raise SystemExit(4)", 4, None),
        ("click.get_current_context().exit(5)", 5, None),
        ("raise r.ConfigurationError('no\\nsuch queue')", 2, "rabbitevents count: no such queue"),
        ("raise ExceptionGroup('', [r.ConfigurationError('one')])", 2, "rabbitevents count: one"),
        (
            "raise ExceptionGroup('', [r.ConfigurationError('one'), r.DecodeError('two')])",
            2,
            "rabbitevents count: 2 errors, the first: one",
        ),
        (
            "raise click.UsageError('say how many')",
            2,
            "rabbitevents count: say how many (see rabbitevents count --help)",
        ),
        ("raise click.ClickException('no')", 1, "rabbitevents: no"),
        (
            f"raise r.RabbitEventsError('at amqp://guest:{PASSWORD}@host/')",
            2,
            "rabbitevents count: at amqp://guest:...@host/",
        ),
    ],
)
def test_how_a_command_ends(
    body: str, code: int, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "count", "counter", a_command(body))
    on_the_path(tmp_path, monkeypatch)

    result = called("count")

    assert result.exit_code == code
    assert result.stderr == "" if said is None else the_line(result).startswith(said)


@pytest.mark.parametrize(
    "body", [f"raise KeyError('amqp://guest:{PASSWORD}@host/')", "raise ExceptionGroup('', [ValueError('x')])"]
)
def test_a_defect_shows_its_traceback_without_passwords_and_ends_with_1(body: str, tmp_path: Path) -> None:
    installed(tmp_path, "count", "counter", a_command(body))

    result = started("count", folder=tmp_path, env=environment(tmp_path))

    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "counter.py" in result.stderr
    assert PASSWORD not in result.stderr


def test_debug_shows_what_led_to_the_line_without_passwords(tmp_path: Path) -> None:
    body = f"raise r.ConfigurationError('x') from OSError('amqp://guest:{PASSWORD}@host/')"
    installed(tmp_path, "count", "counter", a_command(body))

    result = started("--debug", "count", folder=tmp_path, env=environment(tmp_path))

    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert "OSError: amqp://guest:...@host/" in result.stderr
    assert result.stderr.splitlines()[-1] == "rabbitevents count: x"
    assert PASSWORD not in result.stderr


def test_a_command_of_another_package_is_listed_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "count", "counter", a_command("pass"))
    on_the_path(tmp_path, monkeypatch)

    assert "\n  count       Count." in called("--help").stdout
    assert "count (counter)" in called("version").stdout
    assert "did you mean 'count'?" in called("cuont").stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import redis_of_old", "importing counter failed with No module named 'redis_of_old'"),
        (
            "raise ModuleNotFoundError('no redis', name='redis.asyncio')",
            "failed with no redis; pip install 'rabbitevents[redis]' brings it",
        ),
        ("count = 3", "counter:count is no click command"),
        ("nothing = 3", "has no attribute 'count'"),
        ("1 / 0", "division by zero"),
    ],
)
def test_a_command_that_cannot_be_used_says_so_when_called_and_in_the_list_and_harms_no_other(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "count", "counter", source)
    on_the_path(tmp_path, monkeypatch)

    for arguments in (["count"], ["count", "--help"], ["count", "these", "--quickly"]):
        result = called(*arguments)
        assert result.exit_code == 2
        assert the_line(result).startswith("rabbitevents count: this command cannot be used here: ")
        assert said in the_line(result)
    assert "(cannot be used here: " in called("--help").stdout
    assert called("version").exit_code == 0


def test_a_package_cannot_take_the_place_of_our_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "version", "impostor", "raise SystemExit('imported')")
    on_the_path(tmp_path, monkeypatch)

    assert called("version").stdout.startswith("rabbitevents ")


def test_a_command_is_imported_only_when_it_is_called(tmp_path: Path) -> None:
    installed(tmp_path, "count", "counter", "raise SystemExit('imported')")

    result = started("run", "nowhere:bus", folder=tmp_path, env=environment(tmp_path))

    assert result.returncode == 2
    assert "there is no module 'nowhere'" in the_line(result)


# --- for authors of commands ---------------------------------------------------------------------------------------


def test_run_returns_what_the_coroutine_returns() -> None:
    async def answer() -> int:
        return 42

    assert cli.run(answer()) == 42


def test_ctrl_c_in_a_command_ends_it_with_130_and_without_a_traceback(tmp_path: Path) -> None:
    body = "import asyncio, os, signal\n    from rabbitevents.cli import run\n    async def wait():\n        "
    body += "os.kill(os.getpid(), signal.SIGINT)\n        await asyncio.sleep(60)\n    run(wait())"
    installed(tmp_path, "count", "counter", a_command(body))

    result = started("count", folder=tmp_path, env=environment(tmp_path))

    assert result.returncode == 130
    assert result.stderr.strip() == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://u:p@h/", "amqp://u:...@h/"),
        ("amqp://u:p@ss/w@rd@h:1/v and more", "amqp://u:...@h:1/v and more"),
        ("amqp://:p@h", "amqp://:...@h"),
        ("amqp://u@h/ and https://h/x", "amqp://u@h/ and https://h/x"),
        ('["amqp://a:b@h", "amqp://c:d@h"]', '["amqp://a:...@h", "amqp://c:...@h"]'),
        ("write amqp://user:password@host:5672/vhost", "write amqp://user:password@host:5672/vhost"),
        ("write amqp://host:5672/", "write amqp://host:5672/"),
        ("mail me@home: a:b", "mail me@home: a:b"),
    ],
)
def test_passwords_are_taken_out_of_any_text(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


def test_a_line_is_one_line_and_has_an_end() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert len(one_line("x" * 5000)) == 1000


def test_the_way_out_of_a_missing_module_is_the_extra_that_brings_it() -> None:
    assert way_out(ImportError(name="redis")) == "; pip install 'rabbitevents[redis]' brings it"
    assert way_out(ImportError(name="opentelemetry.sdk")) == "; pip install 'rabbitevents[otel]' brings it"
    assert way_out(ImportError("needs redis: pip install 'x[y]'", name="redis")) == ""
    assert way_out(ImportError(name="numpy")) == ""
    assert way_out(ImportError("no name")) == ""

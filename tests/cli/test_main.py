"""What all commands share: help, lazy imports, exit codes, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from cryoforum_plugin import __version__
from cryoforum_plugin.cli.main import COMMANDS, main
from cryoforum_plugin.errors import ParticleFileError

HEAVY = ("torch", "scipy", "pandas", "matplotlib", "roma", "lightning", "starfile", "mrcfile")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import json, sys\n"
        "from cryoforum_plugin.cli.main import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        f"print(json.dumps(sorted(set(sys.modules) & set({HEAVY!r}))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    assert all(name in text for name in COMMANDS)


def test_version() -> None:
    assert __version__ in run("--version").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["select"],
        ["select", "a.star", "-o", "b.star"],
        ["select", "a.star", "-o", "b.star", "--min-confidence", "1.5"],
        ["select", "a.star", "-o", "b.star", "--auto", "--quantile", "0.5"],
        ["select", "a.star", "-o", "b.star", "--auto", "--rejected", "b.star"],
        ["evaluate", "a.star"],
        ["report", "folder", "-o", "report.txt"],
        ["doctor", "--unknown"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["select", "absent.star", "-o", "b.star", "--auto"],
        ["select", "absent.txt", "-o", "b.txt", "--auto"],
        ["evaluate", "absent.star", "absent.star"],
        ["evaluate", "absent.star", "absent.star", "--symmetry", "Q7"],
        ["report", "absent", "-o", "report.html"],
    ],
)
def test_a_failed_run_exits_with_1_and_one_line(project, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("cryoforum: error: ")
    assert result.stderr.count("\n") == 1
    assert list(project.iterdir()) == []


def raising(error: BaseException):
    def raise_it(*_: object, **__: object) -> None:
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("error", "exit_code", "words"),
    [
        (ParticleFileError("a.star: row 7 is odd"), 1, "error: a.star: row 7 is odd\n"),
        (ZeroDivisionError("division\nby zero"), 1, "unexpected ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes_of_errors(monkeypatch: pytest.MonkeyPatch, error, exit_code: int, words: str) -> None:
    monkeypatch.setattr("cryoforum_plugin.formats.read_particles", raising(error))
    result = run("evaluate", "a.star", "b.star")
    assert result.exit_code == exit_code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_debug_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryoforum_plugin.formats.read_particles", raising(ParticleFileError("odd")))
    assert isinstance(run("--debug", "evaluate", "a.star", "b.star").exception, ParticleFileError)

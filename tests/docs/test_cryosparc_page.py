"""What docs/cryosparc.md tells users to type is what the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import rich_click as click

from cryosparc_job.job.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cryosparc.md").read_text()


def typed_commands() -> list[list[str]]:
    """Return the arguments of every cryoforum-cryosparc command in a code block of the page."""
    where = re.search(r'^where="(.*)"$', PAGE, re.MULTILINE)
    assert where is not None
    lines = PAGE.replace("\\\n", " ").replace("$where", where.group(1)).splitlines()
    words = [shlex.split(line) for line in lines if re.match(r"(/\S*/)?cryoforum-cryosparc ", line)]
    return [line[1:] for line in words]


def test_the_commands_are_understood() -> None:
    commands = typed_commands()
    assert {command[0] for command in commands} == {"train", "predict", "select", "pipeline"}
    for name, *arguments in commands:
        main.commands[name].make_context(name, list(arguments))


def test_the_options_that_are_explained_exist() -> None:
    known = {
        option
        for command in main.commands.values()
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    explained = set(re.findall(r"`(--[a-z-]+)", PAGE)) - {"--data-root", "--expires"}  # of other programs
    assert {"--fsc", "--no-fsc", "--queue-refinement", "--lane"} <= explained <= known


def test_the_python_example_is_valid() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    compile(code, "docs/cryosparc.md", "exec")
    exec("\n".join(line for line in code.splitlines() if "import" in line), {})

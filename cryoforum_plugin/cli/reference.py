"""The reference page of all commands: `python -m cryoforum_plugin.cli.reference > docs/commands.md`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from cryoforum_plugin.cli.main import COMMANDS, main

INTRODUCTION = """# Commands

<!-- Made by `python -m cryoforum_plugin.cli.reference > docs/commands.md`; do not edit. -->

Progress goes to stderr, results go to stdout. Nothing is overwritten without `--overwrite`, and an output
appears whole or not at all. Exit codes: 0 done, 1 the run failed (one line on stderr says why;
`cryoforum --debug COMMAND ...` shows the traceback), 2 wrong usage, 130 interrupted.
What the files and columns mean is told in [Files](files.md).
"""


def reference() -> str:
    """Return the page as Markdown, from the commands themselves."""
    group = click.Context(main, info_name="cryoforum")
    sections = [INTRODUCTION]
    for name in COMMANDS:
        command = main.get_command(group, name)
        if command is not None:
            sections.append("\n".join(_section(command, click.Context(command, group, info_name=name))))
    return "\n".join(sections)


def _section(command: click.Command, context: click.Context) -> Iterator[str]:
    """Lines of one command: usage, help text, table of options."""
    yield f"## cryoforum {command.name}\n"
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"```\n{usage}\n```\n"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "") + "\n"
    yield "| option | meaning | default |\n|---|---|---|"
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and not parameter.hidden and parameter.name != "help":
            yield _row(parameter, context)
    yield ""


def _row(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    if option.secondary_opts:
        names += " / " + ", ".join(f"`{name}`" for name in option.secondary_opts)
    if not option.is_flag:
        names += f" `{option.make_metavar(context).replace(' RANGE', '')}`"
    meaning, _, stated = (option.help or "").partition("[default: ")
    default = stated.rstrip("].") or _default(option, context)
    return f"| {_cell(names)} | {_cell(meaning)} | {_cell(default)} |"


def _default(option: click.Option, context: click.Context) -> str:
    """Say the default: required, the value, or nothing where there is none."""
    if option.required:
        return "required"
    value = option.to_info_dict()["default"] if not option.is_flag or option.secondary_opts else None
    if callable(value):
        value = None
    return "" if value is None or value == () or type(value).__name__ == "Sentinel" else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")

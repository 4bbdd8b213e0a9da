"""`cryoforum`: the command group. One module a command; heavy imports happen inside the commands."""

from __future__ import annotations

import importlib

import rich_click as click

from cryoforum_plugin import __version__
from cryoforum_plugin.cli.common import ErrorGroup

COMMANDS = {
    "train": "Learn orientations from refined particles.",
    "predict": "Give new particles orientations, shifts and uncertainty.",
    "watch": "Predict new particles as they appear.",
    "recalibrate": "Fit a model's uncertainty to other particles.",
    "select": "Keep the particles that are certain enough.",
    "evaluate": "Compare predicted with known orientations.",
    "reconstruct": "Half maps, map and FSC from particles with orientations.",
    "simulate": "Make particle images with known orientations from a map.",
    "report": "Make an HTML report of a run.",
    "demo": "Run everything on a small built-in map.",
    "doctor": "Check the installation and the conventions.",
}


class LazyGroup(ErrorGroup):
    """A group that imports a command's module only when the command is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cryoforum_plugin.cli.{cmd_name}")
        command: click.Command = module.command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cryoforum")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def main(debug: bool) -> None:
    """Orientations with calibrated uncertainty from cryo-EM particle images."""


if __name__ == "__main__":
    main()

"""`cryoforum-relion`: what RELION's External tab runs, and `install-template`."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from cryoforum_plugin import __version__
from cryoforum_plugin.errors import CryoForumError

_OWN = ("install-template", "-h", "--help", "--version")


def main() -> None:
    """Run a job with RELION's arguments, or one of the commands for people."""
    from relion_external.job.command_line import job_folder
    from relion_external.job.supervisor import supervise

    arguments = sys.argv[1:]
    folder = job_folder(arguments)
    if folder is not None:
        sys.exit(supervise(folder, arguments))
    if not arguments or arguments[0] in _OWN:
        _commands().main(arguments or ["--help"], prog_name="cryoforum-relion")
    click.echo("cryoforum-relion: no job folder (--o); see cryoforum-relion --help", err=True)
    sys.exit(2)


def _commands() -> click.RichGroup:
    """The help page, which lists the job's parameters, and install-template."""
    from relion_external.job.parameters import FREE_PARAMETERS, HOST_ARGUMENTS

    group = click.RichGroup(
        name="cryoforum-relion",
        params=[*HOST_ARGUMENTS, *FREE_PARAMETERS],
        commands={"install-template": install_template},
        context_settings={"help_option_names": ["-h", "--help"]},
        help="RELION External job: put this program under 'External executable' and the parameters below, without "
        "dashes, on the Params tab. RELION fills in --o, --in_... and --j.",
    )
    return click.version_option(__version__, prog_name="cryoforum-relion")(group)


@click.command(name="install-template", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("project", type=click.Path(path_type=Path), default=Path("."))
@click.option(
    "--executable", help="What RELION shall run  [default: this program's full path, which a queue finds too]"
)
@click.option(
    "--fill-gui",
    type=click.Choice(["train", "predict", "select", "pipeline"]),
    help="Also fill RELION's External tab with this job, in place of what was last typed there.",
)
@click.option("--overwrite", is_flag=True, help="Replace templates that are there; else they are kept.")
def install_template(project: Path, executable: str | None, fill_gui: str | None, overwrite: bool) -> None:
    """Write ready job.star files, one a job type, into the RELION PROJECT."""
    from relion_external.job.templates import write_templates

    try:
        paths = write_templates(project, executable, fill_gui, overwrite)
    except CryoForumError as error:
        click.echo(f"cryoforum: error: {error}", err=True)
        sys.exit(1)
    for path, written in paths.items():
        click.echo(f"{'written' if written else 'kept'}: {path}")
    first = next(iter(paths)).relative_to(project)
    click.echo(f"edit a template, then in the project folder: relion_pipeliner --addJobFromStar {first}")


if __name__ == "__main__":
    main()

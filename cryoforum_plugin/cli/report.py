"""`cryoforum report`: make an HTML or PDF report of a run."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from cryoforum_plugin.cli.common import (
    INPUT_FILE,
    OUTPUT_PATH,
    data_root_option,
    overwrite_option,
    quiet_option,
)


@click.command(name="report")
@click.argument("directory", metavar="DIR", type=INPUT_FILE)
@click.option(
    "-o", "--output", type=OUTPUT_PATH, required=True, help="Report file: .html, or .pdf for a PDF."
)
@data_root_option
@overwrite_option
@quiet_option
def command(directory: Path, output: Path, data_root: Path | None, overwrite: bool, quiet: bool) -> None:
    """Report on DIR, a model directory or the folder of a run: curves, errors, views, confidence, examples, FSC.

    The HTML is one file that needs no network; a slider in it shows what each confidence would keep.
    """
    from cryoforum_plugin.atomic import check_output

    if output.suffix.lower() not in (".html", ".htm", ".pdf"):
        raise click.UsageError(f"--output {output} must end in .html or .pdf")
    check_output(output, overwrite)
    from cryoforum_plugin.report import prepare_report

    prepare_report(directory, data_root=data_root).write(output, overwrite=overwrite)
    click.echo(f"written: {output}")

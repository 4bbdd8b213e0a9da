"""`cryoforum select`: keep the particles that are certain enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cryoforum_plugin.cli.common import (
    INPUT_FILE,
    OUTPUT_PATH,
    data_root_option,
    device_option,
    json_option,
    overwrite_option,
    quiet_option,
    write_json,
)
from cryoforum_plugin.cli.options import NO_CRITERION, check_selection, selection_criteria, selection_options
from cryoforum_plugin.settings import DEFAULT_VIEWS

if TYPE_CHECKING:
    from cryoforum_plugin.confidence.selection import Criteria


@click.command(name="select")
@click.argument("predicted", type=INPUT_FILE)
@click.option("-o", "--output", type=OUTPUT_PATH, required=True, help="The kept particles.")
@click.option("--rejected", type=OUTPUT_PATH, help="Also write the particles left out.")
@selection_options
@click.option("--model", type=INPUT_FILE, help="Take the quantile over this model's validation particles.")
@click.option("--views", type=click.IntRange(1), help="With --model: the views used [default: predict's].")
@click.option(
    "--uneven-halves", is_flag=True, help="Leave the half sets as unequal as the criteria make them."
)
@click.option(
    "--symmetry", default="C1", show_default=True, help="Point group of the views, in RELION's names."
)
@click.option(
    "--mask-diameter",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="With --auto: soft sphere for the FSC, in Å [default: the box].",
)
@data_root_option
@device_option
@json_option
@overwrite_option
@quiet_option
def command(predicted: Path, output: Path, rejected: Path | None, **options: Any) -> None:
    """Keep the particles of PREDICTED that fulfil every given criterion.

    Rows keep their order, columns and text. A half set is never emptied, and the larger one gives
    up its least confident until both are alike (--uneven-halves: not). --auto is asked of what fulfils all the rest. At least one of
    --min-confidence, --max-error, --keep, --statistic, --max-outlier, --target and --auto is needed.
    """
    check_selection(options)
    if options["model"] is not None and options["statistic"] is None:
        raise click.UsageError("--model needs --statistic lambda_max or --statistic trace")
    if options["views"] is not None and options["model"] is None:
        raise click.UsageError("--views needs --model")
    views = DEFAULT_VIEWS if options["views"] is None else options["views"]
    criteria = selection_criteria(options, options["model"], views, least_apart=1)
    criteria = replace(criteria, balance_halves=not options["uneven_halves"])
    if not criteria.any():
        raise click.UsageError(NO_CRITERION)
    _run(predicted, output, rejected, criteria, options)


def _run(
    predicted: Path, output: Path, rejected: Path | None, criteria: Criteria, options: dict[str, Any]
) -> None:
    """Read, select, write, print."""
    from cryoforum_plugin.atomic import check_output
    from cryoforum_plugin.formats import files_of, read_particles, write_particles
    from cryoforum_plugin.geometry import symmetry_group
    from cryoforum_plugin.host_job.selecting import select

    overwrite = options["overwrite"]
    rejected_files = [] if rejected is None else files_of(rejected)
    written = [*files_of(output), *rejected_files]
    touched = [
        *written,
        *files_of(predicted),
        *([] if options["json_file"] is None else [options["json_file"]]),
    ]
    if len({path.resolve() for path in touched}) < len(touched):
        raise click.UsageError("PREDICTED, --output, --rejected and --json must be different files")
    for path in (*written, options["json_file"]):
        if path is not None:
            check_output(path, overwrite)
    particles = read_particles(predicted, options["data_root"])
    symmetry_group(options["symmetry"])  # refuses a name that is none
    selection = select(
        particles,
        criteria,
        options["symmetry"],
        options["device"],
        options["mask_diameter"],
        options["quiet"],
    )
    root = options["data_root"]
    write_particles(particles[selection.keep], output, overwrite=overwrite, data_root=root)
    if rejected is not None and not selection.keep.all():
        write_particles(particles[~selection.keep], rejected, overwrite=overwrite, data_root=root)
    elif rejected is not None:
        for path in rejected_files:
            path.unlink(missing_ok=True)  # allowed by --overwrite; an old list would now be wrong
        click.echo(f"nothing was rejected: {rejected} is not written", err=True)
    for line in selection.lines():
        click.echo(line)
    for name, counts in selection.counts.items():
        click.echo(f"{name}: {counts['kept']} kept, {counts['rejected']} rejected")
    if not any(name.startswith("half set") for name in selection.counts):
        click.echo("no half sets in this table")
    click.echo(f"written: {output}")
    write_json(options["json_file"], selection.figures(), overwrite)

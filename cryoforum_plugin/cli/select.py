"""`cryoforum select`: keep the particles that are certain enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cryoforum_plugin.cli.common import (
    INPUT_FILE,
    OUTPUT_PATH,
    data_root_option,
    json_option,
    overwrite_option,
    quiet_option,
    write_json,
)

if TYPE_CHECKING:
    from cryoforum_plugin.confidence.selection import Criteria


@click.command(name="select")
@click.argument("predicted", type=INPUT_FILE)
@click.option("-o", "--output", type=OUTPUT_PATH, required=True, help="The kept particles.")
@click.option("--rejected", type=OUTPUT_PATH, help="Also write the particles left out.")
@click.option("--min-confidence", type=click.FloatRange(0, 1), help="Smallest calibrated confidence.")
@click.option("--max-error", type=click.FloatRange(0, 180), help="Largest expected angular error in degrees.")
@click.option(
    "--keep", type=click.FloatRange(0, 1, min_open=True), help="Keep this fraction, the most confident."
)
@click.option(
    "--statistic", type=click.Choice(["lambda_max", "trace"]), help="Filter by a statistic of the paper."
)
@click.option(
    "--quantile",
    type=click.FloatRange(0, 1, min_open=True),
    help="Keep what lies below this quantile of --statistic [default: 0.75].",
)
@click.option("--model", type=INPUT_FILE, help="Take the quantile over this model's validation particles.")
@click.option("--views", type=click.IntRange(1), help="With --model: the views used [default: predict's].")
@click.option("--auto", is_flag=True, help="Choose the confidence that makes the reconstruction clearest.")
@data_root_option
@json_option
@overwrite_option
@quiet_option
def command(predicted: Path, output: Path, rejected: Path | None, **options: Any) -> None:
    """Keep the particles of PREDICTED that fulfil every given criterion.

    Rows keep their order, columns and text. A half set is never emptied. At least one of
    --min-confidence, --max-error, --keep, --statistic and --auto is needed.
    """
    if options["quantile"] is not None and options["statistic"] is None:
        raise click.UsageError("--quantile needs --statistic lambda_max or --statistic trace")
    if options["model"] is not None and options["statistic"] is None:
        raise click.UsageError("--model needs --statistic lambda_max or --statistic trace")
    if options["views"] is not None and options["model"] is None:
        raise click.UsageError("--views needs --model")
    if rejected is not None and rejected.resolve() == output.resolve():
        raise click.UsageError("--output and --rejected are the same file")
    criteria = _criteria(options)
    if not criteria.any():
        raise click.UsageError(
            "no criterion: give --min-confidence, --max-error, --keep, --statistic or --auto"
        )
    _run(predicted, output, rejected, criteria, options)


def _criteria(options: dict[str, Any]) -> Criteria:
    """Build the criteria from the options; reads the model's calibration when one is named."""
    from cryoforum_plugin.confidence.selection import Criteria

    quantile = Criteria.quantile if options["quantile"] is None else options["quantile"]
    threshold = None
    if options["model"] is not None and options["statistic"] is not None:
        from cryoforum_plugin.confidence.model_quantiles import read_model_quantile
        from cryoforum_plugin.settings import DEFAULT_VIEWS

        views = DEFAULT_VIEWS if options["views"] is None else options["views"]
        threshold = read_model_quantile(options["model"], options["statistic"], quantile, views)
    return Criteria(
        min_confidence=options["min_confidence"],
        max_error_deg=options["max_error"],
        keep_fraction=options["keep"],
        statistic=options["statistic"],
        quantile=quantile,
        statistic_threshold=threshold,
        auto=options["auto"],
    )


def _run(
    predicted: Path, output: Path, rejected: Path | None, criteria: Criteria, options: dict[str, Any]
) -> None:
    """Read, select, write, print."""
    from cryoforum_plugin.atomic import check_output
    from cryoforum_plugin.confidence.selection import select_particles
    from cryoforum_plugin.formats import read_particles, write_particles

    overwrite = options["overwrite"]
    for path in (output, rejected, options["json_file"]):
        if path is not None:
            check_output(path, overwrite)
    particles = read_particles(predicted, options["data_root"])
    selection = select_particles(particles, criteria)
    root = options["data_root"]
    write_particles(particles[selection.keep], output, overwrite=overwrite, data_root=root)
    if rejected is not None and not selection.keep.all():
        write_particles(particles[~selection.keep], rejected, overwrite=overwrite, data_root=root)
    elif rejected is not None:
        rejected.unlink(missing_ok=True)  # allowed by --overwrite; an old list would now be wrong
        click.echo(f"nothing was rejected: {rejected} is not written", err=True)
    for line in selection.explanation:
        click.echo(line)
    for name, counts in selection.counts.items():
        click.echo(f"{name}: {counts['kept']} kept, {counts['rejected']} rejected")
    if not any(name.startswith("half set") for name in selection.counts):
        click.echo("no half sets in this table")
    click.echo(f"written: {output}")
    write_json(options["json_file"], selection.figures(), overwrite)

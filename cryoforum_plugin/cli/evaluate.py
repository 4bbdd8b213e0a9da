"""`cryoforum evaluate`: compare predicted with known orientations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from cryoforum_plugin.cli.common import (
    INPUT_FILE,
    data_root_option,
    json_option,
    overwrite_option,
    quiet_option,
    write_json,
)


@click.command(name="evaluate")
@click.argument("predicted", type=INPUT_FILE)
@click.argument("reference", type=INPUT_FILE)
@click.option(
    "--symmetry",
    default="C1",
    show_default=True,
    help="Point group that errors are taken modulo, in RELION's names.",
)
@data_root_option
@json_option
@overwrite_option
@quiet_option
def command(
    predicted: Path,
    reference: Path,
    symmetry: str,
    data_root: Path | None,
    json_file: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Compare the orientations of PREDICTED with those of REFERENCE, which may hold more particles.

    Two files of cryoSPARC (.cs, .csg) are matched by uid, everything else by image (stack and slice), never
    by position.
    """
    from cryoforum_plugin.atomic import check_output
    from cryoforum_plugin.confidence.evaluation import evaluate, reliability_of
    from cryoforum_plugin.formats import read_particles
    from cryoforum_plugin.geometry import symmetry_group

    symmetry_group(symmetry)  # an unknown one is said before the files are read
    if json_file is not None:
        check_output(json_file, overwrite)
    tables = read_particles(predicted, data_root), read_particles(reference, data_root)
    figures, reasons = evaluate(*tables, symmetry)
    for line in table_lines(figures, reasons):
        click.echo(line)
    write_json(json_file, figures | {"reliability": reliability_of(*tables, figures, symmetry)}, overwrite)


def table_lines(figures: dict[str, Any], reasons: dict[str, str]) -> list[str]:
    """One line a figure: name and value, or a dash and the reason why there is none."""
    width = max(map(len, figures))
    return [
        f"{name:{width}}  " + (f"- ({reasons[name]})" if value is None else _number(value))
        for name, value in figures.items()
    ]


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"

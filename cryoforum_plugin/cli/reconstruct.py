"""`cryoforum reconstruct`: half maps, map and FSC from particles with orientations."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from cryoforum_plugin.reconstruction.reconstruct import Reconstruction


@click.command(name="reconstruct")
@click.argument("particles", type=INPUT_FILE)
@click.option("-o", "--output", type=OUTPUT_PATH, required=True, help="Folder to write.")
@click.option("--symmetry", default="C1", show_default=True, help="Point group, in RELION's names.")
@click.option(
    "--box", type=int, default=None, help="Crop images to this box in Fourier space first (faster)."
)
@click.option("--no-ctf", is_flag=True, help="The images are CTF-corrected already.")
@click.option(
    "--weight",
    type=click.Choice(["none", "confidence", "covariance"]),
    default="none",
    show_default=True,
    help="How much particles count: alike, by their confidence, or at each frequency by what the uncertainty of their "
    "poses leaves of the signal.",
)
@click.option("--weighted", is_flag=True, hidden=True, help="Former name of --weight confidence.")
@click.option("--no-normalise", is_flag=True, help="Take the images' scale as it is.")
@click.option(
    "--mask-diameter",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="Soft sphere for the FSC, in Å [default: the box].",
)
@click.option("--mask", type=INPUT_FILE, default=None, help="Mask for the FSC, in place of a sphere.")
@data_root_option
@device_option
@json_option
@overwrite_option
@quiet_option
def command(
    particles: Path,
    output: Path,
    symmetry: str,
    box: int | None,
    no_ctf: bool,
    weight: str,
    weighted: bool,
    no_normalise: bool,
    mask_diameter: float | None,
    mask: Path | None,
    data_root: Path | None,
    device: str,
    json_file: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Reconstruct PARTICLES: half1.mrc, half2.mrc, map.mrc, fsc.csv and fsc_cones.csv in the output folder."""
    from cryoforum_plugin.atomic import check_directory, check_file
    from cryoforum_plugin.formats import read_particles
    from cryoforum_plugin.images.stacks import StackReader
    from cryoforum_plugin.maps.volume import read_map
    from cryoforum_plugin.network.device import choose_device
    from cryoforum_plugin.progress import progress
    from cryoforum_plugin.reconstruction.reconstruct import ReconstructionSettings, reconstruct
    from cryoforum_plugin.reconstruction.write import OUTPUTS, write_reconstruction

    if mask is not None and mask_diameter is not None:
        raise click.UsageError("give --mask or --mask-diameter, not both")
    if weighted and weight == "covariance":
        raise click.UsageError("--weighted is a former name of --weight confidence; leave it out")
    check_directory(output, OUTPUTS, overwrite)
    if json_file is not None:
        check_file(json_file, overwrite)
    volume = None if mask is None else read_map(mask)[0]
    settings = ReconstructionSettings(
        symmetry=symmetry,
        box_px=box,
        use_ctf=not no_ctf,
        weight="confidence" if weighted else weight,
        normalise=not no_normalise,
        mask_radius_A=None if mask_diameter is None else mask_diameter / 2,
    )
    table = read_particles(particles, data_root)
    with progress("reconstruct", len(table), quiet) as advance:
        result = reconstruct(
            table,
            StackReader(table.stacks),
            settings,
            choose_device(device),
            lambda n: advance(n, ""),
            volume,
        )
    for note in result.notes:
        click.echo(f"cryoforum: {note}", err=True)
    write_reconstruction(result, output, overwrite)
    for line in _lines(result, output):
        click.echo(line)
    write_json(json_file, figures(result), overwrite)


def figures(result: Reconstruction) -> dict[str, Any]:
    """Numbers of a reconstruction for `--json`."""
    return {
        "n": result.count1 + result.count2,
        "n_half1": result.count1,
        "n_half2": result.count2,
        "resolution_0143_A": round(result.resolution_0143_A, 4),
        "resolution_05_A": round(result.resolution_05_A, 4),
        "resolution_best_A": round(result.cones.best_A, 4),
        "resolution_worst_A": round(result.cones.worst_A, 4),
        "even_directions": round(result.cones.even, 4),
        "pixel_size_A": result.pixel_size_A,
        "box_px": len(result.map),
    }


def _lines(result: Reconstruction, output: Path) -> list[str]:
    return [
        f"particles            {result.count1} + {result.count2}",
        f"resolution FSC 0.143 {result.resolution_0143_A:.2f} Å",
        f"resolution FSC 0.5   {result.resolution_05_A:.2f} Å",
        f"by direction         {result.cones.best_A:.2f} to {result.cones.worst_A:.2f} Å (FSC 0.143 in cones of 20°), "
        f"{100 * result.cones.even:.0f} % within 10 % of the median",
        f"written              {output}",
    ]

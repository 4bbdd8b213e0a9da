"""`cryoforum simulate`: particle images with known orientations from a map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cryoforum_plugin.cli.common import (
    INPUT_FILE,
    OUTPUT_PATH,
    data_root_option,
    device_option,
    overwrite_option,
    quiet_option,
    seed_option,
)

if TYPE_CHECKING:
    from cryoforum_plugin.particles import Ctf, FloatArray


@click.command(name="simulate")
@click.argument("map_file", metavar="MAP", type=INPUT_FILE)
@click.option("-o", "--output", type=OUTPUT_PATH, required=True, help="Folder to write.")
@click.option("--count", type=int, default=5000, show_default=True, help="Number of particles.")
@click.option(
    "--snr", type=float, default=0.1, show_default=True, help="Signal to noise variance; inf = no noise."
)
@click.option("--shift-px", type=float, default=3.0, show_default=True, help="Largest shift along x and y.")
@click.option(
    "--box", type=int, default=None, help="Box of the images, at most the map's [default: the map's]."
)
@click.option("--low-pass", type=float, default=None, help="Low-pass filter the map to this resolution in Å.")
@click.option(
    "--pixel-size", type=float, default=None, help="Pixel size of the map in Å [default: its header's]."
)
@click.option("--views-from", type=INPUT_FILE, default=None, help="Take viewing directions from this table.")
@click.option("--ctf-from", type=INPUT_FILE, default=None, help="Take CTF parameters from this table.")
@click.option(
    "--defocus", type=float, nargs=2, default=(1.0, 2.5), show_default=True, help="Range of defocus in µm."
)
@click.option("--kv", type=float, default=300.0, show_default=True, help="Voltage in kV.")
@click.option("--cs", type=float, default=2.7, show_default=True, help="Spherical aberration in mm.")
@click.option("--q0", type=float, default=0.1, show_default=True, help="Amplitude contrast.")
@click.option(
    "--junk", type=float, default=0.0, show_default=True, help="Fraction of junk; labelled in truth.csv."
)
@click.option(
    "--symmetry", default="C1", show_default=True, help="Spread views over the copies of this group."
)
@click.option(
    "--asymmetric-unit", is_flag=True, help="Keep views in one asymmetric unit of --symmetry instead."
)
@click.option("--split", type=float, nargs=2, default=None, help="Fractions for train and test tables.")
@click.option("--format", "format_name", type=click.Choice(["star", "cs"]), default="star", show_default=True)
@click.option("--float16", is_flag=True, help="Write the stack in half precision (MRC mode 12).")
@seed_option
@data_root_option
@device_option
@overwrite_option
@quiet_option
def command(
    map_file: Path,
    output: Path,
    count: int,
    snr: float,
    shift_px: float,
    box: int | None,
    low_pass: float | None,
    pixel_size: float | None,
    views_from: Path | None,
    ctf_from: Path | None,
    defocus: tuple[float, float],
    kv: float,
    cs: float,
    q0: float,
    junk: float,
    symmetry: str,
    asymmetric_unit: bool,
    split: tuple[float, float] | None,
    format_name: str,
    float16: bool,
    seed: int,
    data_root: Path | None,
    device: str,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Make particle images with known poses from MAP, by default with the paper's protocol.

    Uniform views, shifts up to 3 px, defocus 1.0-2.5 µm at 300 kV, white noise at a signal-to-noise
    ratio of 0.1. Junk is one third pure noise, one third off-centre, one third another particle.
    """
    from cryoforum_plugin.atomic import check_output
    from cryoforum_plugin.maps.volume import read_map
    from cryoforum_plugin.network.device import choose_device
    from cryoforum_plugin.progress import progress
    from cryoforum_plugin.simulation.draw import SimulationSettings, draw_particles
    from cryoforum_plugin.simulation.simulate import Simulator
    from cryoforum_plugin.simulation.write import split_names, write_simulation

    check_output(output, overwrite)
    settings = SimulationSettings(
        count=count,
        snr=snr,
        shift_px=shift_px,
        defocus_um=defocus,
        voltage_kV=kv,
        spherical_aberration_mm=cs,
        amplitude_contrast=q0,
        low_pass_A=low_pass,
        box_px=box,
        junk=junk,
        symmetry=symmetry,
        asymmetric_unit=asymmetric_unit,
        seed=seed,
    )
    settings.check()
    split_names(count, split)
    views, ctf = _tables(views_from, ctf_from, data_root)
    simulator = Simulator(*read_map(map_file, pixel_size), settings, choose_device(device))
    draw = draw_particles(settings, simulator.pixel_size_A, simulator.box_px, views, ctf)
    with progress("simulate", count, quiet) as advance:
        write_simulation(
            simulator,
            draw,
            output,
            suffix=f".{format_name}",
            split=split,
            float16=float16,
            data_root=data_root,
            overwrite=overwrite,
            progress=lambda done: advance(done, ""),
        )
    size = f"{simulator.box_px} px of {simulator.pixel_size_A:.4g} Å"
    click.echo(f"{count} particles, {size}, in {output / f'particles.{format_name}'}")


def _tables(
    views_from: Path | None, ctf_from: Path | None, data_root: Path | None
) -> tuple[FloatArray | None, Ctf | None]:
    """Orientations and CTF parameters to sample from, where tables are given."""
    from cryoforum_plugin.formats import read_particles

    views = None if views_from is None else read_particles(views_from, data_root).require_rotation()
    ctf = None if ctf_from is None else read_particles(ctf_from, data_root).require_ctf()
    return views, ctf

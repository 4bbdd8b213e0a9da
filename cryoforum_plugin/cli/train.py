"""`cryoforum train`: learn orientations from refined particles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from cryoforum_plugin.cli.common import (
    INPUT_FILE,
    OUTPUT_PATH,
    contrast_options,
    data_root_option,
    device_option,
    devices_options,
    json_option,
    overwrite_option,
    precision_option,
    quiet_option,
    write_json,
)
from cryoforum_plugin.cli.options import training_options, training_settings

REFERENCE = Path("reference")  # the word, not a file


def check_sources(particles: tuple[Path, ...], options: dict[str, Any]) -> bool:
    """Refuse sources of images that mean nothing together; return whether a map is trained on alone."""
    source, ctf_from = options["simulate_from"], options["ctf_from"]
    is_map = source is not None and source != REFERENCE
    rules = [
        (particles or source is not None, "give PARTICLES, or --simulate-from MAP --ctf-from PARTICLES"),
        (particles or is_map, "--simulate-from reference needs PARTICLES to rebuild the reference from"),
        (
            particles or ctf_from is not None,
            "--simulate-from MAP without PARTICLES needs --ctf-from, the table of particles to imitate",
        ),
        (
            ctf_from is None or not particles,
            "--ctf-from is for training without PARTICLES: refined ones bring their own CTFs",
        ),
        (is_map or options["map_pixel_size"] is None, "--map-pixel-size needs --simulate-from MAP"),
    ]
    for holds, message in rules:
        if not holds:
            raise click.UsageError(message)
    return not particles


@click.command(name="train")
@click.argument("particles", nargs=-1, type=INPUT_FILE)
@click.option("-o", "--output", "model_dir", type=OUTPUT_PATH, required=True, help="Model folder to write.")
@training_options
@click.option(
    "--simulate-from",
    type=INPUT_FILE,
    metavar="MAP|reference",
    help="Simulated images show this map, in the frame of PARTICLES; `reference`: every image shows the map rebuilt "
    "from PARTICLES.",
)
@click.option(
    "--ctf-from",
    type=INPUT_FILE,
    metavar="PARTICLES",
    help="Without PARTICLES: images of --simulate-from MAP like those of this table, whose poses are not used.",
)
@click.option(
    "--map-pixel-size",
    type=click.FloatRange(0, min_open=True),
    help="Pixel size of the map in Å  [default: its header's]",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a killed run.")
@devices_options
@contrast_options
@data_root_option
@device_option
@precision_option
@json_option
@overwrite_option
@quiet_option
def command(particles: tuple[Path, ...], model_dir: Path, **options: Any) -> None:
    """Train on refined PARTICLES (.star, .cs or .csg; several files allowed) and write a model folder.

    Without refined particles: --simulate-from MAP --ctf-from PARTICLES.
    """
    from cryoforum_plugin import formats
    from cryoforum_plugin.atomic import check_file
    from cryoforum_plugin.launch import Devices
    from cryoforum_plugin.launch.devices import check_devices
    from cryoforum_plugin.launch.run import check_started
    from cryoforum_plugin.maps.given import read_shown_map
    from cryoforum_plugin.network.device import choose_precision
    from cryoforum_plugin.report import write_report
    from cryoforum_plugin.settings import implied_by_source
    from cryoforum_plugin.training.on_devices import train_on

    alone = check_sources(particles, options)
    source = options["simulate_from"]
    settings = training_settings(options, implied_by_source(source == REFERENCE, alone))
    if options["json_file"] is not None:
        check_file(options["json_file"], options["overwrite"])
    devices = Devices(options["device"], options["devices"], options["num_nodes"])
    check_started(devices)
    precision = choose_precision(options["precision"], check_devices(devices))
    inputs = (options["ctf_from"],) if alone else particles
    table = formats.read_many(inputs, options["data_root"])
    calibration = train_on(
        devices,
        table,
        inputs,
        model_dir,
        settings,
        precision,
        init_from=options["init_from"],
        shown=None
        if source in (None, REFERENCE)
        else read_shown_map(source, options["map_pixel_size"], alone),
        resume=options["resume"],
        overwrite=options["overwrite"],
        quiet=options["quiet"],
        cache_dir=options["cache_dir"],
    )
    if calibration is None:  # another machine has the first process
        return
    write_report(model_dir, model_dir / "report.html")
    write_json(options["json_file"], calibration, options["overwrite"])
    images = " (simulated images)" if alone else ""
    for views, figures in calibration["views"].items():
        click.echo(
            f"validation error{images} with {views} view{'s' if views != '1' else ''}: "
            f"median {figures['validation_median_deg']:.2f} deg, mean {figures['validation_mean_deg']:.2f} deg"
        )
    if "refined" in calibration:
        figures = calibration["refined"]
        click.echo(
            f"validation error after refinement: median {figures['validation_median_deg']:.2f} deg, "
            f"mean {figures['validation_mean_deg']:.2f} deg"
        )
    click.echo(f"model: {model_dir}")

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
    json_option,
    overwrite_option,
    precision_option,
    quiet_option,
    write_json,
)
from cryoforum_plugin.cli.options import training_options, training_settings


@click.command(name="train")
@click.argument("particles", nargs=-1, required=True, type=INPUT_FILE)
@click.option("-o", "--output", "model_dir", type=OUTPUT_PATH, required=True, help="Model folder to write.")
@training_options
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a killed run.")
@click.option("--devices", type=click.IntRange(1), default=1, show_default=True, help="Devices to train on.")
@click.option(
    "--num-nodes", type=click.IntRange(1), default=1, show_default=True, help="Machines to train on."
)
@contrast_options
@data_root_option
@device_option
@precision_option
@json_option
@overwrite_option
@quiet_option
def command(particles: tuple[Path, ...], model_dir: Path, **options: Any) -> None:
    """Train on refined PARTICLES (.star, .cs or .csg; several files allowed) and write a model folder."""
    from cryoforum_plugin import formats
    from cryoforum_plugin.atomic import check_file
    from cryoforum_plugin.network.device import choose_device, choose_precision
    from cryoforum_plugin.report import write_report
    from cryoforum_plugin.training.loop import make_fabric
    from cryoforum_plugin.training.train import train

    settings = training_settings(options)
    if options["json_file"] is not None:
        check_file(options["json_file"], options["overwrite"])
    precision = choose_precision(options["precision"], choose_device(options["device"]))
    table = formats.read_many(particles, options["data_root"])
    fabric = make_fabric(options["device"], options["devices"], options["num_nodes"], precision)
    calibration = train(
        table,
        particles,
        model_dir,
        settings,
        fabric,
        precision,
        init_from=options["init_from"],
        resume=options["resume"],
        overwrite=options["overwrite"],
        quiet=options["quiet"],
    )
    if not fabric.is_global_zero:
        return
    write_report(model_dir, model_dir / "report.html")
    write_json(options["json_file"], calibration, options["overwrite"])
    for views, figures in calibration["views"].items():
        click.echo(
            f"validation error with {views} view{'s' if views != '1' else ''}: "
            f"median {figures['validation_median_deg']:.2f} deg, mean {figures['validation_mean_deg']:.2f} deg"
        )
    if "refined" in calibration:
        figures = calibration["refined"]
        click.echo(
            f"validation error after refinement: median {figures['validation_median_deg']:.2f} deg, "
            f"mean {figures['validation_mean_deg']:.2f} deg"
        )
    click.echo(f"model: {model_dir}")

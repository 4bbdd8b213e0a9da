"""`cryoforum recalibrate`: a model's uncertainty fitted anew to other particles."""

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


@click.command(name="recalibrate")
@click.argument("model_dir", type=INPUT_FILE)
@click.argument("particles", type=INPUT_FILE)
@click.option("-o", "--output", type=OUTPUT_PATH, required=True, help="Folder for the calibrated model.")
@contrast_options
@data_root_option
@device_option
@precision_option
@json_option
@overwrite_option
@quiet_option
def command(model_dir: Path, particles: Path, output: Path, **options: Any) -> None:
    """Calibrate the model in MODEL_DIR on refined PARTICLES (.star, .cs or .csg) it has not seen, some hundred of them.

    For particles of the same kind from another microscope, state, box or picker: the weights stay as they are.
    """
    from cryoforum_plugin import formats
    from cryoforum_plugin.atomic import check_file, check_output
    from cryoforum_plugin.network.device import choose_device, choose_precision
    from cryoforum_plugin.training.recalibrate import recalibrate

    check_output(output, options["overwrite"])
    if options["json_file"] is not None:
        check_file(options["json_file"], options["overwrite"])
    device = choose_device(options["device"])
    table = formats.read_particles(particles, options["data_root"])
    calibration = recalibrate(
        model_dir,
        table,
        output,
        device,
        choose_precision(options["precision"], device),
        options["contrast"],
        options["overwrite"],
        options["quiet"],
    )
    write_json(options["json_file"], calibration, options["overwrite"])
    found = {
        f"{views} view{'s' if views != '1' else ''}": calibration["views"][views]
        for views in calibration["views"]
    }
    found |= {"refinement": calibration["refined"]} if "refined" in calibration else {}
    for name, figures in found.items():
        click.echo(
            f"error with {name}: median {figures['validation_median_deg']:.2f} deg, "
            f"mean {figures['validation_mean_deg']:.2f} deg"
        )
    click.echo(f"written: {output}")

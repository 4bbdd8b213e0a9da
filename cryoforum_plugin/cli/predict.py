"""`cryoforum predict`: orientations, shifts and uncertainty for new particles."""

from __future__ import annotations

import time
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
from cryoforum_plugin.cli.options import prediction_choices, prediction_options


@click.command(name="predict")
@click.argument("model_dir", type=INPUT_FILE)
@click.argument("particles", type=INPUT_FILE)
@click.option("-o", "--output", type=OUTPUT_PATH, required=True, help="Table to write, .star, .cs or .csg.")
@prediction_options
@contrast_options
@data_root_option
@device_option
@devices_options
@precision_option
@json_option
@overwrite_option
@quiet_option
def command(model_dir: Path, particles: Path, output: Path, **options: Any) -> None:
    """Predict PARTICLES (.star, .cs or .csg) with the model in MODEL_DIR; every row and column is kept.

    A run that was killed goes on where it stopped: start it again as it was.
    """
    from cryoforum_plugin import formats
    from cryoforum_plugin.atomic import check_file
    from cryoforum_plugin.launch import Devices
    from cryoforum_plugin.launch.devices import check_devices, parent_device
    from cryoforum_plugin.launch.run import check_started
    from cryoforum_plugin.network.device import choose_precision
    from cryoforum_plugin.network.model import load_model
    from cryoforum_plugin.prediction.figures import figures_of
    from cryoforum_plugin.prediction.journal import journal_of, remove_journal
    from cryoforum_plugin.prediction.members import ready
    from cryoforum_plugin.prediction.on_devices import predict_on
    from cryoforum_plugin.prediction.run import prediction_identity

    choices = prediction_choices(options)
    for path in (*formats.files_of(output), options["json_file"]):
        if path is not None:
            check_file(path, options["overwrite"])
    formats.adapter_for(output)
    devices = Devices(options["device"], options["devices"], options["num_nodes"])
    check_started(devices)
    precision = choose_precision(options["precision"], check_devices(devices))
    model = load_model(model_dir, parent_device(devices))
    table = ready(model, formats.read_particles(particles, options["data_root"]))
    start = time.monotonic()
    found = predict_on(
        devices,
        model,
        table,
        precision,
        choices,
        journal=journal_of(output),
        identity=prediction_identity(particles, model_dir, choices),
    )
    if found is None:  # another machine has the first process
        return
    prediction, unlike = found
    seconds = time.monotonic() - start
    formats.write_particles(table, output, prediction, options["overwrite"], options["data_root"])
    remove_journal(journal_of(output))
    speed = {"seconds": round(seconds, 3), "particles_per_s": round(len(prediction) / max(seconds, 1e-9), 1)}
    figures = figures_of(prediction) | speed | {"unlikeness": unlike}
    write_json(options["json_file"], figures, options["overwrite"])
    click.echo(
        f"{figures['n']} particles in {seconds:.1f} s ({figures['particles_per_s']:.0f}/s), "
        f"{figures['unusable']} unusable; median expected error {figures['median_expected_error_deg']:.2f} deg, "
        f"{100 * figures['fraction_confidence_above_half']:.0f} % with confidence above 0.5"
    )
    click.echo(f"written: {output}")

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
from cryoforum_plugin.settings import PRESETS, Settings

_DEFAULT = Settings()


@click.command(name="train")
@click.argument("particles", nargs=-1, required=True, type=INPUT_FILE)
@click.option("-o", "--output", "model_dir", type=OUTPUT_PATH, required=True, help="Model folder to write.")
@click.option(
    "--symmetry", default=None, help="Point group with RELION's axes: Cn, Dn, T, O, I, I1-I4  [default: C1]"
)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="default", show_default=True)
@click.option(
    "--epochs",
    type=int,
    default=None,
    help="Passes over the particles, of 2,048 images at least  [default: by their number, or the preset's]",
)
@click.option(
    "--batch-size",
    type=int,
    default=None,
    help=f"Images a step, pairs in siamese training  [default: {_DEFAULT.training.batch_size}, or the preset's]",
)
@click.option(
    "--image-size",
    type=int,
    default=None,
    help=f"Side of the working box in pixels  [default: {_DEFAULT.images.size_px}, or the preset's]",
)
@click.option("--diameter", type=float, default=None, help="Particle diameter in Å  [default: measured]")
@click.option("--no-ctf", is_flag=True, help="The images are CTF-corrected or have no CTF.")
@click.option(
    "--validation-fraction",
    type=float,
    default=None,
    help=f"Part kept for validation  [default: {_DEFAULT.training.validation_fraction}, or the preset's]",
)
@click.option(
    "--init-from",
    type=OUTPUT_PATH,
    metavar="MODEL_DIR",
    help="Start from the weights (and network settings) of this model, perhaps of another protein.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a killed run.")
@click.option(
    "--config", "config_file", type=INPUT_FILE, default=None, help="Settings from a TOML or JSON file."
)
@click.option(
    "--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Any other setting; repeatable."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=None,
    help=f"Seed of all random choices  [default: {_DEFAULT.training.seed}]",
)
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
    """Train on refined PARTICLES (.star or .cs; several files allowed) and write a model folder."""
    from cryoforum_plugin import formats
    from cryoforum_plugin.atomic import check_file
    from cryoforum_plugin.network.device import choose_device, choose_precision
    from cryoforum_plugin.report import write_report
    from cryoforum_plugin.training.loop import make_fabric
    from cryoforum_plugin.training.train import train

    settings = _settings(options)
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
    click.echo(f"model: {model_dir}")


def _network_of(model_dir: Path) -> Any:
    """Network settings of a trained model."""
    import torch

    from cryoforum_plugin.network.model import load_model

    return load_model(model_dir, torch.device("cpu")).settings.network


def _settings(options: dict[str, Any]) -> Any:
    """Settings from preset, then config file, then options, then --set."""
    from cryoforum_plugin.errors import SettingsError
    from cryoforum_plugin.settings import assemble, option_values, parse_assignments, read_config

    try:
        assignments = parse_assignments(options["assignments"])
    except SettingsError as error:
        raise click.UsageError(f"--set: {error}") from error
    return assemble(
        options["preset"],
        network=None if options["init_from"] is None else _network_of(options["init_from"]),
        config=None if options["config_file"] is None else read_config(options["config_file"]),
        options=option_values(options)
        | {
            "training.batch_size": options["batch_size"],
            "images.size_px": options["image_size"],
            "images.diameter_A": options["diameter"],
            "images.ctf": "none" if options["no_ctf"] else None,
            "training.validation_fraction": options["validation_fraction"],
        },
        assignments=assignments,
    )

"""Options of a training, a prediction and a selection, alike wherever one is asked for; no heavy imports here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rich_click as click

from cryoforum_plugin.cli.common import INPUT_FILE, OUTPUT_PATH, Command
from cryoforum_plugin.settings import DEFAULT_VIEWS, PRESETS, Settings

if TYPE_CHECKING:
    from cryoforum_plugin.confidence.criteria import Criteria

_DEFAULT = Settings()


def options(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Join options into one decorator, in order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


training_options = options(
    click.option(
        "--symmetry",
        default=None,
        help="Point group with RELION's axes: Cn, Dn, T, O, I, I1-I4; DnY: 2-fold on y, cryoSPARC's Dn  [default: C1]",
    ),
    click.option("--preset", type=click.Choice(list(PRESETS)), default="default", show_default=True),
    click.option(
        "--epochs",
        type=int,
        default=None,
        help="Passes over the particles, of 2,048 images at least  [default: by their number, or the preset's]",
    ),
    click.option(
        "--batch-size",
        type=int,
        default=None,
        help=f"Images a step, pairs in siamese training  [default: {_DEFAULT.training.batch_size}, or the preset's]",
    ),
    click.option(
        "--image-size",
        type=int,
        default=None,
        help=f"Side of the working box in pixels  [default: {_DEFAULT.images.size_px}, or the preset's]",
    ),
    click.option("--diameter", type=float, default=None, help="Particle diameter in Å  [default: measured]"),
    click.option("--no-ctf", is_flag=True, help="The images are CTF-corrected or have no CTF."),
    click.option(
        "--validation-fraction",
        type=float,
        default=None,
        help=f"Part kept for validation  [default: {_DEFAULT.training.validation_fraction}, or the preset's]",
    ),
    click.option(
        "--half-sets/--no-half-sets",
        default=None,
        help="A model for each half set, so that nothing crosses between them  [default: from 5,000 particles in each on]",
    ),
    click.option(
        "--folds",
        type=click.IntRange(1, 10),
        default=None,
        help="Models trained on all but a fold each, so that the training particles can be predicted too  [default: 1]",
    ),
    click.option(
        "--init-from",
        type=OUTPUT_PATH,
        metavar="MODEL_DIR",
        help="Start from the weights (and network settings) of this model, perhaps of another protein.",
    ),
    click.option(
        "--cache-dir",
        type=OUTPUT_PATH,
        metavar="DIR",
        help="Keep the preprocessed images here for other trainings, and use those of others on the same particles; best on "
        "a local disk  [default: in the model folder, until it is finished]",
    ),
    click.option(
        "--config", "config_file", type=INPUT_FILE, default=None, help="Settings from a TOML or JSON file."
    ),
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Any other setting; repeatable.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**31 - 1),
        default=None,
        help=f"Seed of all random choices  [default: {_DEFAULT.training.seed}]",
    ),
)
views_option = click.option(
    "--views",
    type=click.Choice(["1", "2", "4", "8"]),
    default=str(DEFAULT_VIEWS),
    show_default=True,
    help="Test-time in-plane views of each image: more is slower and a little more accurate.",
)
refinement_options = options(
    click.option(
        "--refine/--no-refine",
        default=None,
        help="Refine the predicted poses against a reference  [default: where the model has one that helps]",
    ),
    click.option(
        "--reference",
        type=INPUT_FILE,
        metavar="MAP",
        help="Refine against this map, in the frame of the training  [default: the model's own, by half set]",
    ),
)
prediction_options = options(
    views_option,
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=None,
        help="Images at a time  [default: 64 on a CPU, fewer in working boxes above 64 px; 512 on a GPU]",
    ),
    refinement_options,
)


def prediction_choices(values: dict[str, Any]) -> Any:
    """PredictOptions from the values of `prediction_options` and `contrast_options`; those not there stay as by default."""
    from cryoforum_plugin.prediction.run import PredictOptions

    if values.get("reference") is not None and values["refine"] is False:
        raise click.UsageError("--reference needs refinement; leave out --no-refine")
    return PredictOptions(
        int(values["views"]),
        values.get("batch_size"),
        values["contrast"],
        bool(values.get("quiet")),
        values.get("refine"),
        values.get("reference"),
    )


selection_options = options(
    click.option("--min-confidence", type=click.FloatRange(0, 1), help="Smallest calibrated confidence."),
    click.option(
        "--max-error", type=click.FloatRange(0, 180), help="Largest expected angular error in degrees."
    ),
    click.option(
        "--keep", type=click.FloatRange(0, 1, min_open=True), help="Keep this fraction, the most confident."
    ),
    click.option(
        "--statistic", type=click.Choice(["lambda_max", "trace"]), help="Filter by a statistic of the paper."
    ),
    click.option(
        "--quantile",
        type=click.FloatRange(0, 1, min_open=True),
        help="Keep what lies below this quantile of --statistic [default: 0.75].",
    ),
    click.option(
        "--max-outlier",
        type=click.FloatRange(0, 1),
        help="Largest outlier score: how unlike the training particles.",
    ),
    click.option(
        "--target",
        metavar="PART:DEG",
        help="5%:10: as many as there can be with at most 5 % expected to be more than 10 degrees off.",
    ),
    click.option(
        "--auto",
        is_flag=True,
        help="Choose the set with the clearest half maps, of sets nested by confidence; by the confidences alone where "
        "images cannot be read.",
    ),
    click.option(
        "--no-images", is_flag=True, help="With --auto: choose by the confidences alone, which is quick."
    ),
    click.option(
        "--balance-views",
        is_flag=True,
        help="Add the best of rare views until as large a part of each view is kept.",
    ),
)


def training_settings(values: dict[str, Any], implied: dict[str, Any] | None = None) -> Settings:
    """Settings from the values of `training_options`: preset, then config file, then options, then --set.

    implied : {"section.key": value} of what other options stand for.
    """
    from cryoforum_plugin.errors import SettingsError
    from cryoforum_plugin.settings import assemble, option_values, parse_assignments, read_config

    try:
        assignments = parse_assignments(values["assignments"])
    except SettingsError as error:
        raise click.UsageError(f"--set: {error}") from error
    return assemble(
        values["preset"],
        network=None if values["init_from"] is None else _network_of(values["init_from"]),
        config=None if values["config_file"] is None else read_config(values["config_file"]),
        options=option_values(values)
        | {
            "training.batch_size": values["batch_size"],
            "images.size_px": values["image_size"],
            "images.diameter_A": values["diameter"],
            "images.ctf": "none" if values["no_ctf"] else None,
            "training.validation_fraction": values["validation_fraction"],
            "training.half_sets": values["half_sets"],
            "training.folds": values["folds"],
        }
        | (implied or {}),
        assignments=assignments,
    )


def _network_of(model_dir: Any) -> Any:
    """Network settings of a trained model."""
    import torch

    from cryoforum_plugin.network.model import load_model

    return load_model(model_dir, torch.device("cpu")).settings.network


def check_selection(values: dict[str, Any]) -> None:
    """Refuse combinations of `selection_options` that mean nothing."""
    if values["quantile"] is not None and values["statistic"] is None:
        raise click.UsageError("--quantile needs --statistic lambda_max or --statistic trace")
    if values["no_images"] and not values["auto"]:
        raise click.UsageError("--no-images needs --auto")


def selection_criteria(
    values: dict[str, Any], model: Any = None, views: int = DEFAULT_VIEWS, least_apart: int = 0
) -> Criteria:
    """Criteria from the values of `selection_options`; a quantile over the validation particles of `model`."""
    from cryoforum_plugin.confidence.criteria import Criteria
    from cryoforum_plugin.confidence.target import parse_target
    from cryoforum_plugin.errors import SettingsError

    try:
        target = None if values["target"] is None else parse_target(values["target"])
    except SettingsError as error:
        raise click.UsageError(f"--target: {error}") from error
    quantile = Criteria.quantile if values["quantile"] is None else values["quantile"]
    threshold = None
    if model is not None and values["statistic"] is not None:
        from cryoforum_plugin.confidence.model_quantiles import read_model_quantile

        threshold = read_model_quantile(model, values["statistic"], quantile, views)
    return Criteria(
        min_confidence=values["min_confidence"],
        max_error_deg=values["max_error"],
        keep_fraction=values["keep"],
        statistic=values["statistic"],
        quantile=quantile,
        statistic_threshold=threshold,
        auto=values["auto"],
        balance_halves=True,
        least_apart=least_apart,
        max_outlier=values["max_outlier"],
        target=target,
        balance_views=values["balance_views"],
        images=not values["no_images"],
    )


NO_CRITERION = (
    "no criterion: give --min-confidence, --max-error, --keep, --statistic, --max-outlier, --target or --auto"
)

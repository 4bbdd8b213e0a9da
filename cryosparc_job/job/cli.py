"""`cryoforum-cryosparc`: train, predict and select on particles in cryoSPARC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from cryoforum_plugin import __version__
from cryoforum_plugin.cli.common import (
    ErrorGroup,
    contrast_options,
    device_option,
    devices_options,
    precision_option,
)
from cryoforum_plugin.cli.options import (
    NO_CRITERION,
    check_selection,
    options,
    prediction_choices,
    prediction_options,
    refinement_options,
    selection_criteria,
    selection_options,
    training_options,
    training_settings,
    views_option,
)


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cryoforum-cryosparc")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def main(debug: bool) -> None:
    """Orientations with calibrated uncertainty for particles in cryoSPARC, as an external job.

    Log in once: python -m cryosparc.tools login --url URL
    """


_source = options(
    click.option("--url", help="Address of cryoSPARC  [default: CRYOSPARC_BASE_URL]."),
    click.option("--email", help="Whose login to use  [default: the only one]."),
    click.option("--project", required=True, help="P3 or 3."),
    click.option("--workspace", required=True, help="Where the external job goes, W1 or 1."),
    click.option("--job", required=True, help="Job whose particles to work on, J42 or 42."),
    click.option("--output", default="particles", show_default=True, help="Its output with particles."),
    click.option("--model-dir", type=click.Path(path_type=Path), required=True, help="Model folder."),
    device_option,
    precision_option,
)
_training = options(
    training_options,
    devices_options,
    contrast_options,
    click.option("--overwrite", is_flag=True, help="Train anew where a model is there already."),
)
_prediction = options(prediction_options, devices_options, contrast_options)
_selection = options(
    selection_options,
    click.option("--fsc/--no-fsc", default=None, help="Reconstruct all, selected and rejected particles here, and show "
                 "their FSC  [default: in a pipeline]."),
    click.option("--queue-reconstruction", is_flag=True, help="Queue a homogeneous reconstruction of the result."),
    click.option("--queue-refinement", is_flag=True, help="Queue a local refinement of the result."),
    click.option("--volume", metavar="JOB.OUTPUT", help="Its start  [default: that of --job]."),
    click.option("--mask", metavar="JOB.OUTPUT", help="Its mask  [default: that of --job]."),
    click.option("--lane", help="Lane of the queued jobs  [default: the master itself]."),
)  # fmt: skip


@main.command()
@_source
@_training
def train(**values: Any) -> None:
    """Learn orientations from refined particles."""
    _run(values, train=True, predict=False)


@main.command()
@_source
@_prediction
@_selection
def predict(**values: Any) -> None:
    """Give particles uncertainties and predicted poses; with a criterion also select."""
    if values["balance_views"] and not _criteria(values).any():
        raise click.UsageError(NO_CRITERION)
    _run(values)


@main.command()
@_source
@_selection
def select(**values: Any) -> None:
    """Select again among particles that were predicted with this model, without predicting again.

    --job is the job whose particles were predicted, or the external job that did it.
    """
    if not _criteria(values).any():
        raise click.UsageError(NO_CRITERION)
    _run(values, again=True)


@main.command()
@_source
@click.option("--train-job", help="Job with the refined particles to learn from  [default: --job].")
@click.option("--train-output", default="particles", show_default=True, help="Its output with particles.")
@_training
@views_option
@refinement_options
@_selection
def pipeline(**values: Any) -> None:
    """Train on refined particles, predict those of --job, select (--auto without a criterion)."""
    values["auto"] = values["auto"] or not selection_criteria(values).any()
    values["fsc"] = True if values["fsc"] is None else values["fsc"]
    _run(values, train=True)


def _criteria(values: dict[str, Any]) -> Any:
    check_selection(values)
    return selection_criteria(values)


def _following(values: dict[str, Any]) -> Any:
    """Jobs to queue afterwards."""
    from cryosparc_job.job.request import LOCAL_REFINEMENT, RECONSTRUCTION, Next

    lane, volume, mask = values["lane"], values["volume"], values["mask"]
    if (volume or mask) and not values["queue_refinement"]:
        raise click.UsageError("--volume and --mask need --queue-refinement")
    if lane and not (values["queue_refinement"] or values["queue_reconstruction"]):
        raise click.UsageError("--lane needs --queue-reconstruction or --queue-refinement")
    jobs = [Next(RECONSTRUCTION, lane)] if values["queue_reconstruction"] else []
    jobs += [Next(LOCAL_REFINEMENT, lane, volume, mask)] if values["queue_refinement"] else []
    return tuple(jobs)


def _with_our_symmetry(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with --symmetry, given under cryoSPARC's name, under ours."""
    from cryosparc_job.symmetry import from_cryosparc

    given = values["symmetry"]
    return values if given is None else values | {"symmetry": from_cryosparc(given)}


def _run(values: dict[str, Any], train: bool = False, predict: bool = True, again: bool = False) -> None:
    from cryosparc_job.job.request import Request, Source
    from cryosparc_job.job.steps import run

    request: dict[str, Any] = {
        "predict": predict,
        "again": again,
        "device": values["device"],
        "precision": values["precision"],
        "devices": values.get("devices", 1),
        "num_nodes": values.get("num_nodes", 1),
    }
    if train:
        request |= {
            "train": training_settings(_with_our_symmetry(values)),
            "init_from": values["init_from"],
            "overwrite": values["overwrite"],
            "cache_dir": values["cache_dir"],
        }
        if values.get("train_job"):
            request["train_on"] = (values["train_job"], values["train_output"])
    if predict:
        criteria = _criteria(values)
        if not again:
            request["options"] = prediction_choices(values)
        request |= {
            "criteria": criteria if criteria.any() else None,
            "fsc": bool(values["fsc"]),
            "then": _following(values),
        }
    source = Source(*(values[name] for name in ("project", "workspace", "job", "output", "url", "email")))
    click.echo(f"done: {run(Request(source, values['model_dir'], **request))}")


if __name__ == "__main__":
    main()

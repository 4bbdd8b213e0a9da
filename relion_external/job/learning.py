"""The steps that take long: train and predict. What an earlier run of the same job has finished is kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoforum_plugin import __version__
from cryoforum_plugin.checksum import checksum
from cryoforum_plugin.errors import HostError
from cryoforum_plugin.formats import write_particles
from cryoforum_plugin.network.device import choose_device, choose_precision
from cryoforum_plugin.network.model import Model, load_model
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.prediction.run import PredictOptions, predict_particles
from cryoforum_plugin.report import write_report
from cryoforum_plugin.settings import (
    Settings,
    assemble,
    flatten,
    option_values,
    parse_assignments,
    read_config,
)
from cryoforum_plugin.training.loop import make_fabric
from cryoforum_plugin.training.train import train
from relion_external.job.command_line import parameter
from relion_external.job.parameters import HOST, Job
from relion_external.job.workspace import Workspace, describe, naming, read_here, same

LOG = logging.getLogger("cryoforum")
USELESS_DEG = 20.0  # beyond the reach of any local search


def train_step(work: Workspace, path: Path) -> Path:
    """Train on the particles in `path`, or go on with it; return the model directory."""
    job, directory = work.job, work.path("model")
    settings = training_settings(job)
    identity = {"particles": checksum(path), "settings": flatten(settings)}
    if work.finished("train", identity, directory / "model.pt"):
        LOG.info("training: finished in an earlier run of this job, kept")
    else:
        _refuse_changes(work, identity)
        _train(work, path, settings, identity)
    write_report(directory, directory / "report.html")
    work.made.append("model/reference.mrc")
    return directory


def _train(work: Workspace, path: Path, settings: Settings, identity: dict[str, Any]) -> None:
    directory = work.path("model")
    device = choose_device(work.job.device)
    precision = choose_precision("auto", device)
    particles = read_here(path)
    data = describe(path, particles)
    work.note("train", {**data, "identity": identity})
    LOG.info("training: %s, %d particles, on %s", path, len(particles), device)
    fabric = make_fabric(work.job.device, 1, 1, precision)
    resume = (directory / "checkpoint").is_dir()
    calibration = train(particles, [path], directory, settings, fabric, precision, resume=resume)
    errors = {
        f"validation median, {views} views (deg)": round(values["validation_median_deg"], 3)
        for views, values in calibration["views"].items()
    }
    best_deg = min(errors.values())
    if best_deg > USELESS_DEG:
        LOG.warning("the model is %.0f deg off (median of the validation particles): train longer, or on more "
                    "particles, before anything is chosen by it", best_deg)  # fmt: skip
    work.note("train", {**data, **errors, "finished": True, "identity": identity})


def training_settings(job: Job) -> Settings:
    """Settings of the training: preset, config file, parameters, then the parameter 'set'."""
    config = {} if job.config is None else read_config(job.config)
    with naming("config" if not job.set else "set"):
        return assemble(
            job.preset,
            config={key: value for key, value in config.items() if not key.startswith("job.")},
            options=option_values(vars(job)),
            assignments=parse_assignments(job.set.split()),
        )


def _refuse_changes(work: Workspace, identity: dict[str, Any]) -> None:
    """Refuse to go on with a training that was begun otherwise."""
    before = work.record.get("train", {}).get("identity", identity)
    if same(before, identity) or not work.path("model").exists():
        return
    old, new = before["settings"], identity["settings"]
    changed = [f"{key} {value} -> {new.get(key)}" for key, value in old.items() if new.get(key) != value]
    what = f"settings ({', '.join(changed)})" if changed else "particles"
    raise HostError(
        f"the training of this job was begun with other {what}; set them back to continue it, or start a new job"
    )


def predict_step(work: Workspace, model_folder: Path, particles: ParticleSet) -> Path:
    """Predict `particles`, those of the input; return predicted.star."""
    job, output = work.job, work.path("predicted.star")
    device = choose_device(job.device)
    model = load_model(model_folder, device)
    check_symmetry(job, model.settings.symmetry, f"the model {model_folder}")
    work.record["symmetry"] = model.settings.symmetry
    identity = {
        "particles": checksum(job.in_parts),
        "model": checksum(model_folder / "model.pt"),
        "views": job.views,
        "contrast": job.contrast,
        "version": __version__,
    }
    if work.finished("predict", identity, output):
        LOG.info("predicting: finished in an earlier run of this job, kept")
    else:
        _predict(work, model, particles, device, output, identity)
    work.made.append(output.name)
    return output


def _predict(
    work: Workspace,
    model: Model,
    particles: ParticleSet,
    device: torch.device,
    output: Path,
    identity: dict[str, Any],
) -> None:
    job = work.job
    LOG.info("predicting: %s, %d particles, on %s", job.in_parts, len(particles), device)
    options = PredictOptions(job.views, contrast=job.contrast)
    prediction = predict_particles(model, particles, device, choose_precision("auto", device), options)
    write_particles(particles, output, prediction, overwrite=True)
    LOG.info("predicting: %s", _summary(prediction))
    warn_of_one_half(particles, output.name)
    work.note("predict", {**describe(job.in_parts, particles), "finished": True, "identity": identity})


def _summary(prediction: Prediction) -> str:
    """How good the prediction thinks it is; rows that could not be predicted hold nan."""
    expected_deg = prediction.expected_error_deg
    assert expected_deg is not None
    confident = 100 * float((np.nan_to_num(prediction.confidence) > 0.5).mean())
    unusable = int(np.isnan(prediction.confidence).sum())
    return (
        f"median expected error {float(np.nanmedian(expected_deg)):.2f} deg, {confident:.0f} % with confidence above "
        f"0.5, {unusable} images unusable"
    )


def warn_of_one_half(particles: ParticleSet, name: str) -> None:
    """Warn of a table that RELION will refuse to refine by itself."""
    halves = set(particles.half_set.tolist())
    if len(halves) == 1 and 0 not in halves:
        LOG.warning(
            "%s holds particles of half set %d only: RELION cannot refine it by itself", name, *halves
        )


def check_symmetry(job: Job, known: str, where: str) -> None:
    """Refuse a parameter 'symmetry' that contradicts the model."""
    if job.symmetry is not None and job.symmetry.upper() != known.upper():
        raise HostError(
            f"{parameter('symmetry')} is {job.symmetry}, but {where} has {known}; remove the parameter, or train a "
            f"model with {job.symmetry}"
        )


def find_model(job: Job) -> Path:
    """Folder with model.pt: what the parameter 'model' names, or where the 3D reference lies."""
    if job.model is not None:
        if job.in_3dref is not None:
            LOG.warning("%s is not used: %s names the model", HOST["in_3dref"], parameter("model"))
        for folder in (job.model, job.model / "model", *([job.model.parent] if job.model.is_file() else [])):
            if (folder / "model.pt").is_file():
                return folder
        raise HostError(
            f"{job.model} holds no model.pt; give the folder of a finished train job as {parameter('model')}"
        )
    assert job.in_3dref is not None
    if not (job.in_3dref.parent / "model.pt").is_file():
        raise HostError(
            f"{HOST['in_3dref']}: {job.in_3dref} is not in a model's folder; choose model/reference.mrc of a finished "
            "train job"
        )
    return job.in_3dref.parent

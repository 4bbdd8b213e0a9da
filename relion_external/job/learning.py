"""The steps that take long: train and predict. What an earlier run of the same job has finished is kept."""

from __future__ import annotations

import logging
from pathlib import Path

from cryoforum_plugin.errors import HostError
from cryoforum_plugin.host_job.steps import predict_table, train_model
from cryoforum_plugin.launch import Devices
from cryoforum_plugin.launch.devices import parent_device
from cryoforum_plugin.network.model import load_model
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.prediction.run import PredictOptions, prediction_identity
from cryoforum_plugin.report import write_report
from cryoforum_plugin.settings import Settings, assemble, option_values, parse_assignments, read_config
from relion_external.job.command_line import parameter
from relion_external.job.parameters import HOST, Job
from relion_external.job.workspace import Workspace, naming, read_here

LOG = logging.getLogger("cryoforum")


def train_step(work: Workspace, path: Path) -> Path:
    """Train on the particles in `path`, or go on with it; return the model directory."""
    directory = work.path("model")
    train_model(
        work, directory, path, lambda: read_here(path), training_settings(work.job), devices_of(work.job),
        cache_dir=work.job.cache_dir,
    )  # fmt: skip
    write_report(directory, directory / "report.html")
    work.made.append("model/reference.mrc")
    return directory


def devices_of(job: Job) -> Devices:
    """Devices that share the training or the prediction."""
    return Devices(job.device, job.devices, job.num_nodes)


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


def predict_step(work: Workspace, model_folder: Path, particles: ParticleSet) -> Path:
    """Predict `particles`, those of the input; return predicted.star."""
    job, output = work.job, work.path("predicted.star")
    model = load_model(model_folder, parent_device(devices_of(job)))
    check_symmetry(job, model.settings.symmetry, f"the model {model_folder}")
    work.values["symmetry"] = model.settings.symmetry
    options = PredictOptions(
        job.views, contrast=job.contrast, refine=job.refine, reference=_reference(job, model_folder)
    )
    identity = prediction_identity(job.in_parts, model_folder, options)
    predict_table(work, model, identity, particles, output, options, devices_of(job), str(job.in_parts))
    warn_of_one_half(particles, output.name)
    work.made.append(output.name)
    return output


def _reference(job: Job, model_folder: Path) -> Path | None:
    """Map to refine against where one is given beside the model; reference.mrc of the model itself is its own."""
    if job.job != "predict" or job.model is None or job.in_3dref is None or job.refine is False:
        return None
    return None if job.in_3dref.parent.resolve() == model_folder.resolve() else job.in_3dref


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

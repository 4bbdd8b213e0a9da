"""Train, predict and select on particles of a cryoSPARC job, written back as an external job.

Tables are kept beside the model, in MODEL_DIR_cryosparc: a lost connection costs nothing, and the same command
writes a finished prediction again without predicting again.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin import __version__, formats
from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.checksum import checksum
from cryoforum_plugin.confidence.selection import Criteria, select_particles
from cryoforum_plugin.errors import HostError
from cryoforum_plugin.network.device import choose_device, choose_precision
from cryoforum_plugin.network.model import load_model
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.prediction.run import PredictOptions, predict_particles
from cryoforum_plugin.report import figures, write_report
from cryoforum_plugin.report.collect import read_metrics
from cryoforum_plugin.settings import Settings
from cryoforum_plugin.training.loop import make_fabric
from cryoforum_plugin.training.train import train
from cryosparc_job.job import outputs
from cryosparc_job.job.calls import call, quietly
from cryosparc_job.job.connection import (
    connect,
    find_particles,
    full_uid,
    project_folder,
    save_particles,
    slot_names,
)
from cryosparc_job.job.life import check_alive, running

LOG = logging.getLogger("cryoforum")


@dataclass(frozen=True)
class Source:
    """Particles in cryoSPARC, and where the external job goes."""

    project: str
    workspace: str
    job: str
    output: str = "particles"
    url: str | None = None
    email: str | None = None


@dataclass(frozen=True)
class Request:
    """What to do with a source.

    train : settings of a training, None = use the model that is there. predict : whether to write poses
    and uncertainty. again : only from a prediction that was made before. criteria : None = no selected and rejected outputs. lane : queue a reconstruction of the
    selected particles there, None = do not.
    """

    source: Source
    model_dir: Path
    train: Settings | None = None
    predict: bool = True
    again: bool = False
    options: PredictOptions = field(default_factory=PredictOptions)
    criteria: Criteria | None = None
    device: str = "auto"
    lane: str | None = None
    queue: bool = False


def run(request: Request) -> str:
    """Do what is asked for as a new external job; return its uid. Raises CryoForumError."""
    source = request.source
    client = connect(source.url, source.email)
    found = find_particles(client, source.project, source.job, source.output)
    root = project_folder(client, found.project_uid)
    slots = outputs.free_slots(slot_names(found, source.output))
    workspace = full_uid("W", source.workspace)
    title = "cryoforum: " + " and ".join(_verbs(request))
    job = call("making the external job", client.create_external_job, found.project_uid, workspace, title=title,
               desc=outputs.explanation(slots) if request.predict else "")  # fmt: skip
    needed = [name for name in ("blob", "ctf", "alignments3D") if name in slot_names(found, source.output)]
    call("adding the input", job.add_input, "particle", outputs.INPUT, min=1, max=1, slots=needed)
    call("connecting the input", job.connect, outputs.INPUT, found.uid, source.output)
    names = (
        outputs.declare(job, slots, request.criteria is not None, with_poses=True) if request.predict else []
    )
    with running(job):
        quietly("writing to the job's log", job.log, f"cryoforum {__version__}, model {request.model_dir}")
        name = f"{found.project_uid}_{found.uid}_{source.output}"
        folder = request.model_dir.with_name(f"{request.model_dir.name}_cryosparc") / name
        table = save_particles(found, source.output, folder / "particles.cs")
        particles = formats.read_particles(table, root)
        _report_halves(job, particles)
        if request.train is not None:
            train_step(job, request, table, particles)
        check_alive(job)
        if request.predict:
            predicted = predict_step(job, request, table, particles)
            check_alive(job)
            keep = None if request.criteria is None else select_step(job, request.criteria, predicted, root)
            outputs.save(job, names, predicted, keep)
    if request.queue:
        _queue(client, found.project_uid, job, request)
    return str(job.uid)


def _verbs(request: Request) -> list[str]:
    verbs = ["train"] if request.train is not None else []
    verbs += ["predict"] if request.predict else []
    return verbs + (["select"] if request.criteria is not None else [])


def train_step(job: Any, request: Request, table: Path, particles: ParticleSet) -> None:
    """Train on the particles, or go on with a training that was interrupted."""
    assert request.train is not None
    directory, device = request.model_dir, choose_device(request.device)
    precision = choose_precision("auto", device)
    fabric = make_fabric(request.device, 1, 1, precision)
    resume = (directory / "checkpoint").is_dir() and not (directory / "model.pt").exists()
    quietly("writing to the job's log", job.log, f"training on {len(particles)} particles, {device}")
    calibration = train(particles, [table], directory, request.train, fabric, precision, resume=resume)
    write_report(directory, directory / "report.html")
    for views, found in calibration["views"].items():
        text = f"validation error with {views} views: median {found['validation_median_deg']:.2f} deg"
        quietly("writing to the job's log", job.log, text)
    _plot(job, figures.training_curves(read_metrics(directory / "metrics.csv")), "Training")
    quietly("marking a checkpoint", job.log_checkpoint, {"stage": "trained"})


def predict_step(job: Any, request: Request, table: Path, particles: ParticleSet) -> Path:
    """Predict the particles, or take over what an earlier run predicted; return the predicted .cs file."""
    output, record = table.with_name("predicted.cs"), table.with_name("predicted.json")
    if not (request.model_dir / "model.pt").is_file():
        raise HostError(f"{request.model_dir} holds no model.pt; train a model there first")
    identity = {
        "particles": checksum(table),
        "model": checksum(request.model_dir / "model.pt"),
        "views": request.options.views,
        "contrast": request.options.contrast,
        "version": __version__,
    }
    if output.exists() and record.exists() and json.loads(record.read_text()) == identity:
        quietly("writing to the job's log", job.log, "this prediction was made before and is taken over")
        return output
    if request.again:
        raise HostError(
            "these particles were not predicted with this model and these options; predict them first"
        )
    device = choose_device(request.device)
    model = load_model(request.model_dir, device)
    prediction = predict_particles(
        model, particles, device, choose_precision("auto", device), request.options
    )
    formats.write_particles(particles, output, prediction, overwrite=True)
    with atomic_file(record, overwrite=True) as temporary:
        temporary.write_text(json.dumps(identity, indent=2))
    text = f"predicted {len(particles)} particles, median expected error {np.nanmedian(prediction.expected_error_deg):.2f} deg"  # type: ignore[arg-type]
    quietly("writing to the job's log", job.log, text)
    quietly("marking a checkpoint", job.log_checkpoint, {"stage": "predicted"})
    return output


def select_step(job: Any, criteria: Criteria, predicted: Path, root: Path) -> NDArray[np.bool_]:
    """Mark the rows to keep, and show what was chosen in the job's log."""
    particles = formats.read_particles(predicted, root)
    selection = select_particles(particles, criteria)
    lines = [*selection.explanation]
    lines += [f"{name}: {n['kept']} kept, {n['rejected']} rejected" for name, n in selection.counts.items()]
    quietly("writing to the job's log", job.log, "\n".join(lines))
    prediction = particles.prediction
    assert prediction is not None
    assert prediction.expected_error_deg is not None
    parts = {
        "all": np.ones(len(particles), dtype=bool),
        "selected": selection.keep,
        "rejected": ~selection.keep,
    }
    parts = {name: mask for name, mask in parts.items() if mask.any()}
    threshold = float(prediction.confidence[selection.keep].min())
    rotation = particles.require_rotation()
    _plot(job, figures.view_distributions({n: rotation[m] for n, m in parts.items()}), "Views")
    _plot(
        job,
        figures.confidence_histogram({n: prediction.confidence[m] for n, m in parts.items()}, threshold),
        "Confidence",
    )
    errors = {n: prediction.expected_error_deg[m] for n, m in parts.items()}
    _plot(job, figures.expected_error_histogram(errors), "Expected error")
    return selection.keep


def _plot(job: Any, figure: Any, name: str) -> None:
    quietly(f"showing the plot {name}", job.log_plot, figure, name, formats=["png"])


def _report_halves(job: Any, particles: ParticleSet) -> None:
    halves = [int((particles.half_set == number).sum()) for number in (1, 2)]
    quietly(
        "writing to the job's log",
        job.log,
        f"{len(particles)} particles, half sets {halves[0]} and {halves[1]}",
    )


def _queue(client: Any, project: str, job: Any, request: Request) -> None:
    """Queue a homogeneous reconstruction of the selected particles, or of all."""
    name = outputs.SELECTED if request.criteria is not None else outputs.INPUT
    symmetry = load_model(request.model_dir, choose_device("cpu")).settings.symmetry
    made = call(
        "making the reconstruction", client.create_job, project, full_uid("W", request.source.workspace), "homo_reconstruct",
        connections={"particles": (job.uid, name)}, params={"refine_symmetry": symmetry},
        title=f"Reconstruction of {job.uid} {name}",
    )  # fmt: skip
    call(f"queueing {made.uid}", made.queue, request.lane)

"""The steps of a job, in the job folder: train, predict, select, reconstruct, report.

What an earlier run of the same job has finished is kept (RELION's Continue runs the same command again): a
training goes on from its checkpoint, a prediction is not made twice, a selection is always made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cryoforum_plugin import __version__
from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.confidence.selection import Criteria, Selection, select_particles
from cryoforum_plugin.errors import CryoForumError, HostError
from cryoforum_plugin.formats import read_particles, write_particles
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.network.device import choose_device, choose_precision
from cryoforum_plugin.network.model import load_model
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.prediction.run import PredictOptions, predict_particles
from cryoforum_plugin.progress import LiveLog, progress
from cryoforum_plugin.reconstruction.reconstruct import Reconstruction, ReconstructionSettings, reconstruct
from cryoforum_plugin.reconstruction.write import write_fsc, write_map
from cryoforum_plugin.report import write_report
from cryoforum_plugin.settings import Settings, assemble, flatten, read_config
from cryoforum_plugin.simulation.volume import read_map
from cryoforum_plugin.training.loop import make_fabric
from cryoforum_plugin.training.train import train
from relion_external.job.nodes import (
    HALF_MAP,
    LOG_FILE,
    PARTICLES,
    REFERENCE,
    NodeKind,
    write_output_nodes,
)
from relion_external.job.parameters import HOST, Job, unused

LOG = logging.getLogger("cryoforum")
RECORD = "job.json"
_REPLACED = ("selected.star", "rejected.star", "half1.mrc", "half2.mrc")  # gone when not made again


@dataclass
class Workspace:
    """The job folder, the log that the GUI shows, and the record of what was done (job.json)."""

    job: Job
    log: LiveLog
    record: dict[str, Any] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        path = self.path(RECORD)
        if path.exists():
            self.record = json.loads(path.read_text())
        given = {k: str(v) for k, v in vars(self.job).items() if v not in (None, False, "")}
        self.record["parameters"] = given

    def path(self, name: str) -> Path:
        """Path of an output."""
        return self.job.o / name

    def note(self, step: str, values: dict[str, Any]) -> None:
        """Record what a step did, at once."""
        self.record[step] = values
        with atomic_file(self.path(RECORD), overwrite=True) as temporary:
            temporary.write_text(json.dumps(self.record, indent=2) + "\n")

    def finished(self, step: str, identity: dict[str, Any], output: Path) -> bool:
        """Tell whether an earlier run of this job has done this very step."""
        known = self.record.get(step, {})
        return output.exists() and known.get("finished") is True and known.get("identity") == identity


def run_job(job: Job, log: LiveLog) -> None:
    """Do everything `job` asks for and list the outputs for RELION. Raises CryoForumError."""
    work = Workspace(job, log)
    LOG.info("cryoforum %s, job %s in %s", __version__, job.job, job.o)
    for name in unused(job):
        LOG.warning("%s is not used by a %s job", HOST.get(name, f"parameter '{name}'"), job.job)
    if job.in_mask is not None and not job.in_mask.is_file():
        raise HostError(f"{HOST['in_mask']}: {job.in_mask} is not there; correct it or leave it empty")
    if job.job == "train":
        train_step(work, job.in_parts)
    else:
        predicted = job.in_parts if job.job == "select" else _predicted(work)
        work.record["tables"] = {"all": str(predicted)}
        _select_and_reconstruct(work, predicted)
    for name in _REPLACED:
        if name not in work.made and work.path(name).exists():
            work.path(name).unlink()
            LOG.warning("%s of an earlier run of this job is removed: this run does not make it", name)
    report_step(work)
    write_output_nodes(job.o, [(name, _kind(name)) for name in work.made])


def _predicted(work: Workspace) -> Path:
    job = work.job
    if job.job == "predict":
        return predict_step(work, _model_folder(job))
    assert job.train_particles is not None
    return predict_step(work, train_step(work, job.train_particles))


def _select_and_reconstruct(work: Workspace, predicted: Path) -> None:
    job = work.job
    criteria = Criteria(job.min_confidence, job.max_error, job.keep, auto=job.auto)
    if job.job == "pipeline" and not criteria.any():
        criteria = Criteria(auto=True)
    particles = _read(work, predicted) if job.job == "select" else read_particles(predicted)
    sets = {"all": particles}
    if criteria.any():
        selection = select_step(work, particles, criteria)
        sets |= {"selected": particles[selection.keep], "rejected": particles[~selection.keep]}
    if job.reconstruct or (job.reconstruct is None and job.job == "pipeline"):
        reconstruct_step(work, {name: subset for name, subset in sets.items() if len(subset)}, predicted)


def train_step(work: Workspace, path: Path) -> Path:
    """Train on the particles in `path`, or go on training; return the model directory."""
    job, directory = work.job, work.path("model")
    settings = training_settings(job)
    identity = {"particles": _checksum(path), "settings": flatten(settings), "version": __version__}
    if work.finished("train", identity, directory / "model.pt"):
        LOG.info("training: finished in an earlier run of this job, kept")
    else:
        _refuse_changes(work, identity)
        work.note("train", {"input": str(path), "identity": identity})
        device = choose_device(job.device)
        precision = choose_precision("auto", device)
        particles = _read(work, path)
        LOG.info("training: %s, %d particles, on %s", path, len(particles), device)
        fabric = make_fabric(job.device, 1, 1, precision)
        resume = (directory / "checkpoint").is_dir()
        calibration = train(particles, [path], directory, settings, fabric, precision, resume=resume)
        figures = {
            f"validation_median_deg_{views}_views": values["validation_median_deg"]
            for views, values in calibration["views"].items()
        }
        count = {"particles": len(particles)}
        work.note("train", {"input": str(path), **count, **figures, "finished": True, "identity": identity})
    write_report(directory, directory / "report.html")
    work.made.append("model/reference.mrc")
    return directory


def training_settings(job: Job) -> Settings:
    """Settings of the training: preset, config file, parameters, then the parameter 'set'."""
    config = {} if job.config is None else read_config(job.config)
    return assemble(
        job.preset,
        config={key: value for key, value in config.items() if not key.startswith("job.")},
        options={
            "symmetry": job.symmetry,
            "training.epochs": job.epochs,
            "training.seed": job.seed,
            "images.contrast": job.contrast,
        },
        assignments=job.set.split(),
    )


def _refuse_changes(work: Workspace, identity: dict[str, Any]) -> None:
    """Refuse to go on with a training that was begun otherwise."""
    before = work.record.get("train", {}).get("identity", identity)
    if before == identity or not work.path("model").exists():
        return
    old, new = before["settings"], identity["settings"]
    changed = [f"{key} {old.get(key)} -> {value}" for key, value in new.items() if old.get(key) != value]
    what = ", ".join(changed) or "other particles or another version of cryoforum"
    raise HostError(
        f"the training of this job was begun with other settings ({what}); set them back to continue it, or start a "
        "new job"
    )


def predict_step(work: Workspace, model_folder: Path) -> Path:
    """Predict the input particles; return predicted.star."""
    job, output = work.job, work.path("predicted.star")
    device = choose_device(job.device)
    model = load_model(model_folder, device)
    if job.symmetry is not None and job.symmetry.upper() != model.settings.symmetry.upper():
        raise HostError(
            f"parameter 'symmetry' is {job.symmetry}, but the model {model_folder} was trained with "
            f"{model.settings.symmetry}; remove the parameter, or train a model with {job.symmetry}"
        )
    identity = {
        "particles": _checksum(job.in_parts),
        "model": _checksum(model_folder / "model.pt"),
        "views": job.views,
        "contrast": job.contrast,
        "version": __version__,
    }
    if work.finished("predict", identity, output):
        LOG.info("predicting: finished in an earlier run of this job, kept")
    else:
        particles = _read(work, job.in_parts)
        LOG.info(
            "predicting: %s, %d particles, model %s, on %s",
            job.in_parts,
            len(particles),
            model_folder,
            device,
        )
        options = PredictOptions(job.views, contrast=job.contrast)
        prediction = predict_particles(model, particles, device, choose_precision("auto", device), options)
        write_particles(particles, output, prediction, overwrite=True)
        _warn_of_one_half(particles, output.name)
        figures = {"particles": len(particles), "symmetry": model.settings.symmetry}
        work.note("predict", {"input": str(job.in_parts), **figures, "finished": True, "identity": identity})
    work.made.append(output.name)
    return output


def _model_folder(job: Job) -> Path:
    """Folder with model.pt: what the parameter 'model' names, or where the 3D reference lies."""
    named = [path for path in (job.model, job.in_3dref) if path is not None]
    for path in (named[0], named[0] / "model", named[0].parent):
        if (path / "model.pt").is_file():
            return path
    where = "parameter 'model' on the Params tab" if job.model is not None else HOST["in_3dref"]
    raise HostError(f"{named[0]} holds no model.pt; give the folder of a finished train job as {where}")


def select_step(work: Workspace, particles: ParticleSet, criteria: Criteria) -> Selection:
    """Write selected.star and, if any are, rejected.star."""
    selection = select_particles(particles, criteria)
    for line in selection.explanation:
        LOG.info("selecting: %s", line)
    for name, mask in (("selected.star", selection.keep), ("rejected.star", ~selection.keep)):
        if not mask.any():
            LOG.info("selecting: nothing was rejected; rejected.star is not written")
            continue
        subset = particles[mask]
        write_particles(subset, work.path(name), overwrite=True)
        work.made.append(name)
        halves = set(subset.half_set.tolist())
        if len(halves) == 1 and 0 not in halves:
            LOG.warning(
                "%s holds particles of half set %d only: RELION cannot refine it by itself", name, *halves
            )
    for name, counts in selection.counts.items():
        LOG.info("selecting: %s: %d kept, %d rejected", name, counts["kept"], counts["rejected"])
    work.note("select", selection.figures())
    return selection


def _warn_of_one_half(particles: ParticleSet, name: str) -> None:
    halves = set(particles.half_set.tolist())
    if len(halves) == 1 and 0 not in halves:
        LOG.warning(
            "%s holds particles of half set %d only: RELION cannot refine it by itself", name, *halves
        )


def reconstruct_step(work: Workspace, sets: dict[str, ParticleSet], predicted: Path) -> None:
    """FSC of every set; half maps of the selected particles, or of all where none were selected."""
    job, figures = work.job, {}
    mask = None if job.in_mask is None else read_map(job.in_mask)[0]
    settings = ReconstructionSettings(symmetry=_symmetry(job, predicted))
    device = choose_device(job.device)
    kept = "selected" if "selected" in sets else "all"
    for name, particles in sets.items():
        with progress(f"reconstructing {name}", len(particles)) as advance:
            step = partial(_advance, advance)
            try:
                result = reconstruct(particles, StackReader(particles.stacks), settings, device, step, mask)
            except CryoForumError as error:
                if name == kept:
                    raise
                LOG.warning("%s particles are not reconstructed: %s", name, error)
                continue
        figures[f"resolution_0143_A_{name}"] = round(result.resolution_0143_A, 3)
        _write_maps(work, name, result, maps=name == kept)
        for note in result.notes:
            LOG.warning("%s", note)
    work.note("reconstruct", {"symmetry": settings.symmetry, **figures})
    for key, value in figures.items():
        LOG.info("reconstructing: %s %s", key, value)


def _advance(advance: Any, steps: int) -> None:
    advance(steps, "")


def _write_maps(work: Workspace, name: str, result: Reconstruction, maps: bool) -> None:
    with atomic_file(work.path("fsc") / name / "fsc.csv", overwrite=True) as temporary:
        write_fsc(temporary, result.fsc, result.pixel_size_A)
    for file, volume in (("half1.mrc", result.half1), ("half2.mrc", result.half2)) if maps else ():
        with atomic_file(work.path(file), overwrite=True) as temporary:
            write_map(temporary, volume, result.pixel_size_A)
        work.made.append(file)


def _symmetry(job: Job, predicted: Path) -> str:
    """Point group: the parameter, or that of the model that predicted, or C1."""
    if job.symmetry is not None:
        return job.symmetry
    record = predicted.parent / RECORD
    if record.exists():
        known = json.loads(record.read_text()).get("predict", {}).get("symmetry")
        if known is not None:
            return str(known)
    LOG.warning(
        "the symmetry of %s is not known: reconstructed as C1; set the parameter 'symmetry'", predicted
    )
    return "C1"


def report_step(work: Workspace) -> None:
    """Write logfile.pdf and report.html."""
    work.note("outputs", {"files": work.made})
    for name in ("logfile.pdf", "report.html"):
        write_report(work.job.o, work.path(name))
    work.made.append("logfile.pdf")


def _kind(name: str) -> NodeKind:
    """Kind of an output, by its name."""
    if name.endswith(".star"):
        return PARTICLES
    return {"logfile.pdf": LOG_FILE, "model/reference.mrc": REFERENCE}.get(name, HALF_MAP)


def _read(work: Workspace, path: Path) -> ParticleSet:
    """Read particles of this project. Raises HostError where their image stacks are not in it."""
    particles = read_particles(path)
    missing = [stack for stack in particles.stacks if not stack.is_file()]
    if missing:
        raise HostError(
            f"{path}: {len(missing)} of {len(particles.stacks)} image stacks are missing, {missing[0]} first; image "
            "names start from the project folder, so for particles of another project link its folders into this "
            "one, or Import them here"
        )
    work.note(f"data {path}", _describe(particles))
    return particles


def _describe(particles: ParticleSet) -> dict[str, Any]:
    """What a table holds, in a few figures."""
    sizes = sorted({f"{size:g}" for size in np.unique(particles.pixel_size_A)})
    halves = {half: int((particles.half_set == half).sum()) for half in (1, 2)}
    return {
        "particles": len(particles),
        "image stacks": len(particles.stacks),
        "pixel size (A)": ", ".join(sizes),
        "optics groups": len(np.unique(particles.optics_group)),
        "micrographs": int(particles.micrograph.max()) + 1,
        "half sets": f"{halves[1]} + {halves[2]}" if any(halves.values()) else "none",
        "orientations": "yes" if particles.rotation is not None else "no",
        "CTF": "yes" if particles.ctf is not None else "no",
    }


def _checksum(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HostError(
            f"cannot read {path}: {error.strerror}; check the name and the project folder"
        ) from error

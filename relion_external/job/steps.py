"""A whole job: its steps in order, the report, and the list of outputs for RELION."""

from __future__ import annotations

import logging
from pathlib import Path

from cryoforum_plugin import __version__
from cryoforum_plugin.errors import HostError
from cryoforum_plugin.formats import read_particles
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.launch.devices import check_devices
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.particles.description import describe
from cryoforum_plugin.report import write_report
from relion_external.job.choosing import (
    check_reconstruction,
    criteria_of,
    forget_choices,
    reconstruct_step,
    select_step,
    symmetry_of,
)
from relion_external.job.command_line import parameter
from relion_external.job.learning import devices_of, find_model, predict_step, train_step
from relion_external.job.nodes import HALF_MAP, LOG_FILE, PARTICLES, REFERENCE, NodeKind, write_output_nodes
from relion_external.job.parameters import HOST, Job
from relion_external.job.workspace import Workspace, naming, read_here

LOG = logging.getLogger("cryoforum")
_REPLACED = ("selected.star", "rejected.star", "half1.mrc", "half2.mrc")  # gone when not made again


def run_job(job: Job) -> None:
    """Do everything `job` asks for and list the outputs for RELION. Raises CryoForumError."""
    work = Workspace(job)
    LOG.info("cryoforum %s, job %s in %s", __version__, job.job, job.o)
    for name in job.unused():
        LOG.warning("%s is not used by a %s job", HOST.get(name, parameter(name)), job.job)
    with naming("device" if job.devices == 1 else "devices"):
        check_devices(devices_of(job))
    with naming("symmetry"):
        symmetry_group(job.symmetry or "C1")
    if job.in_mask is not None and not job.in_mask.is_file():
        raise HostError(f"{HOST['in_mask']}: {job.in_mask} is not there; correct it or leave it empty")
    forget_choices(work)
    if job.job == "train":
        train_step(work, job.in_parts)
    else:
        _after_training(work)
    for name in _REPLACED:
        if name not in work.made and work.path(name).exists():
            work.path(name).unlink()
            LOG.warning("%s of an earlier run of this job is removed: this run does not make it", name)
    work.note("outputs", {"files": work.made})
    LOG.info("writing logfile.pdf and report.html")
    write_report(job.o, work.path("logfile.pdf"), work.path("report.html"), tables=work.tables)
    work.made.append("logfile.pdf")
    write_output_nodes(job.o, [(name, _kind(name)) for name in work.made])


def _after_training(work: Workspace) -> None:
    """Everything but a train job: predict unless that was done, select, reconstruct."""
    job = work.job
    needs_images = job.job != "select" or job.reconstructs
    particles = read_here(job.in_parts) if needs_images else read_particles(job.in_parts)
    mask = check_reconstruction(work, particles)
    predicted, name = job.in_parts, "all"
    if job.job == "select":
        work.note("data", describe(str(job.in_parts), particles))
    else:
        predicted, name = _predicted(work, particles), "predicted.star"
        particles = read_particles(predicted)
    symmetry = symmetry_of(job, predicted) if job.job == "select" else str(work.values["symmetry"])
    work.values |= {"symmetry": symmetry, "tables": {"all": str(predicted)}}
    sets = {"all": particles}
    criteria = criteria_of(job)
    if criteria.any():
        sets |= select_step(work, particles, criteria, symmetry)
    work.tables = {name: particles} | {f"{part}.star": sets[part] for part in list(sets)[1:]}
    if job.reconstructs:
        reconstruct_step(work, sets, symmetry, mask)


def _predicted(work: Workspace, particles: ParticleSet) -> Path:
    job = work.job
    if job.job == "predict":
        return predict_step(work, find_model(job), particles)
    assert job.train_particles is not None
    return predict_step(work, train_step(work, job.train_particles), particles)


def _kind(name: str) -> NodeKind:
    """Kind of an output, by its name."""
    if name.endswith(".star"):
        return PARTICLES
    return {"logfile.pdf": LOG_FILE, "model/reference.mrc": REFERENCE}.get(name, HALF_MAP)

"""The steps after the prediction, always done anew: select, and reconstruct what was selected."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.confidence.selection import Criteria
from cryoforum_plugin.confidence.target import parse_target
from cryoforum_plugin.errors import HostError
from cryoforum_plugin.formats import write_particles
from cryoforum_plugin.host_job.record import read_record
from cryoforum_plugin.host_job.selecting import select
from cryoforum_plugin.host_job.steps import reconstruct_sets
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.maps.volume import read_map
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.reconstruction.half_sets import half_set_rows
from cryoforum_plugin.reconstruction.reconstruct import Reconstruction, ReconstructionSettings
from cryoforum_plugin.reconstruction.write import write_fsc, write_map
from relion_external.job.learning import check_symmetry, warn_of_one_half
from relion_external.job.parameters import HOST, Job
from relion_external.job.workspace import Workspace, naming

LOG = logging.getLogger("cryoforum")


def criteria_of(job: Job) -> Criteria:
    """Criteria of a job; in a pipeline without any, --auto."""
    criteria = Criteria(
        job.min_confidence,
        job.max_error,
        job.keep,
        max_outlier=job.max_outlier,
        target=None if job.target is None else parse_target(job.target),
        auto=job.auto,
        images=job.images,
        balance_views=job.balance_views,
    )
    return replace(criteria, auto=True) if job.job == "pipeline" and not criteria.any() else criteria


def select_step(
    work: Workspace, particles: ParticleSet, criteria: Criteria, symmetry: str
) -> dict[str, ParticleSet]:
    """Write selected.star and, if any are, rejected.star; return both sets."""
    selection = select(particles, criteria, symmetry, work.job.device)
    for line in selection.lines():
        LOG.info("selecting: %s", line)
    sets = {}
    for name, mask in (("selected", selection.keep), ("rejected", ~selection.keep)):
        if not mask.any():
            LOG.info("selecting: nothing was %s; %s.star is not written", name, name)
            continue
        sets[name] = particles[mask]
        write_particles(sets[name], work.path(f"{name}.star"), overwrite=True)
        work.made.append(f"{name}.star")
        warn_of_one_half(sets[name], f"{name}.star")
    for name, counts in selection.counts.items():
        LOG.info("selecting: %s: %d kept, %d rejected", name, counts["kept"], counts["rejected"])
    work.note_selection(selection.figures())
    return sets


def check_reconstruction(work: Workspace, particles: ParticleSet) -> Tensor | None:
    """Refuse, before anything that takes long, what could not be reconstructed; return the mask `(n, n, n)`.

    Missing half sets are refused only where half maps were asked for, not where they are the default.
    """
    job = work.job
    if not job.reconstructs:
        return None
    if job.reconstruct:
        with naming("reconstruct"):
            half_set_rows(particles)
    if job.in_mask is None:
        return None
    with naming("in_mask"):
        mask, pixel_size_A = read_map(job.in_mask)
    box_px, size_A = StackReader(particles.stacks).check(particles), float(particles.pixel_size_A[0])
    if len(mask) != box_px - box_px % 2 or abs(pixel_size_A / size_A - 1) > 0.01:
        raise HostError(
            f"{HOST['in_mask']}: {job.in_mask} has {len(mask)} voxels of {pixel_size_A:g} A a side, the particles "
            f"{box_px} px of {size_A:g} A; make the mask from a map of these particles"
        )
    return mask


def reconstruct_step(
    work: Workspace, sets: dict[str, ParticleSet], symmetry: str, mask: Tensor | None
) -> None:
    """FSC of every set; half maps of the selected particles, or of all where none were selected."""
    job, kept = work.job, "selected" if "selected" in sets else "all"
    settings = ReconstructionSettings(symmetry=symmetry)
    results = reconstruct_sets(sets, settings, job.device, kept if job.reconstruct else "", mask)
    for name, result in results.items():
        _write(work, name, result, maps=name == kept)
    resolutions = {
        f"resolution at FSC 0.143, {name} (A)": round(result.resolution_0143_A, 3)
        for name, result in results.items()
    }
    resolutions |= {
        f"in the worst direction, {name} (A)": round(result.cones.worst_A, 3)
        for name, result in results.items()
    }
    work.note("reconstruct", {"symmetry": symmetry, **resolutions})


def _write(work: Workspace, name: str, result: Reconstruction, maps: bool) -> None:
    with atomic_file(work.path("fsc") / name / "fsc.csv", overwrite=True) as temporary:
        write_fsc(temporary, result.fsc, result.pixel_size_A)
    for file, volume in (("half1.mrc", result.half1), ("half2.mrc", result.half2)) if maps else ():
        with atomic_file(work.path(file), overwrite=True) as temporary:
            write_map(temporary, volume, result.pixel_size_A)
        work.made.append(file)


def forget_choices(work: Workspace) -> None:
    """Remove the FSC curves of an earlier run of this job, and what its selection weighed."""
    shutil.rmtree(work.path("fsc"), ignore_errors=True)
    work.forget_selection()


def symmetry_of(job: Job, predicted: Path) -> str:
    """Point group of predicted particles: that of the model, from the record beside them, or the parameter.

    Raises HostError when the two differ.
    """
    known = read_record(predicted.parent).get("symmetry")
    if isinstance(known, str):
        check_symmetry(job, known, str(predicted))
        return known
    if job.symmetry is None and (job.reconstructs or job.auto or job.balance_views):
        LOG.warning("the symmetry of %s is not known: taken as C1; set the parameter 'symmetry'", predicted)
    return job.symmetry or "C1"

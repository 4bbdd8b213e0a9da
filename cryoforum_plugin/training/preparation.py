"""Everything before the first training step: checks, the working box, cached images, the reference."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.contrast import SAMPLE, ContrastCheck, sample_rows
from cryoforum_plugin.images.pipeline import CtfMode, ImagePipeline, unusable
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet
from cryoforum_plugin.particles.splitting import split_rows
from cryoforum_plugin.progress import Advance, progress
from cryoforum_plugin.settings import Settings
from cryoforum_plugin.simulation.project import Projector
from cryoforum_plugin.training.batches import TrainingData
from cryoforum_plugin.training.reference import BATCH, Reference, build_reference, estimate_diameter_A

LOG = logging.getLogger("cryoforum")
CACHE_IN_MEMORY_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Prepared:
    """What the loop and the calibration need.

    training : augmentable data. validation_images : `(m, n, n)` float16, as a prediction sees them (not
    recentred). validation_rows, training_rows : rows of `particles`.
    """

    particles: ParticleSet
    pipeline: ImagePipeline
    training_rows: IntArray
    validation_rows: IntArray
    training: TrainingData
    validation_images: Tensor
    reference: Reference


def prepare(
    particles: ParticleSet, settings: Settings, cache_dir: Path, device: torch.device, quiet: bool = False
) -> Prepared:
    """Check the particles, choose the working box, cache the images and rebuild the reference.

    Raises ParticleFileError or ImageStackError, naming the file and what to do, before any training.
    """
    particles.require_rotation()
    symmetry_group(settings.symmetry)  # refuses an unknown name
    if settings.images.ctf == "none":
        particles = replace(particles, ctf=None)
    else:
        particles.require_ctf()
    reader = StackReader(particles.stacks)
    box_px = reader.check(particles)
    training_rows, validation_rows = split_rows(
        particles, settings.training.validation_fraction, settings.training.seed
    )
    chosen = _reference_rows(training_rows, settings)
    with progress("reading", len(particles) + len(chosen), quiet) as advance:
        pipeline = _choose_box(particles, reader, box_px, chosen, settings, device, advance)
        if settings.images.contrast != "ignore":
            _check_contrast(pipeline, chosen)
        images = _cache(pipeline, training_rows, particles.shift_A, cache_dir / "training.f16", advance)
        validation = _cache(pipeline, validation_rows, None, cache_dir / "validation.f16", advance)
    position = np.searchsorted(training_rows, chosen)
    with progress("reference", len(chosen), quiet) as advance:
        reference = build_reference(pipeline, chosen, settings.symmetry, images[position], advance)
    LOG.info("reference: %d particles, %.1f A", len(chosen), reference.resolution_A)
    projector = None
    if settings.training.simulated > 0:
        projector = Projector(reference.volume, pipeline.box.pixel_size_A).to(device)
    rotation = torch.from_numpy(particles.require_rotation()[training_rows]).float().to(device)
    training = TrainingData(
        images=images,
        rotation=rotation,
        ctf=None if particles.ctf is None else particles.ctf[training_rows],
        sampling_A=pipeline.sampling_A(training_rows),
        ctf_mode=pipeline.ctf_mode,
        projector=projector,
    )
    return Prepared(particles, pipeline, training_rows, validation_rows, training, validation, reference)


def _reference_rows(training_rows: IntArray, settings: Settings) -> IntArray:
    count = settings.training.reference_particles
    if len(training_rows) <= count:
        return training_rows
    generator = np.random.default_rng(settings.training.seed)
    return np.sort(generator.choice(training_rows, count, replace=False))


def _choose_box(
    particles: ParticleSet,
    reader: StackReader,
    box_px: int,
    rows: IntArray,
    settings: Settings,
    device: torch.device,
    advance: Advance,
) -> ImagePipeline:
    """Pipeline whose window holds the particle: from the given diameter, or from a quick reconstruction."""
    full_A = float(box_px * np.median(particles.pixel_size_A))
    size = min(settings.images.size_px, box_px - box_px % 2)
    mode: CtfMode = settings.images.ctf  # type: ignore[assignment]
    contrast = -1.0 if settings.images.contrast == "invert" else 1.0
    pipeline = ImagePipeline(particles, reader, WorkingBox(full_A, size), mode, contrast, device)
    diameter_A = settings.images.diameter_A
    if diameter_A is None:
        whole = build_reference(pipeline, rows, settings.symmetry, None, advance)
        diameter_A = estimate_diameter_A(whole)
        if diameter_A is None:
            LOG.warning("the particle diameter could not be measured; the whole box is used")
            return pipeline
        LOG.info("measured particle diameter: %.0f A", diameter_A)
    side_A = min(diameter_A * settings.images.margin, full_A)
    return replace(
        pipeline, box=WorkingBox(side_A, min(size, WorkingBox(side_A, size).crop_px(full_A / box_px)))
    )


def _cache(
    pipeline: ImagePipeline, rows: IntArray, shift_A: FloatArray | None, file: Path, advance: Advance
) -> Tensor:
    """Working images of `rows` as float16: in memory (on the device) if they fit, else a memory map."""
    n = pipeline.box.size_px
    shape = (len(rows), n, n)
    if len(rows) * n * n * 2 <= CACHE_IN_MEMORY_BYTES:
        cache = torch.empty(shape, dtype=torch.float16, device=pipeline.device)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        cache = torch.from_numpy(np.memmap(file, np.float16, "w+", shape=shape))
    for start in range(0, len(rows), BATCH):
        of_batch = rows[start : start + BATCH]
        originals = pipeline.read(of_batch)
        _refuse_unusable(pipeline.particles, of_batch, originals)
        shift = None if shift_A is None else shift_A[of_batch]
        images = pipeline.working(of_batch, shift, originals)
        cache[start : start + BATCH] = images.to(cache.device, torch.float16)
        advance(len(of_batch), "")
    return cache


def _refuse_unusable(particles: ParticleSet, rows: IntArray, images: Tensor) -> None:
    """Raise ImageStackError naming the first training image that is constant, NaN or infinite."""
    bad = unusable(images).cpu().numpy()
    if bad.any():
        row = rows[np.flatnonzero(bad)[0]]
        stack = particles.stacks[particles.stack_index[row]]
        raise ImageStackError(
            f"{stack}: image {particles.slice_index[row] + 1} (row {row + 1} of {particles.source}) is constant or "
            f"holds NaN or infinite pixels ({bad.sum()} such in this batch); remove such particles and train again"
        )


def _check_contrast(pipeline: ImagePipeline, rows: IntArray) -> None:
    """Refuse dark protein, warn where a sample of the images cannot tell."""
    check = ContrastCheck()
    shift_A = pipeline.particles.shift_A
    for of_batch in np.array_split(sample_rows(rows), max(1, SAMPLE // BATCH)):
        check.add(pipeline.working(of_batch, None if shift_A is None else shift_A[of_batch]))
    warning = check.verdict(pipeline.particles.source)
    if warning:
        LOG.warning(warning)

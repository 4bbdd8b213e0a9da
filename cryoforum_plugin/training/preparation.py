"""Everything before the first training step: checks, the working box, cached images, the reference."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.fft import next_fast_len
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.cache import cached_images, content_key, remembered_diameter_A
from cryoforum_plugin.images.contrast import check_contrast
from cryoforum_plugin.images.fourier import shift_images
from cryoforum_plugin.images.pipeline import CtfMode, ImagePipeline
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.learning.batches import TrainingData
from cryoforum_plugin.maps.fitting import match_map
from cryoforum_plugin.maps.given import ShownMap
from cryoforum_plugin.maps.rebuilt import Reference, build_reference, estimate_diameter_A
from cryoforum_plugin.maps.symmetry_check import check_symmetry
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet
from cryoforum_plugin.particles.splitting import split_rows
from cryoforum_plugin.progress import Advance, progress
from cryoforum_plugin.settings import Settings

LOG = logging.getLogger("cryoforum")
SMALLEST_BOX_PX = 16
LARGEST_CHECKED_PX = 192  # above, turning maps to check the symmetry takes too much memory
LARGEST_SHIFT = 0.12  # fraction of the window: beyond, particles are cut off


@dataclass(frozen=True)
class Prepared:
    """What the loop and the calibration need.

    settings : with what was measured filled in (diameter, shift range). training : augmentable data.
    validation_images : `(m, n, n)` float16, as a prediction sees them (not recentred). validation_rows,
    training_rows : rows of `particles`.
    """

    settings: Settings
    particles: ParticleSet
    pipeline: ImagePipeline
    training_rows: IntArray
    validation_rows: IntArray
    training: TrainingData
    validation_images: Tensor
    reference: Reference


def prepare(
    particles: ParticleSet,
    settings: Settings,
    cache_dir: Path,
    device: torch.device,
    quiet: bool = False,
    shown: ShownMap | None = None,
) -> Prepared:
    """Check the particles, choose the working box, cache the images and rebuild the reference.

    cache_dir : where preprocessed images are kept, and taken from if they are there already.
    shown : what simulated images show; None = the reference.
    Raises ParticleFileError, ImageStackError or OutputError, naming the file and what to do, before any training;
    SettingsError for a symmetry that the particles contradict.
    """
    particles = _checked(particles, settings)
    reader = StackReader(particles.stacks)
    box_px = reader.check(particles)
    training_rows, validation_rows = split_rows(
        particles, settings.training.validation_fraction, settings.training.seed, settings.symmetry
    )
    chosen = reference_rows(training_rows, settings)
    measuring = len(chosen) if settings.images.diameter_A is None and settings.images.margin else 0
    with progress("reading", len(particles) + measuring, quiet) as advance:
        pipeline, settings = _choose_box(
            particles, reader, box_px, chosen, settings, device, cache_dir, advance
        )
        shift_A = particles.shift_A if settings.training.augmentation == "full" else None
        images = cached_images(pipeline, training_rows, shift_A, cache_dir, advance)
        validation = cached_images(pipeline, validation_rows, None, cache_dir, advance)
    settings = _with_shift_range(settings, particles, pipeline)
    shift = None if settings.training.augmentation == "full" else _shift_in_boxes(pipeline, training_rows)
    position = np.full(len(particles), -1)
    position[training_rows] = np.arange(len(training_rows))

    def centred(rows: IntArray) -> Tensor:
        found = images[position[rows]]
        if shift is None:
            return found
        return shift_images(found.to(device).float(), shift[position[rows]] * found.shape[-1])

    with progress("reference", len(chosen), quiet) as advance:
        checked = pipeline.box.size_px <= LARGEST_CHECKED_PX
        reference = build_reference(pipeline, chosen, settings.symmetry, centred, advance, checked)
    check_symmetry(
        reference.unsymmetrised, settings.symmetry, str(particles.source), settings.training.check_symmetry
    )
    reference = replace(reference, unsymmetrised=None)  # frees its memory
    LOG.info("reference: %d particles, %.1f A", len(chosen), reference.resolution_A)
    projector, reference = _projector(reference, shown, settings)
    training = TrainingData(
        images=images,
        rotation=torch.from_numpy(particles.require_rotation()[training_rows]).float().to(device),
        ctf=None if particles.ctf is None else particles.ctf[training_rows],
        sampling_A=pipeline.sampling_A(training_rows),
        ctf_mode=pipeline.ctf_mode,
        projector=projector,
        shift=shift,
        preprocessing=settings.images.preprocessing,
    )
    return Prepared(
        settings, particles, pipeline, training_rows, validation_rows, training, validation, reference
    )


def _projector(
    reference: Reference, shown: ShownMap | None, settings: Settings
) -> tuple[Projector | None, Reference]:
    """Projector of what simulated images show (None: there are none), and the reference to be kept."""
    if settings.training.simulated == 0:
        return None, reference
    volume = reference.volume
    if shown is not None:
        volume = match_map(shown, reference, settings.images.diameter_A)
        if shown.alone:  # better than what its own noisy images give back
            reference = replace(reference, volume=volume)
    return Projector(volume, reference.pixel_size_A).to(volume.device), reference


def _checked(particles: ParticleSet, settings: Settings) -> ParticleSet:
    """Refuse particles without usable orientations or CTF; drop the CTF where it is not wanted."""
    views = Rotation.from_quat(particles.require_rotation()).apply([0.0, 0.0, 1.0])
    if len(views) > 1 and np.ptp(views, axis=0).max() < 1e-6:
        raise ParticleFileError(
            f"{particles.source}: every particle has the same viewing direction, as after a 2D classification; "
            "training needs the particles of a finished 3D refinement"
        )
    symmetry_group(settings.symmetry)  # refuses an unknown name
    if settings.images.ctf == "none":
        return replace(particles, ctf=None)
    particles.require_ctf()
    return particles


def reference_rows(training_rows: IntArray, settings: Settings) -> IntArray:
    """Rows that build references: all, or a random part of many."""
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
    cache_dir: Path,
    advance: Advance,
) -> tuple[ImagePipeline, Settings]:
    """Pipeline whose window holds the particle: from the given diameter, or from a quick reconstruction."""
    pixel_A = float(np.median(particles.pixel_size_A))
    full_A = box_px * pixel_A
    size = min(settings.images.size_px, box_px - box_px % 2)
    mode: CtfMode = settings.images.ctf  # type: ignore[assignment]
    contrast = -1.0 if settings.images.contrast == "invert" else 1.0
    pipeline = ImagePipeline(particles, reader, box_px, WorkingBox(full_A, size), mode, contrast, device)
    if settings.images.contrast != "ignore":
        check_contrast(pipeline, rows, training=True)
    diameter_A, margin = settings.images.diameter_A, settings.images.margin
    if margin is None:
        return pipeline, settings
    if diameter_A is None:
        diameter_A = _measured_diameter_A(pipeline, rows, settings.symmetry, cache_dir, advance)
        if diameter_A is None:
            LOG.warning("the particle diameter could not be measured; the whole box is used")
            return pipeline, settings
        LOG.info("measured particle diameter: %.0f A", diameter_A)
        settings = replace(settings, images=replace(settings.images, diameter_A=diameter_A))
    side_A = min(diameter_A * margin, full_A)
    size = min(size, 2 * int(side_A / pixel_A / 2))  # never finer than the images
    if size < SMALLEST_BOX_PX:
        raise ParticleFileError(
            f"{particles.source}: a particle of {diameter_A:.0f} A is {size} px wide at {pixel_A:g} A/px; at least "
            f"{SMALLEST_BOX_PX} px are needed (check --diameter and the pixel size)"
        )
    # whole images are resampled to an even size with a fast Fourier transform, the window follows
    wanted = max(size, int(full_A * size / side_A))
    resampled = next((m for m in range(wanted, size, -1) if m % 2 == 0 and next_fast_len(m) == m), size)
    return replace(pipeline, box=WorkingBox(full_A * size / resampled, size)), settings


def _measured_diameter_A(
    pipeline: ImagePipeline, rows: IntArray, symmetry: str, cache_dir: Path, advance: Advance
) -> float | None:
    """Diameter from a quick reconstruction of `rows`, or as one found it before; None if it cannot be told."""
    particles, done = pipeline.particles, 0

    def working(of_batch: IntArray) -> Tensor:
        return pipeline.working(
            of_batch, _rows_of(particles.shift_A, of_batch), pipeline.read_usable(of_batch)
        )

    def count(images: int, note: str) -> None:
        nonlocal done
        done += images
        advance(images, note)

    def measure() -> float | None:
        return estimate_diameter_A(build_reference(pipeline, rows, symmetry, working, count))

    depends = (particles.require_rotation()[rows], particles.half_set[rows], symmetry)
    key = content_key(pipeline, rows, particles.shift_A, *depends)
    diameter_A = remembered_diameter_A(cache_dir, key, measure)
    advance(len(rows) - done, "")
    return diameter_A


def _with_shift_range(settings: Settings, particles: ParticleSet, pipeline: ImagePipeline) -> Settings:
    """Train for the shifts that the data have: 99 % of them, at least `max_shift` of the window."""
    if particles.shift_A is None:
        return settings
    reach = float(np.quantile(np.abs(particles.shift_A), 0.99)) / pipeline.box.side_A
    reach = min(max(settings.training.max_shift, reach), max(settings.training.max_shift, LARGEST_SHIFT))
    return replace(settings, training=replace(settings.training, max_shift=reach))


def _shift_in_boxes(pipeline: ImagePipeline, rows: IntArray) -> Tensor:
    """Known shifts `(n, 2)` of `rows`, as fractions of the working box; translating by them centres."""
    shift_A = pipeline.particles.shift_A
    if shift_A is None:
        return torch.zeros(len(rows), 2, device=pipeline.device)
    side_A = pipeline.sampling_A(rows) * pipeline.box.size_px
    return torch.from_numpy(shift_A[rows] / side_A[:, None]).float().to(pipeline.device)


def _rows_of(values: FloatArray | None, rows: IntArray) -> FloatArray | None:
    return None if values is None else values[rows]

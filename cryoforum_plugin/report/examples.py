"""Images of the surest and the least sure particles, beside the reference as their predicted poses show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import roma
import torch
from torch import Tensor

from cryoforum_plugin.charts.charts import ImagePairs
from cryoforum_plugin.errors import CryoForumError, ModelError
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.pipeline import ImagePipeline, unusable
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.images.working import cut_window
from cryoforum_plugin.network.model import Model, load_model
from cryoforum_plugin.particles import IntArray, ParticleSet
from cryoforum_plugin.refinement.observing import LARGEST_BOX_PX, whole_images
from cryoforum_plugin.refinement.reference import ReferenceMap
from cryoforum_plugin.refinement.reference_file import NAME, read_references
from cryoforum_plugin.refinement.slices import FourierPoints, GradientSlicer

SHOWN = 6  # of the surest, and of the least sure
_CANDIDATES = 30
_DETAILS = 10  # across the particle, below which images are low-passed: an eye sees no more in the noise
_REACH = 2.5  # of the low-pass's frequency, where nothing is left


def find_examples(tables: Mapping[str, ParticleSet], model_folder: Path | None) -> ImagePairs | str:
    """Examples from the largest table whose images can be read, or a sentence that says why there are none."""
    if model_folder is None:
        return "the model that predicted them is not known here"
    reasons: list[str] = []
    try:
        model = load_model(model_folder, torch.device("cpu"))
        for particles in sorted(tables.values(), key=len, reverse=True):
            try:
                return _examples(model, replace(particles, host=None))
            except CryoForumError as error:
                reasons.append(str(error))
    except CryoForumError as error:
        reasons.append(str(error))
    return reasons[0] if reasons else "nothing was predicted"


def _examples(model: Model, particles: ParticleSet) -> ImagePairs:
    prediction = particles.prediction
    assert prediction is not None
    expected_deg = prediction.expected_error_deg
    error = np.zeros(len(particles)) if expected_deg is None else expected_deg
    order = np.lexsort((error, -prediction.confidence))
    order = order[(prediction.confidence[order] > 0) | (error[order] != 180)]
    half = len(order) // 2
    parts = (order[:half], order[half:][::-1])
    reader = StackReader(particles.stacks)
    chosen = [_readable(particles, reader, part[:_CANDIDATES])[:SHOWN] for part in parts]
    count = min(map(len, chosen))
    if count == 0:
        raise ModelError(f"{particles.source}: fewer than two of the particles to show can be read")
    rows = np.concatenate([part[:count] for part in chosen])
    images, projections = images_and_projections(model, particles[rows])
    captions = [
        f"{confidence:.3f}" + ("" if expected_deg is None else f", {value:.3g}°")
        for confidence, value in zip(prediction.confidence[rows], error[rows], strict=True)
    ]
    title = "Confidence and expected error of each image, and below it the reference in the predicted pose"
    names = ("most certain", "least certain")
    return ImagePairs(title, names, images.double().numpy(), projections.double().numpy(), tuple(captions))


def _readable(particles: ParticleSet, reader: StackReader, rows: IntArray) -> IntArray:
    """Those of `rows` whose images hold something. Raises ImageStackError where stacks are missing."""
    if len(rows) == 0:
        return rows
    reader.check(particles[rows])
    images = reader.read(particles.stack_index[rows], particles.slice_index[rows])
    readable: IntArray = rows[~unusable(torch.from_numpy(images)).numpy()]
    return readable


def images_and_projections(model: Model, particles: ParticleSet) -> tuple[Tensor, Tensor]:
    """Images of predicted particles, centred and low-passed, and the references in their poses: `(n, size, size)` each.

    Both show the CTF, as wide as the model looks. The reference is the one of the particle's half set.
    Raises ImageStackError for stacks that cannot be read, ModelError for a model without references.
    """
    settings = model.settings.images
    if settings.ctf == "none":
        particles = replace(particles, ctf=None)
    reader = StackReader(particles.stacks)
    contrast = -1.0 if settings.contrast == "invert" else 1.0
    box_px = reader.check(particles)
    pipeline = ImagePipeline(particles, reader, box_px, model.box, "keep", contrast, torch.device("cpu"))
    images, projections = (torch.empty(0) for _ in range(2))
    size_px = 0
    for half, size_A in sorted(
        set(zip(particles.half_set.tolist(), particles.pixel_size_A.tolist(), strict=True))
    ):
        rows = np.flatnonzero((particles.half_set == half) & (particles.pixel_size_A == size_A))
        member = next((one for one in model.alone if one.half_set in (0, half)), model.alone[0])
        found = _of_one_kind(pipeline, rows, size_A, _reference(member, half), settings.diameter_A)
        if size_px == 0:
            whole_A = box_px * size_A
            size_px = min(found.shape[-1], 2 * round(found.shape[-1] * model.box.side_A / whole_A / 2))
            images, projections = torch.empty(2, len(particles), size_px, size_px).unbind()
        images[rows], projections[rows] = (cut_window(part, size_px) for part in found.unbind())
    return images, projections


def _reference(member: Model, half: int) -> ReferenceMap:
    references = read_references(member.directory)
    if not references:
        raise ModelError(f"{member.directory} holds no reference to compare with ({NAME})")
    return references.get(half, references.get(0, next(iter(references.values()))))


def _of_one_kind(
    pipeline: ImagePipeline, rows: IntArray, size_A: float, reference: ReferenceMap, diameter_A: float | None
) -> Tensor:
    """Images and projections `(2, n, size, size)` of rows of one pixel size, whole."""
    particles = pipeline.particles
    whole = whole_images(pipeline, LARGEST_BOX_PX, size_A)
    side_A, size_px = whole.box.side_A, whole.box.size_px
    detail_A = max(reference.finest_A, (diameter_A or side_A) / _DETAILS)
    points = FourierPoints(size_px, _REACH * side_A / detail_A)
    images = whole.working(
        rows, particles.shift_A[rows] if particles.shift_A is not None else None, whole.read(rows)
    )
    seen = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1))).flatten(1)[:, points.index]
    R = roma.unitquat_to_rotmat(torch.from_numpy(particles.require_rotation()[rows]).float())
    slicer = GradientSlicer(reference.volume, points, scale=reference.side_A / side_A)
    shown = slicer.values(R, len(points.index))
    if particles.ctf is not None:
        ctf = ctf_2d(particles.ctf[rows], size_px, whole.sampling_A(rows))
        shown = shown * ctf.flatten(1)[:, points.index]
    low_pass = torch.exp(-(points.radius * detail_A / side_A).square())
    plane = torch.zeros(2, len(rows), size_px * (size_px // 2 + 1), dtype=torch.complex64)
    plane[:, :, points.index] = torch.stack([seen, shown]) * low_pass
    back = torch.fft.irfft2(plane.view(2, len(rows), size_px, -1), s=(size_px, size_px))
    centred: Tensor = torch.fft.fftshift(back, dim=(-2, -1))
    return centred

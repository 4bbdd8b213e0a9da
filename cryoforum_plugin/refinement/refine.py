"""Particles refined against references: batches read, whitened, started from the posterior, solved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import roma
import torch
from torch import Tensor

from cryoforum_plugin.confidence.calibration import RawPrediction
from cryoforum_plugin.geometry import super_fibonacci_quaternions
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.particles import IntArray
from cryoforum_plugin.posterior import matrix_about, matrix_from_upper, mode, upper_from_matrix
from cryoforum_plugin.progress import Advance
from cryoforum_plugin.refinement.reference import ReferenceMap, mean_noise_power, whole_images
from cryoforum_plugin.refinement.slices import FourierPoints, GradientSlicer
from cryoforum_plugin.refinement.solver import Observed, Refined, Solver, whiten

BATCH = 128
NOISE_IMAGES = 500
GRID = 9216  # rotations to draw further starts from, about 9 degrees apart
SURE_DEG = 6.0  # posteriors narrower than this get one start
STARTS = 8
COARSE = ((0.35, 3), (0.55, 1))


class Refiner:
    """Refines the particles of a pipeline against references by half set; 0 is for those without one."""

    def __init__(
        self, pipeline: ImagePipeline, references: Mapping[int, ReferenceMap], diameter_A: float | None
    ) -> None:
        finest_A = min(reference.finest_A for reference in references.values())
        even_px = pipeline.box_px - pipeline.box_px % 2
        widest_A = even_px * float(pipeline.particles.pixel_size_A.max())
        size_px = min(even_px, 2 * math.ceil(widest_A / finest_A) + 4)
        self.pipeline, self.device = whole_images(pipeline, size_px), pipeline.device
        self.references = {half: reference.to(self.device) for half, reference in references.items()}
        self.finest_A, self.diameter_A = finest_A, diameter_A
        self.grid = super_fibonacci_quaternions(GRID).float().to(self.device)
        self._solvers: dict[tuple[int, float], tuple[Solver, Tensor]] = {}
        self._noise: dict[tuple[int, float], Tensor] = {}

    def refine(self, rows: IntArray, raw: RawPrediction, advance: Advance) -> RawPrediction:
        """Refine `rows` from the network's answers, one for each; unusable ones stay as they are."""
        bingham, shift_A, sd_A = raw.bingham.double().clone(), raw.shift_A.clone(), raw.shift_sd_A.clone()
        usable = ~raw.unusable.numpy()
        for key, chosen in self._groups(rows):
            places = np.flatnonzero(chosen & usable)
            for part in np.array_split(places, max(1, math.ceil(len(places) / BATCH))):
                if len(part):
                    found = self._batch(key, rows[part], raw.bingham[part], raw.shift_A[part])
                    bingham[part], shift_A[part], sd_A[part] = (values.to(shift_A) for values in found)
                advance(len(part), "")
        return replace(raw, bingham=bingham, shift_A=shift_A, shift_sd_A=sd_A)

    def _groups(self, rows: IntArray) -> list[tuple[tuple[int, float], np.ndarray]]:
        """(half set of the reference, pixel size of the originals) and which of the rows they are for."""
        particles = self.pipeline.particles
        half = np.where(np.isin(particles.half_set[rows], list(self.references)), particles.half_set[rows], 0)
        size_A = particles.pixel_size_A[rows]
        return [
            ((int(h), float(s)), (half == h) & (size_A == s))
            for h in np.unique(half)
            for s in np.unique(size_A[half == h])
        ]

    def _batch(
        self, key: tuple[int, float], rows: IntArray, bingham: Tensor, shift_A: Tensor
    ) -> tuple[Tensor, ...]:
        pixel_A = float(self.pipeline.sampling_A(rows[:1])[0])
        solver, error_power = self._solver(key, pixel_A)
        observed = self._observe(key, rows, solver.points, error_power)
        start_px = (shift_A / pixel_A).float().to(self.device)
        matrix = matrix_from_upper(bingham.double()).to(self.device)
        if solver.amplitude is None:
            R = roma.unitquat_to_rotmat(mode(matrix).float())
            solver.amplitude = float(solver.refine(observed, R, start_px, COARSE).scale.median())
        best = self._start(solver, observed, matrix, start_px)
        result = solver.refine(observed, best.R, best.shift_px)
        covariance = torch.linalg.inv(result.information.double() + 1e-9 * torch.eye(5, device=self.device))
        precision = torch.linalg.inv(covariance[:, :3, :3])
        q = roma.rotmat_to_unitquat(result.R).double()
        sd_A = covariance[:, 3:, 3:].diagonal(dim1=1, dim2=2).mean(1).sqrt() * pixel_A
        found = upper_from_matrix(matrix_about(q, precision))
        return found.cpu(), (result.shift_px.double() * pixel_A).cpu(), sd_A.cpu()

    def _start(self, solver: Solver, observed: Observed, matrix: Tensor, shift_px: Tensor) -> Refined:
        """Refine the low frequencies from the mode, and for unsure particles from more of the posterior."""
        rotation = mode(matrix).float()
        best = solver.refine(observed, roma.unitquat_to_rotmat(rotation), shift_px, COARSE)
        gap = torch.linalg.eigvalsh(matrix)
        unsure = torch.nonzero(gap[:, 1] - gap[:, 0] < 2 / math.radians(SURE_DEG) ** 2)[:, 0]
        if not len(unsure):
            return best
        energy = torch.einsum("gi,bij,gj->bg", self.grid.double(), matrix[unsure], self.grid.double())
        noise = torch.empty_like(energy).exponential_(generator=_generator(self.device)).log()
        starts = (-energy - noise).topk(STARTS, dim=1).indices  # draws without repetition (Gumbel)
        part = Observed(observed.data[unsure], observed.transfer[unsure])
        chosen = Refined(*(values[unsure] for values in vars(best).values()))
        for number in range(STARTS):
            R = roma.unitquat_to_rotmat(self.grid[starts[:, number]])
            other = solver.refine(part, R, shift_px[unsure], COARSE)
            chosen = other.where(other.cost < chosen.cost, chosen)
        for values, better in zip(vars(best).values(), vars(chosen).values(), strict=True):
            values[unsure] = better
        return best

    def _observe(
        self, key: tuple[int, float], rows: IntArray, points: FourierPoints, error: Tensor
    ) -> Observed:
        """Whitened transforms of `rows` at the points."""
        particles, n = self.pipeline.particles, points.box_px
        images = self.pipeline.working(rows, None, self.pipeline.read(rows))
        transforms = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
        ctf = None
        if particles.ctf is not None:
            ctf = ctf_2d(particles.ctf[rows], n, self.pipeline.sampling_A(rows), device=self.device)
        noise = torch.stack([self._noise_of(int(group), key[1]) for group in particles.optics_group[rows]])
        return whiten(transforms, ctf, noise, points, error)

    def _noise_of(self, group: int, size_A: float) -> Tensor:
        """Noise power by shell of the images of an optics group and pixel size, measured once on some of them."""
        key = (group, size_A)
        if key not in self._noise:
            particles = self.pipeline.particles
            rows = np.flatnonzero((particles.optics_group == group) & (particles.pixel_size_A == size_A))
            pixel_A = float(self.pipeline.sampling_A(rows[:1])[0])
            rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), NOISE_IMAGES)).astype(int)]
            total, count = torch.zeros(0), 0
            for of_batch in self.pipeline.batches(rows):
                images = self.pipeline.working(of_batch, None, self.pipeline.read(of_batch))
                images = images[torch.isfinite(images.sum((1, 2)))]
                radius_px = (
                    images.shape[-1] * 0.45 if self.diameter_A is None else self.diameter_A / 2 / pixel_A
                )
                power = mean_noise_power(images, radius_px) * len(images)
                total, count = power if not count else total + power, count + len(images)
            self._noise[key] = (total / max(count, 1)).clamp(min=1e-12)
        return self._noise[key]

    def _solver(self, key: tuple[int, float], pixel_A: float) -> tuple[Solver, Tensor]:
        """Solver against the reference of a half set for working images of `pixel_A`, and its error by shell."""
        if key not in self._solvers:
            half, size_A = key
            reference = self.references[half]
            n = self.pipeline.box.resampled_px(self.pipeline.box_px, size_A)
            side_A = n * pixel_A
            points = FourierPoints(n, side_A / self.finest_A, self.device)
            amplitude = (reference.pixel_size_A / pixel_A) ** 2  # sums over pixels, that is
            slicer = GradientSlicer(reference.volume * amplitude, points, scale=reference.side_A / side_A)
            shells = torch.arange(n, device=self.device) * reference.side_A / side_A
            power = reference.error_power() * amplitude**2
            error = power[shells.round().long().clamp(max=len(power) - 1)]
            self._solvers[key] = (Solver(slicer, 1.0 if reference.absolute else None), error)
        return self._solvers[key]


def _generator(device: torch.device) -> torch.Generator:
    """The same draws for every batch, so that a particle's answer does not depend on its neighbours."""
    return torch.Generator(device).manual_seed(1)

"""Particles refined against references: batches read, whitened, started from the posterior, solved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import roma
import torch
from torch import Tensor

from cryoforum_plugin.confidence.calibration import RawPrediction
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.noise import mean_noise_power
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.particles import IntArray
from cryoforum_plugin.posterior import matrix_about, matrix_from_upper, mode, upper_from_matrix
from cryoforum_plugin.progress import Advance
from cryoforum_plugin.refinement.reference import LARGEST_BOX_PX, ReferenceMap, whole_images
from cryoforum_plugin.refinement.search import WAVELENGTH, GridSearch
from cryoforum_plugin.refinement.slices import FourierPoints, GradientSlicer
from cryoforum_plugin.refinement.solver import Observed, Refined, Solver, whiten

POINTS_AT_ONCE = {"cpu": 2**18, "cuda": 2**23}  # Fourier points of a batch; each needs about 300 bytes
LARGEST_BATCH = 1024
NOISE_IMAGES = 500
SURE_DEG = 6.0  # posteriors narrower than this get one start
STARTS, RESCUES = 6, 16  # starts of unsure particles, and of doubtful ones
DOUBTFUL = 0.8  # of the usual contrast: below, the pose that was found is searched for everywhere
MARCH = 1.6  # from one stage to the next, in frequency
COARSE_STEPS, LAST_STEPS = (3, 1), 3
Stages = tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class _Against:
    """A reference as images of one pixel size meet it.

    error : `(shells,)` mean |error|^2 of its slices. coarse, fine : stages of a first and of a full refinement.
    """

    solver: Solver
    error: Tensor
    grid: GridSearch
    coarse: Stages
    fine: Stages


def march(first: float, highest: float) -> tuple[Stages, Stages]:
    """Stages (part of the highest frequency, steps) from frequency `first` on: the coarse ones, then the rest."""
    reached = [min(first, highest)]
    while reached[-1] < highest:
        reached.append(min(reached[-1] * MARCH, highest))
    parts = [frequency / highest for frequency in reached]
    coarse = tuple(zip(parts, COARSE_STEPS, strict=False))
    return coarse, (*((part, 1) for part in parts[1:-1]), (1.0, LAST_STEPS))


class Refiner:
    """Refines the particles of a pipeline against references by half set; 0 is for those without one."""

    def __init__(
        self,
        pipeline: ImagePipeline,
        references: Mapping[int, ReferenceMap],
        diameter_A: float | None,
        symmetry: str = "C1",
    ) -> None:
        finest_A = min(reference.finest_A for reference in references.values())
        even_px = pipeline.box_px - pipeline.box_px % 2
        widest_A = even_px * float(pipeline.particles.pixel_size_A.max())
        size_px = min(even_px, LARGEST_BOX_PX, 2 * math.ceil(widest_A / finest_A) + 4)
        self.pipeline, self.device = whole_images(pipeline, size_px), pipeline.device
        self.references = {half: reference.to(self.device) for half, reference in references.items()}
        self.finest_A, self.diameter_A, self.symmetry = finest_A, diameter_A, symmetry
        self._against: dict[tuple[int, float], _Against] = {}
        self._noise: dict[tuple[int, float], Tensor] = {}
        self._reading = Lock()  # a reader opens and closes stacks

    def refine(
        self, rows: IntArray, raw: RawPrediction, advance: Advance, search: bool = True
    ) -> RawPrediction:
        """Refine `rows` from the network's answers, one for each; unusable ones stay as they are.

        search : start unsure particles more than once, and search everywhere for doubtful ones.
        """
        fields = {
            "bingham": raw.bingham.double().clone(),
            "shift_A": raw.shift_A.clone(),
            "shift_sd_A": raw.shift_sd_A.clone(),
            "contrast": torch.full((len(rows),), torch.nan, dtype=torch.double),
            "gain": torch.full((len(rows),), torch.nan, dtype=torch.double),
        }
        usable = ~raw.unusable.numpy()

        def work(key: tuple[int, float], part: IntArray) -> tuple[IntArray, dict[str, Tensor]]:
            return part, self._batch(key, rows[part], raw[part], search)

        for part, found in self._shared(work, self._parts(rows, usable)):
            for name, values in found.items():
                fields[name][part] = values.to(fields[name])
            advance(len(part), "")
        advance(int((~usable).sum()), "")
        return replace(raw, modes=None, log_weight=None, **fields)

    def _parts(self, rows: IntArray, usable: np.ndarray) -> list[tuple[tuple[int, float], IntArray]]:
        """Batches: what they meet (see `_groups`), and their places among `rows`."""
        parts = []
        for key, chosen in self._groups(rows):
            places = np.flatnonzero(chosen & usable)
            size = self._batch_size(key)
            parts += [(key, places[start : start + size]) for start in range(0, len(places), size)]
        return parts

    def _shared(
        self,
        work: Callable[[tuple[int, float], IntArray], tuple[IntArray, dict[str, Tensor]]],
        parts: list[tuple[tuple[int, float], IntArray]],
    ) -> Iterator[tuple[IntArray, dict[str, Tensor]]]:
        """Do the batches, on a CPU one to a core: they are many small steps, which gain little from sharing each.

        The first one of each reference comes alone: it measures noise and contrast.
        """
        new = [(key, number) for number, (key, _) in enumerate(parts) if key not in self._against]
        first = dict(reversed(new))
        for number in first.values():
            yield work(*parts[number])
        rest = [part for number, part in enumerate(parts) if number not in first.values()]
        cores = torch.get_num_threads()
        if self.device.type != "cpu" or cores == 1:
            yield from (work(*part) for part in rest)
            return
        try:
            with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield from pool.map(lambda part: work(*part), rest)
        finally:
            torch.set_num_threads(cores)

    def _batch_size(self, key: tuple[int, float]) -> int:
        """How many images at once: a batch's Fourier points stay in a CPU's caches, or in a GPU's memory."""
        n = self.pipeline.box.resampled_px(self.pipeline.box_px, key[1])
        points = math.pi / 2 * min(n / 2, n * self._pixel_A(key[1]) / self.finest_A) ** 2
        budget = POINTS_AT_ONCE.get(self.device.type, 2**18)
        return max(8, min(LARGEST_BATCH, int(budget / max(points, 1))))

    def _pixel_A(self, size_A: float) -> float:
        """Pixel size of working images whose originals have `size_A`."""
        even_px = self.pipeline.box_px - self.pipeline.box_px % 2
        return even_px * size_A / self.pipeline.box.resampled_px(self.pipeline.box_px, size_A)

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
        self, key: tuple[int, float], rows: IntArray, raw: RawPrediction, search: bool
    ) -> dict[str, Tensor]:
        """What is found of one batch, by field of RawPrediction."""
        pixel_A = self._pixel_A(key[1])
        against = self._met(key, pixel_A)
        solver = against.solver
        observed = self._observe(key, rows, solver.points, against.error)
        start_px = (raw.shift_A / pixel_A).float().to(self.device)
        matrix = matrix_from_upper(raw.bingham.double()).to(self.device)
        R = roma.unitquat_to_rotmat(mode(matrix).float())
        best = solver.refine(observed, R, start_px, against.coarse)
        for further in [] if raw.modes is None else raw.modes[:, 1:].unbind(1):
            start = roma.unitquat_to_rotmat(mode(matrix_from_upper(further.double()).to(self.device)).float())
            other = solver.refine(observed, start, start_px, against.coarse)
            best = other.where(other.cost < best.cost, best)
        if solver.amplitude is None:
            solver.amplitude = max(float(best.scale.median()), 1e-6)
            best = solver.refine(observed, R, start_px, against.coarse)
        if search:
            gap = torch.linalg.eigvalsh(matrix)
            unsure = torch.nonzero(gap[:, 1] - gap[:, 0] < 2 / math.radians(SURE_DEG) ** 2)[:, 0]
            best = self._start_again(
                against, observed, best, unsure, matrix, start_px, against.coarse, STARTS
            )
        result = solver.refine(observed, best.R, best.shift_px, against.fine)
        if search:
            doubtful = torch.nonzero(result.scale < DOUBTFUL * solver.amplitude)[:, 0]
            stages = (*against.coarse, *against.fine)
            result = self._start_again(against, observed, result, doubtful, None, start_px, stages, RESCUES)
        return self._found(result, observed, solver.amplitude, pixel_A)

    def _start_again(
        self,
        against: _Against,
        observed: Observed,
        known: Refined,
        rows: Tensor,
        matrix: Tensor | None,
        shift_px: Tensor,
        stages: Stages,
        number: int,
    ) -> Refined:
        """Take for `rows` the start that fits best after `stages`: the known pose, or one of `number` of the grid.

        matrix : `(b, 4, 4)` posterior that the grid is weighted by; None = every pose is as likely.
        """
        if not len(rows):
            return known
        part, solver, grid = observed.rows(rows), against.solver, against.grid
        best = solver.refine(part, known.R[rows], known.shift_px[rows], stages)
        score = grid.gains(part, shift_px[rows])
        if matrix is not None:
            poses = grid.grid.double()
            score = score - torch.einsum("gi,bij,gj->bg", poses, matrix[rows], poses).float()
        for R in roma.unitquat_to_rotmat(grid.starts(score, number)).unbind(1):
            other = solver.refine(part, R, shift_px[rows], stages)
            best = other.where(other.cost < best.cost, best)
        return known.replaced(rows, best)

    def _found(
        self, result: Refined, observed: Observed, amplitude: float, pixel_A: float
    ) -> dict[str, Tensor]:
        """Posterior and quality of refined poses, by field of RawPrediction."""
        covariance = torch.linalg.inv(result.information.double() + 1e-9 * torch.eye(5, device=self.device))
        precision = torch.linalg.inv(covariance[:, :3, :3])
        q = roma.rotmat_to_unitquat(result.R).double()
        nothing = observed.data.abs().square().sum(1) / 2
        return {
            "bingham": upper_from_matrix(matrix_about(q, precision)),
            "shift_A": result.shift_px.double() * pixel_A,
            "shift_sd_A": covariance[:, 3:, 3:].diagonal(dim1=1, dim2=2).mean(1).sqrt() * pixel_A,
            "contrast": result.scale / amplitude,
            "gain": nothing - result.cost,
        }

    def _observe(
        self, key: tuple[int, float], rows: IntArray, points: FourierPoints, error: Tensor
    ) -> Observed:
        """Whitened transforms of `rows` at the points."""
        particles, n = self.pipeline.particles, points.box_px
        with self._reading:
            originals = self.pipeline.read(rows)
        images = self.pipeline.working(rows, None, originals)
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
            pixel_A = self._pixel_A(size_A)
            rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), NOISE_IMAGES)).astype(int)]
            total, count = torch.zeros(0), 0
            for of_batch in self.pipeline.batches(rows):
                with self._reading:
                    originals = self.pipeline.read(of_batch)
                images = self.pipeline.working(of_batch, None, originals)
                images = images[torch.isfinite(images.sum((1, 2)))]
                radius_px = (
                    images.shape[-1] * 0.45 if self.diameter_A is None else self.diameter_A / 2 / pixel_A
                )
                power = mean_noise_power(images, radius_px) * len(images)
                total, count = power if not count else total + power, count + len(images)
            self._noise[key] = (total / max(count, 1)).clamp(min=1e-12)
        return self._noise[key]

    def _met(self, key: tuple[int, float], pixel_A: float) -> _Against:
        """The reference of a half set, for working images of `pixel_A`."""
        if key not in self._against:
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
            solver = Solver(slicer, 1.0 if reference.absolute else None)
            wavelength_A = WAVELENGTH * (self.diameter_A or side_A)
            grid = GridSearch(solver, self.symmetry, wavelength_A, side_A)
            stages = march(side_A / wavelength_A, float(points.radius[-1]))
            self._against[key] = _Against(solver, error, grid, *stages)
        return self._against[key]

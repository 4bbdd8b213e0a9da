"""Particles refined against references: batches read, whitened, started from the posterior, solved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import roma
import torch
from torch import Tensor

from cryoforum_plugin.confidence.raw import MATCH, RawPrediction
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.images.read_ahead import on_each_core
from cryoforum_plugin.network.memory import InParts
from cryoforum_plugin.particles import IntArray
from cryoforum_plugin.posterior import matrix_about, matrix_from_upper, mode, upper_from_matrix
from cryoforum_plugin.progress import Advance
from cryoforum_plugin.refinement.agreement import agreement
from cryoforum_plugin.refinement.observing import ImageSource
from cryoforum_plugin.refinement.reference import ReferenceMap
from cryoforum_plugin.refinement.search import WAVELENGTH, GridSearch
from cryoforum_plugin.refinement.slices import FourierPoints, GradientSlicer
from cryoforum_plugin.refinement.solver import Observed, Refined, Solver, Stages

POINTS_AT_ONCE = {"cpu": 2**18, "cuda": 2**23}  # Fourier points of a batch; each needs about 300 bytes
LARGEST_BATCH = 1024
REFERENCES_AT_ONCE = 4  # kept in memory; one of 160 px takes half a gigabyte
SURE_DEG = 6.0  # posteriors narrower than this get one start
STARTS = 6  # of unsure particles
RESCUES, FINALISTS = 16, 4  # starts of doubtful ones, and how many of them are refined in full
DOUBTFUL = 0.8  # of the usual contrast: below, the pose that was found is searched for everywhere
MARCH = 1.6  # from one stage to the next, in frequency; about that, in even steps
COARSE_STEPS, LAST_STEPS = (3, 1), 2  # a third last step moves poses by less than a tenth of their error


@dataclass(frozen=True)
class _Against:
    """A reference as images of one pixel size meet it.

    error : `(shells,)` mean |error|^2 of its slices. usual : usual contrast of each optics group, None where the
    map's grey values are not those of images. compared : how many points contrast and gain are told from. bands : how many lie in
    the coarse band, in that and the middle one, in all.
    coarse, fine : stages of a first and of a full refinement.
    """

    solver: Solver
    error: Tensor
    usual: dict[int, float] | None
    compared: int
    bands: tuple[int, int, int]
    grid: GridSearch
    coarse: Stages
    fine: Stages


def march(first: float, highest: float) -> tuple[Stages, Stages]:
    """Stages (part of the highest frequency, steps) from frequency `first` on: the coarse ones, then the rest."""
    stages = max(1, math.ceil(math.log(max(highest / first, 1.0), MARCH) - 0.25))
    parts = [min(first / highest, 1.0) ** (1 - i / stages) for i in range(stages)] + [1.0]
    parts = parts if first < highest else [1.0]
    coarse = tuple(zip(parts, COARSE_STEPS, strict=False))
    return coarse, (*((part, 1) for part in parts[1:-1]), (1.0, LAST_STEPS))


Key = tuple[int, float]  # half set of the reference, pixel size of the originals


class Refiner:
    """Refines the particles of a pipeline against references by half set; 0 is for those without one.

    compared_A : detail that contrast and gain are told from; default all that is refined. They are comparable
    only over the same frequencies.
    """

    def __init__(
        self,
        pipeline: ImagePipeline,
        references: Mapping[int, ReferenceMap],
        diameter_A: float | None,
        symmetry: str = "C1",
        compared_A: float | None = None,
    ) -> None:
        self.particles, self.device = pipeline.particles, pipeline.device
        self.finest_A = min(reference.finest_A for reference in references.values())
        self.compared_A = self.finest_A if compared_A is None else compared_A
        self.source = ImageSource(pipeline, self.finest_A, diameter_A)
        self.references = {half: reference.to(self.device) for half, reference in references.items()}
        self.diameter_A, self.symmetry = diameter_A, symmetry
        self.in_parts = InParts("images")
        self._against: dict[Key, _Against] = {}

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
            "match": torch.full((len(rows), len(MATCH)), torch.nan, dtype=torch.double),
        }
        usable = ~raw.unusable.numpy()
        for key, chosen in self._groups(rows):
            self._meet_once(key)

            places, size = np.flatnonzero(chosen & usable), self._batch_size(key[1])
            batches = (places[start : start + size] for start in range(0, len(places), size))
            work = partial(self._in_parts, key, rows, raw, search)
            for batch, found in on_each_core(work, batches, self.device):
                for name in found[0]:
                    fields[name][batch] = torch.cat([part[name] for part in found]).to(fields[name])
                advance(len(batch), "")
        advance(int((~usable).sum()), "")
        return replace(raw, modes=None, log_weight=None, **fields)

    def _in_parts(
        self, key: Key, rows: IntArray, raw: RawPrediction, search: bool, batch: IntArray
    ) -> list[dict[str, Tensor]]:
        """What is found of the places `batch` among `rows`, in parts that the device's memory holds."""

        def work(part: slice) -> dict[str, Tensor]:
            places = batch[part]
            return self._batch(key, rows[places], raw[places], search)

        return self.in_parts(work, len(batch))

    def _groups(self, rows: IntArray) -> list[tuple[Key, np.ndarray]]:
        """What there is among the rows to meet, and which of them."""
        half = self.particles.half_set[rows]
        half = np.where(np.isin(half, list(self.references)), half, 0)
        size_A = self.particles.pixel_size_A[rows]
        return [
            ((int(h), float(s)), (half == h) & (size_A == s))
            for h in np.unique(half)
            for s in np.unique(size_A[half == h])
        ]

    def _batch_size(self, size_A: float) -> int:
        """How many images at once: a batch's Fourier points stay in a CPU's caches, or in a GPU's memory."""
        n = self.source.box_px(size_A)
        points = math.pi / 2 * min(n / 2, n * self.source.pixel_A(size_A) / self.finest_A) ** 2
        budget = POINTS_AT_ONCE.get(self.device.type, 2**18)
        return max(8, min(LARGEST_BATCH, int(budget / max(points, 1))))

    def _batch(self, key: Key, rows: IntArray, raw: RawPrediction, search: bool) -> dict[str, Tensor]:
        """What is found of one batch, by field of RawPrediction."""
        against, size_A = self._against[key], key[1]
        solver, pixel_A = against.solver, self.source.pixel_A(size_A)
        usual = None
        if against.usual is not None:
            groups = self.particles.optics_group[rows].tolist()
            usual = torch.tensor([against.usual[group] for group in groups], device=self.device)
        observed = self.source.observe(rows, size_A, solver.points, against.error, usual)
        start_px = (raw.shift_A / pixel_A).float().to(self.device)
        matrix = matrix_from_upper(raw.bingham.double()).to(self.device)
        R = roma.unitquat_to_rotmat(mode(matrix).float())
        if usual is None:  # then what most of the batch has
            contrast, _ = solver.fit(observed, R, start_px, against.compared)
            usual = contrast.median().clamp(min=1e-3 * contrast.amax().clamp(min=1e-6)).expand(len(rows))
            observed = replace(observed, usual=usual)
        best = solver.refine(observed, R, start_px, against.coarse)
        for further in [] if raw.modes is None else raw.modes[:, 1:].unbind(1):
            start = roma.unitquat_to_rotmat(mode(matrix_from_upper(further.double()).to(self.device)).float())
            other = solver.refine(observed, start, start_px, against.coarse)
            best = other.where(other.cost < best.cost, best)
        if search:
            best = self._unsure(against, observed, best, matrix, start_px)
        result = solver.refine(observed, best.R, best.shift_px, against.fine)
        if against.usual is None:
            usual = result.scale.median().clamp(min=1e-6).expand(len(rows))
        if search:
            result = self._rescued(against, observed, result, usual, start_px)
        return self._found(result, observed, against, usual, pixel_A)

    def _start_again(
        self, against: _Against, observed: Observed, shift_px: Tensor, matrix: Tensor | None, number: int
    ) -> list[Refined]:
        """Refine low frequencies from `number` poses of the grid; the best of them first.

        matrix : `(b, 4, 4)` posterior that the grid is weighted by; None = every pose is as likely.
        """
        score = against.grid.gains(observed, shift_px)
        if matrix is not None:
            score = score - against.grid.energies(matrix)
        starts = roma.unitquat_to_rotmat(against.grid.starts(score, number)).unbind(1)
        found = [against.solver.refine(observed, R, shift_px, against.coarse) for R in starts]
        order = torch.stack([other.cost for other in found]).argsort(0)  # (number, b)
        stacked = [torch.stack(values) for values in zip(*(vars(f).values() for f in found), strict=True)]
        image = torch.arange(len(observed.data), device=self.device)
        return [Refined(*(values[place, image] for values in stacked)) for place in order]

    def _unsure(
        self, against: _Against, observed: Observed, best: Refined, matrix: Tensor, shift_px: Tensor
    ) -> Refined:
        """Compare the known start with others where the posterior is broad."""
        gap = torch.linalg.eigvalsh(matrix)
        rows = torch.nonzero(gap[:, 1] - gap[:, 0] < 2 / math.radians(SURE_DEG) ** 2)[:, 0]
        if not len(rows):
            return best
        other = self._start_again(against, observed.rows(rows), shift_px[rows], matrix[rows], STARTS)[0]
        known = best.rows(rows)
        return best.replaced(rows, other.where(other.cost < known.cost, known))

    def _rescued(
        self, against: _Against, observed: Observed, result: Refined, usual: Tensor, shift_px: Tensor
    ) -> Refined:
        """Search everywhere for the poses of images that show too little of the particle where they are."""
        rows = torch.nonzero(result.scale < DOUBTFUL * usual)[:, 0]
        if not len(rows):
            return result
        part, best = observed.rows(rows), result.rows(rows)
        for start in self._start_again(against, part, shift_px[rows], None, RESCUES)[:FINALISTS]:
            other = against.solver.refine(part, start.R, start.shift_px, against.fine)
            best = other.where(other.cost < best.cost, best)
        return result.replaced(rows, best)

    def _found(
        self, result: Refined, observed: Observed, against: _Against, usual: Tensor, pixel_A: float
    ) -> dict[str, Tensor]:
        """Posterior and quality of refined poses, by field of RawPrediction."""
        covariance = torch.linalg.inv(result.information.double() + 1e-9 * torch.eye(5, device=self.device))
        precision = torch.linalg.inv(covariance[:, :3, :3])
        q = roma.rotmat_to_unitquat(result.R).double()
        contrast, gain = result.scale, result.gain
        if against.compared < len(against.solver.points.k):
            contrast, gain = against.solver.fit(observed, result.R, result.shift_px, against.compared)
        match = agreement(against.solver.slicer, observed, result.R, result.shift_px, usual, against.bands)
        return {
            "bingham": upper_from_matrix(matrix_about(q, precision)),
            "shift_A": result.shift_px.double() * pixel_A,
            "shift_sd_A": covariance[:, 3:, 3:].diagonal(dim1=1, dim2=2).mean(1).sqrt() * pixel_A,
            "contrast": contrast / usual,
            "gain": gain,
            "match": match,
        }

    def _meet_once(self, key: Key) -> None:
        """Get ready what batches of `key` share, before threads do; the last few references are kept."""
        half, size_A = key
        if key not in self._against:
            while len(self._against) >= REFERENCES_AT_ONCE:
                del self._against[next(iter(self._against))]
            self._against[key] = self._meet(self.references[half], size_A)
        for group in np.unique(self.particles.optics_group[self.particles.pixel_size_A == size_A]).tolist():
            self.source.noise(group, size_A)

    def _meet(self, reference: ReferenceMap, size_A: float) -> _Against:
        n, pixel_A = self.source.box_px(size_A), self.source.pixel_A(size_A)
        side_A = n * pixel_A
        points = FourierPoints(n, side_A / self.finest_A, self.device)
        amplitude = (reference.pixel_size_A / pixel_A) ** 2  # sums over pixels, that is
        slicer = GradientSlicer(reference.volume * amplitude, points, scale=reference.side_A / side_A)
        shells = torch.arange(n, device=self.device) * reference.side_A / side_A
        power = reference.error_power() * amplitude**2
        error = power[shells.round().long().clamp(max=len(power) - 1)]
        solver = Solver(slicer)
        wavelength_A = WAVELENGTH * (self.diameter_A or side_A)
        grid = GridSearch(solver, self.symmetry, wavelength_A, side_A)
        stages = march(side_A / wavelength_A, float(points.radius[-1]))
        compared = max(points.count(side_A / self.compared_A), min(16, len(points.k)))
        coarse = min(grid.count, compared)
        bands = (coarse, math.isqrt(coarse * compared), compared)
        return _Against(solver, error, self._usual(reference, size_A), compared, bands, grid, *stages)

    def _usual(self, reference: ReferenceMap, size_A: float) -> dict[int, float] | None:
        """Usual contrast of each optics group.

        Images are brought to noise of s.d. 1 a pixel, so that a particle's grey values depend on the pixel size: they
        stand in proportion to the noise in the frequencies of the particle.
        """
        if not reference.absolute:
            return None
        groups = np.unique(self.particles.optics_group[self.particles.pixel_size_A == size_A]).tolist()
        if reference.noise_density is None:
            return dict.fromkeys(groups, 1.0)
        usual = {}
        for group in groups:
            frequency, density = self.source.noise_density(group, size_A)
            known = reference.noise_density[
                (frequency * reference.side_A).round().long().clamp(max=len(reference.noise_density) - 1)
            ]
            band = (frequency > 0) & (frequency < 1 / self.finest_A)
            usual[group] = float((density / known)[band].median().sqrt())
        return usual

"""Images as the solver wants them: whole, at the resolution of the reference, whitened by their own noise."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.noise import mean_noise_power
from cryoforum_plugin.images.pipeline import ImagePipeline, unusable
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.particles import IntArray
from cryoforum_plugin.particles.splitting import spread_rows
from cryoforum_plugin.refinement.slices import FourierPoints
from cryoforum_plugin.refinement.solver import Observed, whiten

LOG = logging.getLogger("cryoforum")
LARGEST_BOX_PX = 160
NOISE_IMAGES = 500
MASKED = 1e-4  # part of the whole power below which the rim was masked, and tells nothing of the noise


def whole_images(pipeline: ImagePipeline, size_px: int, size_A: float | None = None) -> ImagePipeline:
    """A pipeline of whole images, CTF as it is, resampled to at most `size_px`.

    size_A : pixel size of the originals; default the largest, others are then continued periodically.
    """
    even_px = pipeline.box_px - pipeline.box_px % 2
    side_A = even_px * (float(pipeline.particles.pixel_size_A.max()) if size_A is None else size_A)
    return replace(pipeline, box=WorkingBox(side_A, min(size_px, even_px)), ctf_mode="keep")


class ImageSource:
    """Reads images of one original pixel size at a time.

    finest_A : detail that has to be kept; None = as much as LARGEST_BOX_PX allows. diameter_A : of the particle,
    None = unknown. Reading is safe from several threads.
    """

    def __init__(self, pipeline: ImagePipeline, finest_A: float | None, diameter_A: float | None) -> None:
        self.original, self.finest_A, self.diameter_A = pipeline, finest_A, diameter_A
        self.device = pipeline.device
        self._pipelines: dict[float, ImagePipeline] = {}
        self._noise: dict[tuple[int, float], Tensor] = {}

    def pipeline(self, size_A: float) -> ImagePipeline:
        """Pipeline of the images whose originals have pixels of `size_A`."""
        if size_A not in self._pipelines:
            even_px = self.original.box_px - self.original.box_px % 2
            size_px = min(even_px, LARGEST_BOX_PX)
            if self.finest_A is not None:
                size_px = min(size_px, 2 * math.ceil(even_px * size_A / self.finest_A) + 4)
            self._pipelines[size_A] = whole_images(self.original, size_px, size_A)
        return self._pipelines[size_A]

    def box_px(self, size_A: float) -> int:
        """Side of these images in pixels."""
        return self.pipeline(size_A).box.size_px

    def pixel_A(self, size_A: float) -> float:
        """Their pixel size."""
        box = self.pipeline(size_A).box
        return box.side_A / box.size_px

    def transforms(self, rows: IntArray, size_A: float) -> Tensor:
        """Transforms `(b, n, n // 2 + 1)` of `rows`, the particle's centre at [0, 0]."""
        pipeline, parts = self.pipeline(size_A), []
        for of_batch in pipeline.batches(rows):
            originals = pipeline.read(of_batch)
            images = pipeline.working(of_batch, None, originals)
            parts.append(torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1))))
        return torch.cat(parts)

    def observe(
        self, rows: IntArray, size_A: float, points: FourierPoints, error: Tensor, usual: Tensor | None
    ) -> Observed:
        """Whitened transforms of `rows` at the points.

        error : `(shells,)` mean |error|^2 of the reference's slices. usual : `(b,)` usual contrast.
        """
        pipeline, particles = self.pipeline(size_A), self.original.particles
        ctf = None
        if particles.ctf is not None:
            ctf = ctf_2d(particles.ctf[rows], points.box_px, pipeline.sampling_A(rows), device=self.device)
        noise = torch.stack([self.noise(int(group), size_A) for group in particles.optics_group[rows]])
        return replace(whiten(self.transforms(rows, size_A), ctf, noise, points, error), usual=usual)

    def noise(self, group: int, size_A: float) -> Tensor:
        """Mean |noise|^2 by shell of the images of an optics group and pixel size, measured once on some of them."""
        key = (group, size_A)
        if key not in self._noise:
            particles = self.original.particles
            rows = np.flatnonzero((particles.optics_group == group) & (particles.pixel_size_A == size_A))
            self._noise[key] = self._measure(spread_rows(rows, NOISE_IMAGES), size_A)
        return self._noise[key]

    def noise_density(self, group: int, size_A: float) -> tuple[Tensor, Tensor]:
        """Frequencies (1/Å) and spectral density of the noise there, in units that resampling leaves alone."""
        power, n, pixel_A = self.noise(group, size_A), self.box_px(size_A), self.pixel_A(size_A)
        frequency = torch.arange(len(power), device=power.device) / (n * pixel_A)
        return frequency, power * (pixel_A / n) ** 2

    def _measure(self, rows: IntArray, size_A: float) -> Tensor:
        pipeline, n = self.pipeline(size_A), self.box_px(size_A)
        radius_px = n * 0.45 if self.diameter_A is None else self.diameter_A / 2 / self.pixel_A(size_A)
        outside, everything, count = torch.zeros(n // 2 + 1), torch.zeros(n // 2 + 1), 0
        for of_batch in pipeline.batches(rows):
            originals = pipeline.read(of_batch)
            good = ~unusable(originals)
            if not good.any():
                continue
            images = pipeline.working(of_batch, None, originals.nan_to_num(0.0, 0.0, 0.0))[good]
            outside = outside.to(images.device) + mean_noise_power(images, radius_px) * len(images)
            everything = everything.to(images.device) + mean_noise_power(images, 0.0) * len(images)
            count += len(images)
        power, total = outside / max(count, 1), everything / max(count, 1)
        if power.sum() < MASKED * total.sum():
            LOG.warning("%s: the images are masked, so that their noise is not seen; the particle is taken for noise too",
                        self.original.particles.source)  # fmt: skip
            power = total
        floor = MASKED * total.mean().clamp(min=1e-12)
        return torch.where(power > floor, power, floor)

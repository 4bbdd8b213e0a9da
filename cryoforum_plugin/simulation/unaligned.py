"""What particle images tell before they are aligned: their noise, and how strongly a map shows in them."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.fourier import fourier_crop, radial_average
from cryoforum_plugin.images.noise import mean_noise_power
from cryoforum_plugin.images.pipeline import ImagePipeline, unusable
from cryoforum_plugin.images.working import normalise_background
from cryoforum_plugin.particles import IntArray
from cryoforum_plugin.progress import Advance

LOG = logging.getLogger("cryoforum")
SIGNIFICANT = 3.0  # standard errors of a shell's signal power
FEWEST_SHELLS = 3
MODEL_ERROR = 0.1  # of a shell's signal power: what no map and no two numbers describe
LARGEST_B_A2 = 1000.0
EDGE = 0.04  # relative width of the end of images that were filtered
POOR_FIT = 0.5  # of the natural logarithm of the power, r.m.s.
DISC_MARGIN = 1.1  # of the diameter: noise is measured outside this disc
NORMALISED_MARGIN = 1.2  # of the diameter: images are normalised outside this disc, as for training


@dataclass(frozen=True)
class Spectra:
    """Mean power by Fourier shell `(n // 2 + 1,)` of images of `size_px` (n) at `pixel_size_A`.

    total, noise : |transform|^2 of whole images with a background of s.d. 1, and of what is not particle.
    error : standard error of total - noise. ctf2 : mean CTF^2. images : how many were looked at.
    """

    total: Tensor
    noise: Tensor
    error: Tensor
    ctf2: Tensor
    size_px: int
    pixel_size_A: float
    images: int

    @property
    def signal(self) -> Tensor:
        """Power of the particles, with the error of `error`, hence perhaps negative."""
        return self.total - self.noise


@dataclass(frozen=True)
class Contrast:
    """How a map shows in images: its shells times `amplitude` exp(-`b_factor_A2` q^2 / 4), q in 1/Å.

    finest_A : resolution of the last shell in which it was seen; a rising factor stays level beyond.
    misfit : r.m.s. of the logarithm of the power, of what is left. cut : the images end there, as filtered ones.
    """

    amplitude: float
    b_factor_A2: float
    finest_A: float
    misfit: float
    cut: bool = False

    def gain(self, frequency: Tensor) -> Tensor:
        """Factor at spatial frequencies in 1/Å."""
        bent = frequency.clamp(max=1 / self.finest_A) if self.b_factor_A2 < 0 else frequency
        factor = self.amplitude * torch.exp(-self.b_factor_A2 * bent.square() / 4)
        if self.cut:
            end = (1 + EDGE) / self.finest_A
            factor = factor * torch.sigmoid((end - frequency) / (EDGE / 2 * end))
        return factor


def measure_spectra(
    pipeline: ImagePipeline, rows: IntArray, size_px: int, diameter_A: float, advance: Advance
) -> Spectra:
    """Measure the images of `rows`, all of one pixel size, cropped in Fourier space to `size_px`.

    Images that are constant or hold NaN are left out. Raises ImageStackError if none is left.
    """
    pixel_A = float(pipeline.particles.pixel_size_A[rows[0]])
    even_px = pipeline.box_px - pipeline.box_px % 2
    new_pixel_A = pixel_A * even_px / size_px
    total, noise, ctf2 = [], [], []
    for of_batch in pipeline.batches(rows):
        images = pipeline.read(of_batch)[:, :even_px, :even_px]
        usable = ~unusable(images)
        images = normalise_background(images[usable], NORMALISED_MARGIN * diameter_A / pixel_A / 2)
        images = fourier_crop(images, size_px)
        for image in images.split(1):
            noise.append(mean_noise_power(image, DISC_MARGIN * diameter_A / new_pixel_A / 2).cpu())
        total.append(radial_average(torch.fft.rfft2(images).abs().square()).cpu())
        if pipeline.particles.ctf is not None:
            ctf = ctf_2d(pipeline.particles.ctf[of_batch], size_px, new_pixel_A, pipeline.device)
            ctf2.append(radial_average(ctf.square()).cpu()[usable.cpu()])
        advance(len(of_batch), "")
    if len(noise) < 2:
        raise ImageStackError(f"{pipeline.particles.source}: too few usable images to measure their noise")
    every_total, every_noise = torch.cat(total).double(), torch.stack(noise).double()
    every_noise[:, 0] = every_noise[:, 1]  # the mean was taken out
    mean_ctf2 = torch.cat(ctf2).double().mean(0) if ctf2 else torch.ones_like(every_total[0])
    error = (every_total - every_noise).std(0) / math.sqrt(len(every_total))
    return Spectra(
        every_total.mean(0), every_noise.mean(0), error, mean_ctf2, size_px, new_pixel_A, len(every_total)
    )


def map_power(volume: Tensor) -> Tensor:
    """Mean |slice|^2 over all orientations by shell `(n // 2 + 1,)` of a map `(n, n, n)`."""
    return radial_average(torch.fft.rfftn(volume.double()).abs().square(), 3).cpu()


def fit_contrast(spectra: Spectra, map_power: Tensor, source: object) -> Contrast:
    """Fit amplitude and B-factor of a map of mean power `map_power` `(n // 2 + 1,)` to unaligned images.

    The images' signal power is amplitude^2 exp(-B q^2 / 2) <CTF^2> map_power; its logarithm is a line in
    q^2. Shells count by the inverse square of their error, if their signal is significant.
    Raises ImageStackError if fewer than three are: the images show no particle.
    """
    signal, expected = spectra.signal, spectra.ctf2 * map_power.double()
    shells = torch.arange(len(signal))
    seen = (
        (signal > SIGNIFICANT * spectra.error) & (expected > 0) & (shells >= 1) & (shells < len(signal) - 1)
    )
    seen &= shells <= _end_of_signal(seen)
    if int(seen.sum()) < FEWEST_SHELLS:
        raise ImageStackError(
            f"{source}: no particle can be told from the noise in {spectra.images} images ({int(seen.sum())} of "
            f"{len(signal) - 2} Fourier shells hold signal); give images that show the particle of the map, and "
            "check --diameter"
        )
    q = shells[seen].double() / (spectra.size_px * spectra.pixel_size_A)
    y = (signal[seen] / expected[seen]).log()
    weight = 1 / ((spectra.error[seen] / signal[seen]).square() + MODEL_ERROR**2)
    design = torch.stack([torch.ones_like(q), -q.square() / 2], 1)
    level, b_A2 = (float(value) for value in _least_squares(design, y, weight))
    if abs(b_A2) > LARGEST_B_A2:
        b_A2 = math.copysign(LARGEST_B_A2, b_A2)
        level = float((weight * (y + b_A2 * q.square() / 2)).sum() / weight.sum())
    left = y - level + b_A2 * q.square() / 2
    misfit = math.sqrt(float((weight * left.square()).sum() / weight.sum()))
    found = Contrast(math.exp(level / 2), b_A2, 1 / float(q[-1]), misfit)
    if misfit > POOR_FIT:
        LOG.warning("%s: the power of the images differs from that of the map by a factor of %.1f (r.m.s. over the "
                    "Fourier shells); is it the same particle, at the right pixel size?", source, math.exp(misfit))  # fmt: skip
    return replace(found, cut=_ends(spectra, expected, found))


def _ends(spectra: Spectra, expected: Tensor, found: Contrast) -> bool:
    """Whether the images clearly hold less than half the fitted signal beyond the last shell it was seen in."""
    frequency = torch.arange(len(expected)).double() / (spectra.size_px * spectra.pixel_size_A)
    beyond = frequency > 1.01 / found.finest_A
    beyond[-1] = False
    fitted, error = (expected * found.gain(frequency).square())[beyond], spectra.error[beyond]
    weight = (fitted / error.clamp(min=1e-30)).square()
    if float(weight.sum()) == 0:
        return False
    part = float((weight * spectra.signal[beyond] / fitted.clamp(min=1e-30)).sum() / weight.sum())
    return part + SIGNIFICANT / math.sqrt(float(weight.sum())) < 0.5


def _least_squares(design: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Coefficients `(2,)` of the weighted least-squares fit."""
    weighted = design * weight[:, None]
    solution: Tensor = torch.linalg.solve(weighted.T @ design, weighted.T @ y)
    return solution


def _end_of_signal(seen: Tensor) -> int:
    """Last shell before two out of three shells are without signal: beyond, single ones are chance."""
    missing = (~seen[1:]).long().unfold(0, 3, 1).sum(1) >= 2
    gaps = missing.nonzero()
    return int(gaps[0]) if len(gaps) else len(seen)

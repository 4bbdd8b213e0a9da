"""What particle images tell before they are aligned: the power of their noise, and of their particles."""

from __future__ import annotations

import math
from dataclasses import dataclass

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

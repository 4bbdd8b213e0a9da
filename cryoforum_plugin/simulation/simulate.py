"""Simulated particle images from a map, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.maps.volume import low_pass, randomise_phases
from cryoforum_plugin.particles import FloatArray, IntArray
from cryoforum_plugin.simulation.draw import GOOD, PURE_NOISE, WRONG_PARTICLE, Draw, SimulationSettings

PIXELS_PER_BATCH = 2**21
SNR_SAMPLE = 1000  # particles that the signal's variance is measured on


class Simulator:
    """Makes the images of a `Draw` from one map.

    volume : `(n, n, n)` zyx, even. The output box and pixel size are `box_px` and `pixel_size_A`.
    Raises SettingsError for a box that is odd or larger than the map's.
    """

    def __init__(
        self,
        volume: Tensor,
        pixel_size_A: float,
        settings: SimulationSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        settings.check()
        n = volume.shape[-1]
        self.box_px = n if settings.box_px is None else settings.box_px
        if self.box_px % 2 or not 8 <= self.box_px <= n:
            raise SettingsError(f"--box must be even and between 8 and {n} (the map): got {self.box_px}")
        self.settings, self.device = settings, torch.device(device)
        if settings.low_pass_A is not None:
            volume = low_pass(volume, pixel_size_A, settings.low_pass_A)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.projector = Projector(volume.to(device), pixel_size_A, self.box_px)
        self.wrong = self.projector
        if settings.junk > 0:
            other = randomise_phases(volume, self.generator)
            self.wrong = Projector(other.to(device), pixel_size_A, self.box_px)
        self.pixel_size_A = self.projector.pixel_size_A

    @torch.no_grad()
    def signal(self, draw: Draw, rows: IntArray) -> Tensor:
        """Noise-free images `(b, box, box)` of `rows`, junk included."""
        R = roma.unitquat_to_rotmat(self._tensor(draw.rotation[rows]))
        ctf = ctf_2d(draw.ctf[rows], self.box_px, self.pixel_size_A, self.device)
        shift_A = -self._tensor(draw.displacement_A[rows])
        images = self.projector.project(R, ctf, shift_A)
        wrong = torch.from_numpy(np.flatnonzero(draw.junk[rows] == WRONG_PARTICLE)).to(self.device)
        if len(wrong):
            images[wrong] = self.wrong.project(R[wrong], ctf[wrong], shift_A[wrong])
        images[torch.from_numpy(draw.junk[rows] == PURE_NOISE).to(self.device)] = 0
        return images

    def noise_std(self, draw: Draw) -> float:
        """Standard deviation of the noise that gives the requested SNR (0 for infinity)."""
        if math.isinf(self.settings.snr):
            return 0.0
        good = np.flatnonzero(draw.junk == GOOD)
        rows = good[:: max(1, len(good) // SNR_SAMPLE)]
        if not len(rows):
            raise SettingsError("every particle is junk: lower --junk, the SNR has nothing to refer to")
        variances = [
            self.signal(draw, part).var(dim=(1, 2), correction=0).cpu() for part in self._batches(rows)
        ]
        return math.sqrt(float(torch.cat(variances).double().mean()) / self.settings.snr)

    def images(self, draw: Draw) -> Iterator[NDArray[np.float32]]:
        """Yield batches `(b, box, box)` of all images in order, protein bright, noise added."""
        std = self.noise_std(draw)
        for rows in self._batches(np.arange(len(draw))):
            images = self.signal(draw, rows).cpu()
            yield (images + std * torch.randn(images.shape, generator=self.generator)).numpy()

    def _batches(self, rows: IntArray) -> list[IntArray]:
        step = max(1, PIXELS_PER_BATCH // self.box_px**2)
        return [rows[start : start + step] for start in range(0, len(rows), step)]

    def _tensor(self, values: FloatArray) -> Tensor:
        return torch.from_numpy(values).float().to(self.device)

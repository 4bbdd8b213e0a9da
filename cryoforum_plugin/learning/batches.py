"""Training batches: the particles themselves, turned, and the reference in new poses under their noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import roma
import torch
from torch import Tensor

from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.images.augment import in_plane_operation, mirror, quarter_turns, transform_images
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.fourier import shift_images, shift_transform
from cryoforum_plugin.images.pipeline import CtfMode, remaining_transfer
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.images.working import finish, rim_deviation
from cryoforum_plugin.particles import Ctf, FloatArray
from cryoforum_plugin.settings import TrainingSettings


class Batch(NamedTuple):
    """Network input `(b, 1, n, n)`, poses `(b, 4)` XYZW, shifts `(b, 2)` x, y as fraction of the box.

    exact : `(b,)` bool, whether the pose is certain, as that of a simulated image. rows : `(b,)` training rows of the
    particles that the images show or take their noise from.
    """

    images: Tensor
    rotation: Tensor
    shift: Tensor
    exact: Tensor
    rows: Tensor


def simulated_images(count: int, settings: TrainingSettings) -> int:
    """How many of a batch of `count` images are simulated."""
    return round(count * settings.simulated)


def only_simulated(settings: TrainingSettings) -> bool:
    """Whether no batch shows a particle, so that training sees none of the particles' own poses."""
    images = settings.batch_size * (2 if settings.branches == "siamese" else 1)
    return simulated_images(images, settings) == images


@dataclass(frozen=True)
class TrainingData:
    """Working images of the training particles, recentred, CTF corrected; all on the training device.

    images : `(n, s, s)` float16, or a memory map of the same. rotation : `(n, 4)` float32.
    ctf, sampling_A : CTF parameters and exact pixel size `(n,)` of each working image; None = no CTF.
    projector : slices of the reference at the working box; None = no simulated images. shift : `(n, 2)` of
    the images, fraction of the box, where they are not recentred. preprocessing : as `finish` takes it.
    """

    images: Tensor
    rotation: Tensor
    ctf: Ctf | None
    sampling_A: FloatArray
    ctf_mode: CtfMode
    projector: Projector | None
    shift: Tensor | None = None
    preprocessing: str = "background"

    def transfer(self, rows: Tensor) -> Tensor | float:
        """What multiplies the transform of the particle in the images of `rows`."""
        if self.ctf is None:
            return 1.0
        index = rows.cpu().numpy()
        ctf = ctf_2d(
            self.ctf[index], self.images.shape[-1], self.sampling_A[index], device=self.rotation.device
        )
        return remaining_transfer(ctf, self.ctf_mode)

    def load(self, rows: Tensor) -> Tensor:
        """Working images `(b, s, s)` float32 of `rows`."""
        return self.images[rows.to(self.images.device)].to(self.rotation.device).float()


class BatchMaker:
    """Draws augmented batches. Every random number comes from `generator` (CPU), so that runs repeat."""

    def __init__(self, data: TrainingData, settings: TrainingSettings, generator: torch.Generator) -> None:
        self.data, self.settings, self.generator = data, settings, generator
        self.device = data.rotation.device

    def make(self, rows: Tensor) -> Batch:
        """Make a batch of `len(rows)` images; the first part shows those particles, the rest is simulated."""
        projector = self.data.projector
        simulated = simulated_images(len(rows), self.settings) if projector is not None else 0
        own = self._particles(rows[simulated:]) if simulated < len(rows) else None
        if projector is None or simulated == 0:
            assert own is not None
            return own
        made = self._simulated(rows[:simulated], projector)
        if own is None:
            return made
        return Batch(*(torch.cat(pair) for pair in zip(own, made, strict=True)))

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return (torch.rand(*shape, generator=self.generator) * (high - low) + low).to(self.device)

    def _shift_px(self, count: int) -> Tensor:
        reach = self.settings.max_shift * self.data.images.shape[-1]
        return self._uniform(count, 2, low=-reach, high=reach)

    def _batch(self, images: Tensor, rotation: Tensor, shift: Tensor, rows: Tensor, exact: bool) -> Batch:
        flag = torch.full((len(images),), exact, device=self.device)
        return Batch(finish(images, self.data.preprocessing), rotation, shift, flag, rows.to(self.device))

    def _particles(self, rows: Tensor) -> Batch:
        """The particles of `rows`, augmented as the settings say."""
        if self.settings.augmentation == "full":
            return self._moved(rows)
        images, of_device = self.data.load(rows), rows.to(self.device)
        if self.settings.augmentation == "noise":
            images = self._noisier(images)
        shift = self.data.shift
        known = images.new_zeros(len(rows), 2) if shift is None else shift[of_device]
        return self._batch(images, self.data.rotation[of_device], known, rows, exact=False)

    def _noisier(self, images: Tensor) -> Tensor:
        """Add noise of the images' own strength, measured at the rim: the s.d. grows by up to noise_range."""
        b, size = len(images), images.shape[-1]
        excess = self._uniform(b, low=1, high=self.settings.noise_range).square() - 1
        noise = torch.randn(b, size, size, generator=self.generator).to(self.device)
        return images + (excess.sqrt() * rim_deviation(images))[:, None, None] * noise

    def _moved(self, rows: Tensor) -> Batch:
        """The particles of `rows`, mirrored, rotated, shifted and with a little noise added."""
        b, size = len(rows), self.data.images.shape[-1]
        angle, mirrored = self._uniform(b, high=2 * math.pi), self._uniform(b) < 0.5
        images = transform_images(self.data.load(rows), angle, mirrored)
        shift = self._shift_px(b)
        images = self._noisier(shift_images(images, -shift))
        rotation = roma.quat_product(
            self.data.rotation[rows.to(self.device)], in_plane_operation(angle, mirrored)
        )
        return self._batch(images, rotation, shift / size, rows, exact=False)

    def _simulated(self, rows: Tensor, projector: Projector) -> Batch:
        """The reference in random poses, with the noise (image minus projection) of `rows`.

        The CTFs are those of other particles, drawn at random; where images are multiplied by their CTF,
        which shapes the noise too, they are the particle's own.
        """
        b, size = len(rows), projector.box_px
        own_transfer = self.data.transfer(rows)
        transfer = own_transfer
        if self.data.ctf_mode != "multiply":
            other = torch.randint(len(self.data.rotation), (b,), generator=self.generator)
            transfer = self.data.transfer(other)
        rotation = random_quaternions(b, self.generator).to(self.device)
        known = self.data.rotation[rows.to(self.device)]
        slices = projector.slices(roma.unitquat_to_rotmat(torch.cat([rotation, known])))
        signal, explained = slices[:b] * transfer, slices[b:] * own_transfer
        shift = self._shift_px(b)
        signal, explained = torch.fft.fftshift(
            torch.fft.irfft2(torch.stack([shift_transform(signal, -shift), explained]), s=(size, size)),
            dim=(-2, -1),
        )
        noise = self.data.load(rows) - explained
        turns = torch.randint(4, (b,), generator=self.generator).to(self.device)
        noise = quarter_turns(
            torch.where((self._uniform(b) < 0.5)[:, None, None], mirror(noise), noise), turns
        )
        spread = math.log(self.settings.noise_range)
        strength = self._uniform(b, low=-spread, high=spread).exp()
        images = signal + strength[:, None, None] * noise
        return self._batch(images, rotation, shift / size, rows, exact=True)

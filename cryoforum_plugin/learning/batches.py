"""Training batches: the particles themselves, turned, and the reference in new poses under their noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import roma
import torch
from torch import Tensor

from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.images.augment import in_plane_operation, mirror, quarter_turns, transform_images
from cryoforum_plugin.images.ctf import ctf_of_phases, ctf_phases
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


@dataclass(frozen=True)
class Rows:
    """Training rows `(b,)`: for images in this machine's memory, and the same on the training device."""

    host: Tensor
    device: Tensor

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.host[part], self.device[part])

    def split(self, size: int) -> list[Rows]:
        """Parts of `size` rows, in order."""
        return [Rows(*pair) for pair in zip(self.host.split(size), self.device.split(size), strict=True)]


@dataclass(frozen=True)
class Share:
    """Part of a batch that one of `world` processes makes: every world-th image, from image `rank` on.

    Where `world` divides half of a batch too, pairs of images half a batch apart stay together.
    """

    rank: int = 0
    world: int = 1

    def of(self, first: int) -> slice:
        """The share of images `first`, `first` + 1, ... of a batch."""
        return slice((self.rank - first) % self.world, None, self.world)


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

    @cached_property
    def _phases(self) -> Tensor:
        """CTF `(n, 5)` of every image, as `ctf_of_phases` takes it, on the training device."""
        assert self.ctf is not None
        phases = ctf_phases(self.ctf, self.images.shape[-1], self.sampling_A)
        return torch.from_numpy(np.ascontiguousarray(phases, dtype=np.float32)).to(self.rotation.device)

    def transfer(self, rows: Tensor) -> Tensor | float:
        """What multiplies the transform of the particle in the images of `rows`, on the training device."""
        if self.ctf is None:
            return 1.0
        return remaining_transfer(ctf_of_phases(self._phases[rows], self.images.shape[-1]), self.ctf_mode)

    def rows(self, rows: Tensor) -> Rows:
        """`rows` as `load` takes them."""
        return Rows(rows, rows.to(self.rotation.device))

    def load(self, rows: Rows) -> Tensor:
        """Working images `(b, s, s)` float32 of `rows`."""
        on_device = self.images.device == self.rotation.device
        found = self.images[rows.device if on_device else rows.host]
        return found.to(self.rotation.device, non_blocking=True).float()


class _Draws:
    """Random numbers for `count` images; only those of a share of them are returned.

    All processes draw for all images, so that several make the batch that one would make.
    """

    def __init__(self, count: int, share: slice, generator: torch.Generator) -> None:
        self.count, self.share, self.generator = count, share, generator
        self.device = generator.device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers `(b, *shape)` in [low, high)."""
        drawn = torch.rand(self.count, *shape, generator=self.generator, device=self.device)
        return drawn[self.share] * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers `(b, *shape)`."""
        return torch.randn(self.count, *shape, generator=self.generator, device=self.device)[self.share]

    def integers(self, high: int) -> Tensor:
        """Integers `(b,)` in [0, high)."""
        return torch.randint(high, (self.count,), generator=self.generator, device=self.device)[self.share]

    def quaternions(self) -> Tensor:
        """Rotations `(b, 4)`."""
        return random_quaternions(self.count, self.generator)[self.share]


class BatchMaker:
    """Draws augmented batches, or this process's share of them.

    Every random number comes from `generator` (CPU), so that runs repeat; where the data are on a GPU, those of the
    augmentation come from one there, seeded with it, so that no step waits for the CPU.
    """

    def __init__(
        self,
        data: TrainingData,
        settings: TrainingSettings,
        generator: torch.Generator,
        share: Share | None = None,
    ) -> None:
        self.data, self.settings, self.generator = data, settings, generator
        self.share = share or Share()
        self.device = data.rotation.device
        self.on_device = generator if self.device.type == "cpu" else torch.Generator(self.device)

    def seed(self, seed: int) -> None:
        """Draw the same from here on as after any other call with `seed`."""
        self.generator.manual_seed(seed)
        self.on_device.manual_seed(seed)

    def make(self, rows: Tensor | Rows) -> Batch:
        """Make a batch of `len(rows)` images; the first part shows particles, the rest is simulated.

        Of that, this process's share. rows : those of particles come last.
        """
        rows = self.data.rows(rows) if isinstance(rows, Tensor) else rows
        count, projector = len(rows), self.data.projector
        simulated = simulated_images(count, self.settings) if projector is not None else 0
        parts = []
        if simulated < count:
            parts += self._shared(rows[simulated:], 0, self._particles)
        if projector is not None and simulated > 0:
            show = partial(self._simulated, projector=projector)
            parts += self._shared(rows[:simulated], count - simulated, show)
        return parts[0] if len(parts) == 1 else Batch(*map(torch.cat, zip(*parts, strict=True)))

    def _shared(self, rows: Rows, first: int, make: Callable[[Rows, _Draws], Batch]) -> list[Batch]:
        """This process's share of the images of `rows`, which are the batch's from `first` on; [] for none."""
        share = self.share.of(first)
        none = share.start >= len(rows)  # make one, as the others draw too, and throw it away
        share = slice(1) if none else share
        made = make(rows[share], _Draws(len(rows), share, self.on_device))
        return [] if none else [made]

    def _shift_px(self, draws: _Draws) -> Tensor:
        reach = self.settings.max_shift * self.data.images.shape[-1]
        return draws.uniform(2, low=-reach, high=reach)

    def _batch(self, images: Tensor, rotation: Tensor, shift: Tensor, rows: Rows, exact: bool) -> Batch:
        flag = torch.full((len(images),), exact, device=self.device)
        return Batch(finish(images, self.data.preprocessing), rotation, shift, flag, rows.device)

    def _particles(self, rows: Rows, draws: _Draws) -> Batch:
        """The particles of `rows`, augmented as the settings say."""
        if self.settings.augmentation == "full":
            return self._moved(rows, draws)
        images = self.data.load(rows)
        if self.settings.augmentation == "noise":
            images = self._noisier(images, draws)
        shift = self.data.shift
        known = images.new_zeros(len(images), 2) if shift is None else shift[rows.device]
        return self._batch(images, self.data.rotation[rows.device], known, rows, exact=False)

    def _noisier(self, images: Tensor, draws: _Draws) -> Tensor:
        """Add noise of the images' own strength, measured at the rim: the s.d. grows by up to noise_range."""
        excess = draws.uniform(low=1, high=self.settings.noise_range).square() - 1
        noise = draws.normal(*images.shape[1:])
        return images + (excess.sqrt() * rim_deviation(images))[:, None, None] * noise

    def _moved(self, rows: Rows, draws: _Draws) -> Batch:
        """The particles of `rows`, mirrored, rotated, shifted and with a little noise added."""
        angle, mirrored = draws.uniform(high=2 * math.pi), draws.uniform() < 0.5
        images = transform_images(self.data.load(rows), angle, mirrored)
        shift, size = self._shift_px(draws), images.shape[-1]
        images = self._noisier(shift_images(images, -shift), draws)
        rotation = roma.quat_product(self.data.rotation[rows.device], in_plane_operation(angle, mirrored))
        return self._batch(images, rotation, shift / size, rows, exact=False)

    def _simulated(self, rows: Rows, draws: _Draws, projector: Projector) -> Batch:
        """The reference in random poses, with the noise (image minus projection) of `rows`.

        The CTFs are those of other particles, drawn at random; where images are multiplied by their CTF,
        which shapes the noise too, they are the particle's own.
        """
        b, size = len(rows), projector.box_px
        own_transfer = self.data.transfer(rows.device)
        transfer = own_transfer
        if self.data.ctf_mode != "multiply":
            transfer = self.data.transfer(draws.integers(len(self.data.rotation)))
        rotation = draws.quaternions()
        slices = projector.slices(
            roma.unitquat_to_rotmat(torch.cat([rotation, self.data.rotation[rows.device]]))
        )
        signal, explained = slices[:b] * transfer, slices[b:] * own_transfer
        shift = self._shift_px(draws)
        signal, explained = torch.fft.fftshift(
            torch.fft.irfft2(torch.stack([shift_transform(signal, -shift), explained]), s=(size, size)),
            dim=(-2, -1),
        )
        noise = self.data.load(rows) - explained
        turns, mirrored = draws.integers(4), draws.uniform() < 0.5
        noise = quarter_turns(torch.where(mirrored[:, None, None], mirror(noise), noise), turns)
        spread = math.log(self.settings.noise_range)
        strength = draws.uniform(low=-spread, high=spread).exp()
        images = signal + strength[:, None, None] * noise
        return self._batch(images, rotation, shift / size, rows, exact=True)

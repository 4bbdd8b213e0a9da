"""Correlation of one half map with the other one turned, in the resolved shells that both have seen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum_plugin.images.fourier import soft_mask
from cryoforum_plugin.images.projector import Projector, sample_half
from cryoforum_plugin.maps.rebuilt import Unsymmetrised
from cryoforum_plugin.particles import FloatArray
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation

RESOLVED = 0.143
FIRST_SHELL = 2
FEWEST_SHELLS = 4
SEEN = 0.1  # of the shell's mean weight: frequencies below it count as not seen
MASK_RADIUS, MASK_EDGE = 0.4, 0.08  # of the box
MOST_POINTS = 60_000
FEWEST_POINTS = 100


@dataclass(frozen=True)
class Correlation:
    """Mean correlation of resolved shells, of half 1 with half 2 turned, and of the same frequencies unturned.

    standard_error : of the difference.
    """

    turned: float
    unturned: float
    standard_error: float

    @property
    def ratio(self) -> float:
        """Turned over unturned: 1 for a symmetry of the map, but for noise."""
        return self.turned / self.unturned


@dataclass(frozen=True)
class HalfMaps:
    """Transforms of two masked half maps, ready to be sampled anywhere.

    points : `(K, 3)` xyz frequencies of the resolved shells, half of them (kx >= 0). shell : `(K,)`.
    independent : part of the frequencies that is independent, from the volume of the mask.
    """

    projectors: tuple[Projector, Projector]
    weights: tuple[Tensor, Tensor]
    points: Tensor
    shell: Tensor
    independent: float

    @classmethod
    def of(cls, maps: Unsymmetrised) -> HalfMaps | None:
        """None where fewer than FEWEST_SHELLS shells are resolved."""
        n = len(maps.halves[0])
        mask = soft_mask(n, MASK_RADIUS * n, MASK_EDGE * n, 3)
        first, second = (volume * mask for volume in maps.halves)
        fsc = fourier_shell_correlation(first, second)
        below = torch.nonzero(fsc[FIRST_SHELL : n // 2] < RESOLVED)
        end = FIRST_SHELL + int(below[0]) if len(below) else n // 2
        if end - FIRST_SHELL < FEWEST_SHELLS:
            return None
        axis = torch.arange(-end, end + 1)
        k = torch.cartesian_prod(axis[end:], axis, axis)  # xyz, kx >= 0
        shell = k.float().norm(dim=1).round().long()
        inside = (shell >= FIRST_SHELL) & (shell < end)
        chosen = torch.nonzero(inside)[:, 0]
        if len(chosen) > MOST_POINTS:
            generator = torch.Generator().manual_seed(1)
            chosen = chosen[torch.randperm(len(chosen), generator=generator)[:MOST_POINTS]]
        thinned = len(chosen) / int(inside.sum())
        weights = tuple(_relative(weight) for weight in maps.weights)
        return cls(
            (Projector(first, 1.0), Projector(second, 1.0)),
            (weights[0], weights[1]),
            k[chosen].float(),
            shell[chosen],
            min(1.0, float(mask.square().mean()) / thinned),
        )

    @cached_property
    def _first(self) -> tuple[Tensor, Tensor, Tensor]:
        values, seen = self._sampled(0, self.points)
        other, seen_too = self._sampled(1, self.points)
        return values, other, seen & seen_too

    def correlate(self, turn: FloatArray) -> Correlation | None:
        """Compare half 1 with half 2 turned by the quaternion `turn` `(4,)` XYZW, an operator of the volume.

        Only frequencies that both halves have seen, turned and unturned, are compared. Shell by shell the mean is
        removed: what is the same in all directions fits every turn. None where too few frequencies are left.
        """
        S = torch.from_numpy(Rotation.from_quat(np.asarray(turn)).as_matrix()).float()
        back = self.points @ S  # S^-1 k
        turned, seen2 = self._sampled(1, back)
        own, seen1 = self._sampled(0, back)
        values, other, seen = self._first
        used = seen & seen1 & seen2
        if int(used.sum()) < FEWEST_POINTS:
            return None
        shell = self.shell[used]
        crossed = _by_shell(values[used], turned[used], shell)
        straight = (
            _by_shell(values[used], other[used], shell) + _by_shell(own[used], turned[used], shell)
        ) / 2
        count = torch.bincount(shell, minlength=len(crossed)).double()
        return _mean(crossed, straight, count, self.independent)

    def _sampled(self, half: int, k: Tensor) -> tuple[Tensor, Tensor]:
        """Values `(K,)` complex of a half at frequencies k `(K, 3)` xyz, and where it has seen anything."""
        projector, weight = self.projectors[half], self.weights[half]
        mirrored = k[:, :1] < 0
        positive = torch.where(mirrored, -k, k)
        real, imaginary = sample_half(projector.transform, positive * projector.padding, projector.limit)
        value = torch.complex(real, torch.where(mirrored[:, 0], -imaginary, imaginary))
        m = len(weight)
        x, y, z = (positive * (m // projector.box_px)).round().long().unbind(1)
        return value, weight[z % m, y % m, x.clamp(max=m // 2)] > SEEN


def _relative(weight: Tensor) -> Tensor:
    """Weights `(m, m, m // 2 + 1)` over the mean of those of their shell that are not 0."""
    m = len(weight)
    full, half = torch.fft.fftfreq(m, 1 / m).square(), torch.fft.rfftfreq(m, 1 / m).square()
    shell = (full[:, None, None] + full[:, None] + half).sqrt().round().long().flatten()
    flat = weight.flatten()
    total = torch.bincount(shell, flat.double())
    count = torch.bincount(shell, (flat > 0).double()).clamp(min=1)
    return (flat / (total / count).clamp(min=1e-30)[shell]).view_as(weight).float()


def _by_shell(a: Tensor, b: Tensor, shell: Tensor) -> Tensor:
    """Correlation of complex a, b `(K,)` in each shell, without their means; 0 in shells that hold nothing."""
    a, b = _without_mean(a, shell), _without_mean(b, shell)
    cross = torch.bincount(shell, (a * b.conj()).real)
    power = torch.bincount(shell, a.abs().square()) * torch.bincount(shell, b.abs().square())
    return torch.where(power > 0, cross / power.clamp(min=1e-300).sqrt(), torch.zeros_like(cross))


def _without_mean(values: Tensor, shell: Tensor) -> Tensor:
    values = values.to(torch.complex128)
    count = torch.bincount(shell).clamp(min=1)
    mean = torch.complex(torch.bincount(shell, values.real), torch.bincount(shell, values.imag)) / count
    return values - mean[shell]


def _mean(crossed: Tensor, straight: Tensor, count: Tensor, independent: float) -> Correlation | None:
    """Mean over shells, weighted by frequencies and by how well the shell is resolved."""
    weight = count * straight.clamp(0, 1) * (straight > RESOLVED)
    if float(weight.sum()) <= 0 or int((weight > 0).sum()) < FEWEST_SHELLS:
        return None
    share = weight / weight.sum()
    real = 2 * count.clamp(min=1) * independent  # real numbers that are independent
    variance = share.square() * ((1 - crossed.square()).square() + (1 - straight.square()).square()) / real
    return Correlation(
        float((share * crossed).sum()), float((share * straight).sum()), float(variance.sum().sqrt())
    )

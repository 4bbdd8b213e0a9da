"""CTF-weighted back-projection: slices are added into a Fourier volume and divided by what was added."""

from __future__ import annotations

import torch
from torch import Tensor

from cryoforum_plugin.images.fourier import frequency_grid, radial_sum, shell_index
from cryoforum_plugin.images.projector import divide_by_sinc2, sample_half

POINTS_PER_PASS = 2**21  # slice points handled at once: bounds the memory to about 100 MB


class BackProjector:
    """Accumulates central slices of one map with trilinear weights; the half kx >= 0 is kept.

    Parameters
    ----------
    box_px : even size of images and map. padding : factor by which the Fourier grid is finer. Measured
        on 3,000 particles of the 70S map (64 px, SNR 0.1): FSC with the truth at shell 20 is 0.70 with 2
        and 0.64 with 1, at equal speed; 2 takes 8 times the memory.
    """

    def __init__(self, box_px: int, device: torch.device | str = "cpu", padding: int = 2) -> None:
        if box_px % 2:
            raise ValueError(f"the box must be even: got {box_px}")
        self.box_px = box_px
        self.padded_px = padding * box_px
        self.device = torch.device(device)
        shape = (self.padded_px, self.padded_px, self.padded_px // 2 + 1)
        self.real, self.imaginary, self.weight = (torch.zeros(shape, device=device) for _ in range(3))
        ky, kx = (k.flatten() for k in frequency_grid(box_px, device))
        # half the column kx = 0 repeats the other half; k >= box / 2 is left out as in Projector
        used = (kx.square() + ky.square() < (box_px / 2) ** 2) & ((kx > 0) | (ky >= 0))
        self.used = used.nonzero()[:, 0]
        self.points = torch.stack([kx, ky], -1)[self.used] * padding  # (K, 2) xy
        self.share = torch.ones(len(self.used), device=device)
        self.share[0] = 0.5  # frequency 0 is its own Friedel mate

    @torch.no_grad()
    def insert(
        self, images_ft: Tensor, R: Tensor, ctf: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Add images with their CTF: F * CTF to the data, CTF^2 to the weight.

        images_ft : `(n, box, box // 2 + 1)` complex, rfft2 of images with the particle centred at
        pixel [0, 0] (`ifftshift` first, shift removed). R : `(n, 3, 3)` image xyz to volume xyz.
        ctf : `(n, box, box // 2 + 1)` or None for 1. weights : `(n,)` or None for 1.
        """
        one = torch.ones((), device=self.device) if ctf is None else ctf
        self.insert_weighted(images_ft * one, R, one.square().expand(images_ft.shape), weights)

    @torch.no_grad()
    def insert_weighted(self, data: Tensor, R: Tensor, weight: Tensor, weights: Tensor | None = None) -> None:
        """Add slices that the CTF is applied to already.

        data : `(n, box, box // 2 + 1)` complex, F * CTF. weight : same shape, real, CTF^2.
        For phase-flipped images pass data = F_flipped * |CTF|. Other arguments as in `insert`.
        """
        step = max(1, POINTS_PER_PASS // len(self.used))
        for start in range(0, len(data), step):
            rows = slice(start, start + step)
            factor = self.share
            if weights is not None:
                factor = factor * weights[rows].to(self.device, torch.float32)[:, None]
            with torch.autocast(self.device.type, enabled=False):
                values = data[rows].flatten(1)[:, self.used].to(torch.complex64) * factor
                added = weight[rows].flatten(1)[:, self.used].float() * factor
                self._add(values, added, R[rows].to(self.device, torch.float32))

    def _add(self, values: Tensor, weight: Tensor, R: Tensor) -> None:
        """Spread `(n, K)` values over the eight grid points around R @ k."""
        size = self.padded_px
        k = self.points @ R[:, :, :2].transpose(1, 2)  # (n, K, 3) xyz
        mirrored = k[..., 0] < 0
        k = torch.where(mirrored[..., None], -k, k).flatten(0, 1)
        real, weight = values.real.flatten(), weight.flatten()
        imaginary = torch.where(mirrored, -values.imag, values.imag).flatten()
        low = k.floor()
        fraction = (k - low).unbind(-1)
        x0, y0, z0 = low.long().unbind(-1)
        xs = [(x0, 1 - fraction[0]), ((x0 + 1).clamp(max=size // 2), fraction[0])]
        ys = [(y % size * (size // 2 + 1), f) for y, f in ((y0, 1 - fraction[1]), (y0 + 1, fraction[1]))]
        zs = [
            (z % size * (size * (size // 2 + 1)), f)
            for z, f in ((z0, 1 - fraction[2]), (z0 + 1, fraction[2]))
        ]
        for z, fz in zs:
            for y, fy in ys:
                zy, fzy = z + y, fz * fy
                for x, fx in xs:
                    index, f = zy + x, fzy * fx
                    self.real.view(-1).index_add_(0, index, real * f)
                    self.imaginary.view(-1).index_add_(0, index, imaginary * f)
                    self.weight.view(-1).index_add_(0, index, weight * f)

    def __iadd__(self, other: BackProjector) -> BackProjector:
        """Add what another back-projector of the same size has collected (the other half set)."""
        for name in ("real", "imaginary", "weight"):
            getattr(self, name).add_(getattr(other, name))
        return self

    @torch.no_grad()
    def symmetrise(self, operators: Tensor) -> None:
        """Average data and weight over a point group, `(g, 3, 3)` operators of the volume (xyz).

        Rotates what was collected rather than inserting every copy of every slice: much faster for
        large groups, and on D7 with noise slightly better (it interpolates once more).
        """
        size, half = self.padded_px, self.padded_px // 2
        if len(operators) == 1:
            return
        rows = torch.arange(-half, half + 1, device=self.device) % size
        volume = torch.stack(self._complete())[:, rows][:, :, rows][
            None
        ]  # (1, 3, size + 1, size + 1, half + 1)
        full = torch.fft.fftfreq(size, 1 / size, device=self.device)
        positive = torch.arange(half + 1.0, device=self.device)
        planes = max(1, POINTS_PER_PASS // (size * (half + 1)))
        for start in range(0, size, planes):
            chunk = slice(start, start + planes)
            k = torch.stack(torch.meshgrid(full[chunk], full, positive, indexing="ij")[::-1], -1)  # xyz last
            total = torch.zeros(3, *k.shape[:3], device=self.device)
            for operator in operators.to(self.device, torch.float32):
                total += _rotated(volume, k, operator, half)
            total[..., 0] /= 2  # `_complete` adds the mirrored half of this plane again
            self.real[chunk], self.imaginary[chunk], self.weight[chunk] = total / len(operators)

    def _complete(self) -> tuple[Tensor, Tensor, Tensor]:
        """Real part, imaginary part and weight with the plane kx = 0 completed by its Friedel mates."""
        parts = (self.real, 1.0), (self.imaginary, -1.0), (self.weight, 1.0)
        real, imaginary, weight = (_with_friedel_plane(values, sign) for values, sign in parts)
        return real, imaginary, weight

    def weights_of_frequencies(self) -> Tensor:
        """Weight `(padded, padded, padded // 2 + 1)` of each frequency, rfftn layout."""
        return _with_friedel_plane(self.weight)

    def shell_weight(self) -> Tensor:
        """Mean weight `(box // 2 + 1,)` of the shells, in steps of one frequency of the box."""
        weight = _with_friedel_plane(self.weight)
        count = radial_sum(torch.ones_like(weight), 3)
        mean = radial_sum(weight, 3) / count
        return mean[:: self.padded_px // self.box_px]

    def volume(self, regularisation: float | Tensor = 1e-3) -> Tensor:
        """Divide, transform back and undo the interpolation: `(box, box, box)` zyx float32.

        regularisation : added to the weight in units of the shell's mean weight, one number or one per
            shell `(box // 2 + 1,)`; `fsc.wiener_regularisation` gives the Wiener filter.
        """
        size, box = self.padded_px, self.box_px
        ratio = torch.as_tensor(regularisation, dtype=torch.float32, device=self.device).expand(box // 2 + 1)
        added = ratio * self.shell_weight()
        shell = (shell_index(size, 3, self.device) * box // size).clamp(max=box // 2)
        real, imaginary, weight = self._complete()
        weight += added[shell]
        data = torch.complex(real, imaginary)
        density = torch.where(weight > 0, data / weight.clamp(min=1e-30), torch.zeros_like(data))
        padded: Tensor = torch.fft.fftshift(torch.fft.irfftn(density, s=(size,) * 3))
        margin = size // 2 - box // 2
        inner = slice(margin, margin + box)
        return divide_by_sinc2(padded[inner, inner, inner], size)


def _rotated(volume: Tensor, k: Tensor, operator: Tensor, limit: int) -> Tensor:
    """Values `(3, ...)` of real part, imaginary part and weight at operator^-1 @ k for k `(..., 3)` xyz."""
    p = k @ operator
    mirrored = p[..., 0] < 0
    sampled = sample_half(volume, torch.where(mirrored[..., None], -p, p), limit)
    sampled[1] = torch.where(mirrored, -sampled[1], sampled[1])
    return sampled


def _with_friedel_plane(values: Tensor, sign: float = 1.0) -> Tensor:
    """Complete the plane kx = 0, which holds a point's own value only: add the mirrored one."""
    completed = values.clone()
    mirrored = values[..., 0].flip(0, 1).roll((1, 1), (0, 1))
    completed[..., 0] += sign * mirrored
    return completed

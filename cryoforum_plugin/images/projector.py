"""Projections of a volume: central slices of its Fourier transform."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cryoforum_plugin.images.fourier import frequency_grid, shift_transform


class Projector(nn.Module):
    """Central slices of a volume, differentiable in the orientations and in a volume that is being learned.

    The volume is divided by sinc^2 (what trilinear interpolation in Fourier space multiplies it with),
    padded with zeros and transformed once; only the half with kx >= 0 is kept. No gradient reaches the volume
    given here; `slices` and `project` take another one of its shape to which gradients flow, and transform it
    at each call.

    Parameters
    ----------
    volume : `(n, n, n)` zyx, even n, particle about index n // 2. pixel_size_A : its voxel size.
    box_px : size of the projections, even, at most n. A smaller box leaves out high frequencies: same
        field of view, pixel size `pixel_size_A * n / box_px`, pixel values as `fourier_crop` of the full
        projection would have, that is sums along the beam over voxels of the given volume.
    padding : factor of zero padding; 2 is accurate to about 0.1 %, 1 is smaller and worse.

    Frequencies with |k| >= box_px / 2 are 0 (the same in every orientation; the corners of the square
    are not used). All arithmetic is float32, whatever autocast says.

    Raises ValueError for a volume or box that is not even, or a box above the volume's.
    """

    transform: Tensor
    points: Tensor
    inside: Tensor

    def __init__(
        self, volume: Tensor, pixel_size_A: float, box_px: int | None = None, padding: int = 2
    ) -> None:
        super().__init__()
        n = volume.shape[-1]
        box = n if box_px is None else box_px
        if volume.shape != (n, n, n) or n % 2:
            raise ValueError(f"a volume to project must be an even cube: got {tuple(volume.shape)}")
        if box % 2 or not 0 < box <= n:
            raise ValueError(f"the box of projections must be even and at most {n}: got {box}")
        self.box_px = box
        self.pixel_size_A = pixel_size_A * n / box
        self.limit = padding * box // 2  # highest padded frequency that a slice touches
        self.padding = padding
        self.volume_px = n
        self.register_buffer("transform", self._transformed(volume.detach()))
        ky, kx = frequency_grid(box, volume.device)
        inside = (kx.square() + ky.square() < (box / 2) ** 2).flatten().nonzero()[:, 0]
        xy = torch.stack([kx, ky], -1).flatten(0, 1)[inside] * padding
        self.register_buffer("points", xy)  # (K, 2) xy, padded frequencies
        self.register_buffer("inside", inside)

    def slices(self, R: Tensor, volume: Tensor | None = None) -> Tensor:
        """Cut central slices at orientations R `(n, 3, 3)` (image xyz to volume xyz).

        volume : projected instead of the constructor's, same shape, differentiable; None = the constructor's.
        Returns `(n, box, box // 2 + 1)` complex64, rfft2 layout, DC at [0, 0], real-space origin at
        [0, 0]: `fftshift(irfft2(slices))` is the projection centred on pixel n // 2.
        """
        with torch.autocast(R.device.type, enabled=False):
            k = self.points @ R.float()[:, :, :2].transpose(1, 2)  # (n, K, 3) xyz
            mirrored = k[..., :1] < 0  # Friedel's law: F(-k) is the conjugate of F(k)
            transform = self.transform if volume is None else self._transformed(volume)
            sampled = sample_half(transform, torch.where(mirrored, -k, k), self.limit)  # (2, n, K)
            imaginary = torch.where(mirrored[..., 0], -sampled[1], sampled[1])
            values = torch.complex(sampled[0], imaginary)
            plane = values.new_zeros(len(R), self.box_px * (self.box_px // 2 + 1))
            return plane.index_copy(1, self.inside, values).view(-1, self.box_px, self.box_px // 2 + 1)

    def project(
        self,
        R: Tensor,
        ctf: Tensor | None = None,
        shift_A: Tensor | None = None,
        volume: Tensor | None = None,
    ) -> Tensor:
        """Make images `(n, box, box)` float32, particle about pixel n // 2.

        R : `(n, 3, 3)`. ctf : `(n, box, box // 2 + 1)` or None (see `images.ctf.ctf_2d`). shift_A :
        `(n, 2)` x, y: the particle stands displaced by -shift, so that moving the content by +shift
        centres it (RELION's origin). volume : as in `slices`.
        """
        with torch.autocast(R.device.type, enabled=False):
            slices = self.slices(R, volume)
            if ctf is not None:
                slices = slices * ctf
            if shift_A is not None:
                slices = shift_transform(slices, -shift_A / self.pixel_size_A)
            images: Tensor = torch.fft.irfft2(slices, s=(self.box_px, self.box_px))
            return images.roll((self.box_px // 2,) * 2, (-2, -1))

    def _transformed(self, volume: Tensor) -> Tensor:
        """Transform of the padded volume: `(1, 2, 2 limit + 1, 2 limit + 1, limit + 1)` re, im; zyx."""
        n, limit = self.volume_px, self.limit
        if volume.shape != (n, n, n):
            raise ValueError(f"a volume of {n} voxels a side is needed: got {tuple(volume.shape)}")
        padded_px = self.padding * n
        with torch.autocast(volume.device.type, enabled=False):
            corrected = divide_by_sinc2(volume.float(), padded_px) * (self.box_px / n) ** 2
            margin = padded_px // 2 - n // 2
            padded = torch.fft.ifftshift(functional.pad(corrected, [margin, padded_px - n - margin] * 3))
            transform = torch.fft.rfftn(padded)[..., : limit + 1]
        # -limit ... limit; at the padded Nyquist (limit = padded / 2) both ends are the same plane
        rows = torch.arange(-limit, limit + 1, device=volume.device) % padded_px
        transform = transform[rows][:, rows]
        return torch.stack([transform.real, transform.imag])[None].contiguous()


def sample_half(half: Tensor, k: Tensor, limit: int) -> Tensor:
    """Interpolate a half volume `(1, c, 2 limit + 1, 2 limit + 1, limit + 1)` zyx at k `(..., 3)` xyz.

    Index limit is frequency 0 along z and y, index 0 along x; kx must be >= 0. Returns `(c, ...)`; 0 outside.
    """
    x, y, z = k.unbind(-1)
    grid = torch.stack([x * (2 / limit) - 1, y * (1 / limit), z * (1 / limit)], -1)  # the ends at -1 and 1
    # on a CPU torch shares whole volumes among the cores; each would need a gradient of its own
    shared = half.device.type == "cpu" and not half.requires_grad
    parts = torch.get_num_threads() if shared else 1
    points = grid.reshape(-1, 3)
    points = functional.pad(points, (0, 0, 0, -len(points) % parts)).view(parts, 1, 1, -1, 3)
    found = functional.grid_sample(half.expand(parts, -1, -1, -1, -1), points, align_corners=True)
    flat = found.transpose(0, 1).flatten(1)[:, : grid[..., 0].numel()]
    return flat.reshape(half.shape[1], *k.shape[:-1])


def sinc2_1d(size_px: int, padded_px: int, device: torch.device | str) -> Tensor:
    """sinc^2 `(size,)` about index size // 2 that linear interpolation on a `padded_px` grid leaves."""
    x = torch.arange(size_px, device=device, dtype=torch.float32) - size_px // 2
    return torch.sinc(x / padded_px).square()


def divide_by_sinc2(volume: Tensor, padded_px: int) -> Tensor:
    """Divide a zyx volume by the separable sinc^2 of trilinear interpolation on a `padded_px` grid."""
    s = sinc2_1d(volume.shape[-1], padded_px, volume.device)
    return volume / (s[:, None, None] * s[None, :, None] * s[None, None, :])

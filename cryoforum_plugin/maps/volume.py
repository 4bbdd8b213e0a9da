"""Maps on their way to a projector: reading, making even, resampling, low-pass, phase randomisation."""

from __future__ import annotations

import math
from pathlib import Path

import mrcfile
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.images.fourier import soft_mask

ROUNDING = 1e-8  # of a map's largest shell power: what is below is rounding
PLUNGE = 100.0  # the end of a filtered map: power falls by this factor ...
PLUNGE_WIDTH = 0.05  # ... within this part of the frequency, or two shells
FIRST_END = 3  # shell; before, a compact particle's form factor falls as steeply


def read_map(
    path: Path, pixel_size_A: float | None = None, remedy: str = "pass --pixel-size"
) -> tuple[Tensor, float]:
    """Read a cubic MRC map as zyx float32, made even (`make_even`), and its pixel size in Å.

    pixel_size_A : overrides the header's. remedy : what to do where there is neither, for the message.
    Raises ImageStackError if the file is missing, damaged, not a cube, not finite, or of unknown pixel size.
    """
    if not path.is_file():
        raise ImageStackError(f"{path}: no such map")
    try:
        with mrcfile.open(path) as file:
            data, header_A = np.array(file.data, dtype=np.float32), float(file.voxel_size.x)
    except (ValueError, OSError) as error:
        raise ImageStackError(f"{path}: not a readable MRC map: {error}") from error
    if data.ndim != 3 or len(set(data.shape)) != 1:
        raise ImageStackError(
            f"{path}: a cubic map is needed, this one is {' x '.join(map(str, data.shape))}"
        )
    if not np.isfinite(data).all():
        raise ImageStackError(f"{path}: the map holds NaN or infinite voxels")
    used_A = header_A if pixel_size_A is None else pixel_size_A
    if not used_A > 0:
        raise ImageStackError(f"{path}: the header gives no pixel size; {remedy}")
    return make_even(torch.from_numpy(data)), used_A


def make_even(volume: Tensor) -> Tensor:
    """Give an odd cube one plane of solvent at the low end of each axis, so that its centre stays at n // 2."""
    if volume.shape[-1] % 2 == 0:
        return volume
    return functional.pad(volume, [1, 0] * 3, value=solvent_level(volume))


def solvent_level(volume: Tensor) -> float:
    """Median of a cube outside the sphere that fills its box."""
    n = volume.shape[-1]
    axis = (torch.arange(n) - n // 2).square()
    radius = (axis[:, None, None] + axis[:, None] + axis).sqrt()
    return float(volume[radius > 0.47 * n].median())


def resample(volume: Tensor, pixel_size_A: float, size_px: int, new_pixel_size_A: float) -> Tensor:
    """Resample a cube to `(size_px,) * 3` voxels of another size about the same centre, index n // 2.

    Band-limited interpolation: frequencies that either sampling cannot hold are left out, values are kept,
    and what lies outside the given cube is 0.
    """
    n = volume.shape[-1]
    highest = math.ceil(min(n / 2, n * pixel_size_A / (2 * new_pixel_size_A))) - 1
    place = (torch.arange(size_px).double() - size_px // 2) * new_pixel_size_A / pixel_size_A + n // 2
    angle = (place[:, None] - torch.arange(n).double()) * (2 * math.pi / n)
    kernel = torch.ones_like(angle)  # the Dirichlet kernel, summed where its closed form would be 0 / 0
    for k in range(1, highest + 1):
        kernel += 2 * torch.cos(k * angle)
    kernel *= ((place > -0.5) & (place < n - 0.5))[:, None] / n
    weights = kernel.float().to(volume.device)
    for _ in range(3):  # each product moves one axis to the end
        volume = torch.tensordot(volume.float(), weights, dims=([0], [1]))
    return volume


def low_pass(volume: Tensor, pixel_size_A: float, resolution_A: float) -> Tensor:
    """Suppress frequencies above 1 / resolution_A with a logistic edge of 2 % width."""
    frequency = _frequency(volume.shape[-1]) / pixel_size_A  # 1/Å
    cut = 1 / resolution_A
    filtered = torch.fft.rfftn(volume) * torch.sigmoid((cut - frequency) / (0.02 * cut))
    result: Tensor = torch.fft.irfftn(filtered, s=volume.shape)
    return result


def last_shell(power: Tensor) -> int:
    """Last shell of a map that was filtered or resampled: beyond, its mean power `(n // 2 + 1,)` plunges and stays low."""
    most = (
        power.double().flip(0).cummax(0).values.flip(0)
    )  # of a shell and all beyond: nulls of a form factor do not count
    for shell in range(FIRST_END, len(most) - 1):
        after = min(shell + max(2, round(PLUNGE_WIDTH * shell)), len(most) - 1)
        if most[shell] < ROUNDING * most[1]:
            return shell - 1
        if most[after] < most[shell] / PLUNGE:
            return shell
    return len(most) - 1


def randomise_phases(volume: Tensor, generator: torch.Generator) -> Tensor:
    """Make another particle: same power spectrum, size and variance as `volume`, no shared structure.

    All phases are drawn anew (those of white noise), then the density is confined to the sphere that
    holds 99 % of the original's squared density.
    """
    n = volume.shape[-1]
    noise = torch.fft.rfftn(torch.randn(volume.shape, generator=generator))
    noise = noise / noise.abs().clamp(min=1e-12)
    other = torch.fft.irfftn(torch.fft.rfftn(volume).abs() * noise, s=volume.shape)
    other = other * soft_mask(n, _radius_px(volume, 0.99), 0.05 * n, 3)
    scaled: Tensor = other * (volume.square().sum() / other.square().sum()).sqrt()
    return scaled


def _radius_px(volume: Tensor, fraction: float) -> float:
    """Radius about n // 2 that holds `fraction` of the summed squared density."""
    n = volume.shape[-1]
    axis = (torch.arange(n) - n // 2).square()
    shell = (axis[:, None, None] + axis[:, None] + axis).sqrt().long().flatten()
    energy = torch.zeros(math.ceil(n * 0.9)).index_add_(0, shell, volume.square().flatten()).cumsum(0)
    return float((energy < fraction * energy[-1]).sum()) + 1.0


def _frequency(n: int) -> Tensor:
    """|k| in cycles per voxel, rfftn layout."""
    full: Tensor = torch.fft.fftfreq(n).square()
    half: Tensor = torch.fft.rfftfreq(n).square()
    return (full[:, None, None] + full[:, None] + half).sqrt()

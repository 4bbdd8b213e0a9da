"""Gaussian blobs: a volume whose projections are known exactly."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum_plugin.geometry import symmetry_group

SIGMA_PX = 1.5


def blob_positions(n: int = 12, radius_px: float = 8.0, seed: int = 3) -> NDArray[np.float64]:
    """Centres `(n, 3)` xyz in px relative to the volume's centre, inside a ball; no symmetry."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal((n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return direction * radius_px * rng.random((n, 1)) ** (1 / 3)


def positions_with(symmetry: str, blobs: int = 2, seed: int = 3) -> NDArray[np.float64]:
    """Blob centres `(n, 3)` xyz with the group `symmetry`, `blobs` of them independent, 7 to 10 px from 0."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((blobs, 3))
    own *= (rng.uniform(7, 10, blobs) / np.linalg.norm(own, axis=1))[:, None]
    group = Rotation.from_quat(symmetry_group(symmetry))
    return np.concatenate([operator.apply(own) for operator in group])


def blob_volume(positions: NDArray[np.float64], size: int = 32) -> Tensor:
    """Volume `(size, size, size)` zyx of unit blobs about index size // 2."""
    axis = np.arange(size) - size // 2
    x, y, z = (np.exp(-((axis - p[:, None]) ** 2) / (2 * SIGMA_PX**2)) for p in positions.T)
    return torch.from_numpy(np.einsum("nz,ny,nx->zyx", z, y, x)).float()


def blob_projections(
    positions: NDArray[np.float64],
    R: NDArray[np.float64],
    size: int = 32,
    shift_px: NDArray[np.float64] | None = None,
) -> Tensor:
    """Exact projections `(m, size, size)` at R `(m, 3, 3)` (image to volume), displaced by -shift_px."""
    seen = np.einsum("mji,nj->mni", R, positions)[..., :2]  # R^T maps volume to image
    if shift_px is not None:
        seen = seen - shift_px[:, None, :]
    axis = np.arange(size) - size // 2
    x, y = (np.exp(-((axis - seen[..., i, None]) ** 2) / (2 * SIGMA_PX**2)) for i in (0, 1))
    images = np.einsum("mny,mnx->myx", y, x) * SIGMA_PX * np.sqrt(2 * np.pi)
    return torch.from_numpy(images).float()


def random_matrices(n: int, seed: int = 5) -> NDArray[np.float64]:
    """Uniform rotation matrices `(n, 3, 3)`."""
    return np.asarray(Rotation.random(n, rng=np.random.default_rng(seed)).as_matrix())


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation `(n,)` of images `(n, ...)`."""
    a, b = a.flatten(1), b.flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))

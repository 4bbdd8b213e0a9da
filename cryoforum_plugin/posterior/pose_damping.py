"""How much uncertain poses damp the transforms of images, by frequency.

Let a pose be off by a small turn w of the image frame, of covariance S (rad^2), and by a shift of s.d. s along x and
y. What the image shows at k belongs at k + w x k. In a density of mean square coordinate rho^2 about its centre two
points of the transform apart by d correlate as exp(-2 pi^2 rho^2 d^2) (exactly so for a Gaussian). Averaged over
normal w that is
    1 / sqrt(1 + c k'(tr(S) I - S)k + c^2 k^2 k' adj(S) k),    c = 4 pi^2 rho^2,
to first order exp(-2 pi^2 rho^2 k'(tr(S) I - S)k), and the shift multiplies it by exp(-2 pi^2 s^2 k^2).
"""

from __future__ import annotations

import math

import roma
import torch
from torch import Tensor

from cryoforum_plugin.posterior.bingham import matrix_from_upper

LARGEST_VARIANCE = 1.0  # rad^2 about an axis; beyond, every turn is about as likely
_IN_PLANE = 8  # directions of k that a shell's mean is taken over


def mean_square_coordinate_A2(diameter_A: float) -> float:
    """rho^2 in Å^2 of a uniform ball of this diameter."""
    return diameter_A**2 / 20


def image_covariance(bingham: Tensor) -> Tensor:
    """Covariance `(n, 3, 3)` rad^2, float64, of the turn w (image frame, R exp(w)) of posteriors `(n, 10)`.

    Principal axis i has variance 2 / g_i; it is read off the eigenvectors as q^-1 v_i, q the mode.
    """
    values, vectors = torch.linalg.eigh(matrix_from_upper(bingham.double()))
    variance = (2 / (values[:, 1:] - values[:, :1]).clamp(min=1e-9)).clamp(max=LARGEST_VARIANCE)
    inverse = roma.quat_conjugation(vectors[:, :, 0])
    axes = roma.quat_product(inverse[:, None].expand(-1, 3, 4), vectors[:, :, 1:].mT)[
        ..., :3
    ]  # (n, axis, xyz)
    result: Tensor = torch.einsum("nai,na,naj->nij", axes, variance, axes)
    return result


def damping(covariance: Tensor, shift_sd_A: Tensor, rho2_A2: float, k_per_A: Tensor) -> Tensor:
    """Expected factor `(n, ...)` of the transforms at frequencies k `(..., 2)` xy in 1/Å of the image.

    covariance : `(n, 3, 3)` rad^2. shift_sd_A : `(n,)` along one axis.
    """
    k2 = k_per_A.square().sum(-1)
    xx, yy, xy = k_per_A[..., 0] ** 2, k_per_A[..., 1] ** 2, 2 * k_per_A[..., 0] * k_per_A[..., 1]
    s = covariance
    extra = (1,) * k2.ndim

    def quadratic(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Value a kx^2 + b ky^2 + 2 c kx ky."""
        x, y, z = (v.reshape(-1, *extra) for v in (a, b, c))
        return x * xx + y * yy + z * xy

    first = quadratic(s[:, 1, 1] + s[:, 2, 2], s[:, 0, 0] + s[:, 2, 2], -s[:, 0, 1])
    adjugate = quadratic(
        s[:, 1, 1] * s[:, 2, 2] - s[:, 1, 2] ** 2,
        s[:, 0, 0] * s[:, 2, 2] - s[:, 0, 2] ** 2,
        s[:, 0, 2] * s[:, 1, 2] - s[:, 0, 1] * s[:, 2, 2],
    )
    c = 4 * math.pi**2 * rho2_A2
    turned = (1 + c * first + c * c * k2 * adjugate).clamp(min=1).rsqrt()
    return turned * torch.exp(-2 * math.pi**2 * shift_sd_A.square().reshape(-1, *extra) * k2)


def shell_damping(covariance: Tensor, shift_sd_A: Tensor, rho2_A2: float, frequency_per_A: Tensor) -> Tensor:
    """Mean of `damping` over the directions of k in the image, by frequency `(shells,)` 1/Å: `(n, shells)`."""
    angle = torch.arange(_IN_PLANE, dtype=frequency_per_A.dtype) * (math.pi / _IN_PLANE)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    return damping(covariance, shift_sd_A, rho2_A2, frequency_per_A[:, None, None] * direction).mean(-1)

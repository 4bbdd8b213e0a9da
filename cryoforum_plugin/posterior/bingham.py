"""The Bingham distribution over rotations: p(q | A) = exp(-q'Aq) / Z(A) on unit quaternions.

A is a symmetric 4x4 matrix, stored as 10 numbers: the upper triangle row by row. With eigenvalues
l1 <= l2 <= l3 <= l4 and gaps g_i = l_(i+1) - l1 the mode is the eigenvector of l1, and small rotations
about the mode along principal axis i have variance 2 / g_i rad^2.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import roma
import torch
from torch import Tensor

from cryoforum_plugin.geometry import left_multiplication_matrix

_UPPER_ROW, _UPPER_COLUMN = torch.triu_indices(4, 4)
# Position of A[i, j] in the 10 numbers, for gathering the full matrix without scatter.
_POSITION = torch.tensor([[0, 1, 2, 3], [1, 4, 5, 6], [2, 5, 7, 8], [3, 6, 8, 9]])


@lru_cache(maxsize=8)
def _on(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The indices above on a device, copied once: a copy makes a GPU wait."""
    with torch.inference_mode(False):  # tensors cached during prediction must also serve training
        return _POSITION.to(device), _UPPER_ROW.to(device), _UPPER_COLUMN.to(device)


def matrix_from_upper(theta: Tensor) -> Tensor:
    """Symmetric matrix `(..., 4, 4)` from its upper triangle `(..., 10)`, row by row."""
    return theta[..., _on(theta.device)[0]]


def upper_from_matrix(matrix: Tensor) -> Tensor:
    """Upper triangle `(..., 10)`, row by row, of symmetric matrices `(..., 4, 4)`."""
    _, row, column = _on(matrix.device)
    return matrix[..., row, column]


@lru_cache(maxsize=4)
def _quadrature(device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes u and log weights of 96-point Gauss-Legendre in t, u = t^4, on [0, 1], float64."""
    nodes, weights = np.polynomial.legendre.leggauss(96)
    with torch.inference_mode(False):  # a tensor cached during prediction must also serve training
        t = torch.from_numpy((nodes + 1) / 2)
        log_weight = torch.from_numpy(np.log(weights / 2)) + torch.log(4 * t**3)
        return (t**4).to(device), log_weight.to(device)


def gaps(matrix: Tensor) -> Tensor:
    """Eigenvalue gaps `(..., 3)` in float64, ascending, of symmetric matrices `(..., 4, 4)`."""
    eigenvalues = torch.linalg.eigvalsh(matrix.double())
    result: Tensor = eigenvalues[..., 1:] - eigenvalues[..., :1]
    return result


def log_normaliser(gaps: Tensor) -> Tensor:
    """log Z `(...)` in float64 from ascending gaps `(..., 3)`, for the uniform probability measure on S3.

    Z = int_0^1 exp(-(1-u) g1/2) I0((1-u) g1/2) exp(-u (g2+g3)/2) I0(u (g3-g2)/2) du: the sphere split into
    two circles of squared radii 1-u and u; exact, finite gradient at ties, 0 for gaps 0.
    """
    g1, g2, g3 = gaps.double().unsqueeze(-1).unbind(-2)
    u, log_weight = _quadrature(gaps.device)
    first = torch.log(torch.special.i0e((1 - u) * g1 / 2))
    second = torch.log(torch.special.i0e(u * (g3 - g2) / 2)) - u * g2
    return torch.logsumexp(first + second + log_weight, dim=-1)


def negative_log_likelihood(matrix: Tensor, quaternion: Tensor, group: Tensor | None = None) -> Tensor:
    """-log p(q | A) `(...)` in nat, float64, against the uniform density on rotations.

    matrix : `(..., 4, 4)`. quaternion : `(..., 4)` XYZW labels. group : `(g, 4)` symmetry operators; the
    likelihood is then averaged over the equivalent labels S * q, so that no copy is preferred and the edge
    of the asymmetric unit does not tear.
    """
    a, q = matrix.double(), quaternion.double()
    eigenvalues = torch.linalg.eigvalsh(a)
    log_z = log_normaliser(eigenvalues[..., 1:] - eigenvalues[..., :1]) - eigenvalues[..., 0]
    if group is None or len(group) == 1:
        single: Tensor = log_z + torch.einsum("...i,...ij,...j->...", q, a, q)
        return single
    shape = (*q.shape[:-1], len(group), 4)
    copies = roma.quat_product(group.to(q).expand(shape), q.unsqueeze(-2).expand(shape))  # (..., g, 4)
    energy = torch.einsum("...gi,...ij,...gj->...g", copies, a, copies)
    result: Tensor = log_z + np.log(len(group)) - torch.logsumexp(-energy, dim=-1)
    return result


def mode(matrix: Tensor) -> Tensor:
    """Most likely rotation `(..., 4)` XYZW, float64, of matrices `(..., 4, 4)`; gradient damped at ties."""
    upper = upper_from_matrix(matrix.double())
    # the mode does not depend on the scale, but roma's damping does
    scale = upper.detach().abs().amax(-1, keepdim=True).clamp(min=1e-30)
    result: Tensor = roma.symmatrixvec_to_unitquat(upper / scale)
    return result


def matrix_about(quaternion: Tensor, precision: Tensor) -> Tensor:
    """Sharp Bingham matrices `(n, 4, 4)` with a given mode and precision of small turns about it.

    quaternion : `(n, 4)` XYZW. precision : `(n, 3, 3)` inverse covariance of the vector w, rad, volume frame
    (xyz), of rotations exp(w) R. exp(w) q is q + (w, 0) q / 2 to first order, so that
    A = 2 sum_ij P_ij t_i t_j' with t_i = (e_i, 0) q.
    """
    axes = torch.eye(3, 4, dtype=quaternion.dtype, device=quaternion.device)
    n = len(quaternion)
    tangents = roma.quat_product(axes.expand(n, 3, 4), quaternion[:, None].expand(n, 3, 4))
    matrix: Tensor = 2 * tangents.mT @ precision @ tangents
    return matrix


def align_to_copy(matrix: Tensor, reference: Tensor, group: Tensor) -> Tensor:
    """Rewrite A `(n, 4, 4)` for the symmetry copy whose mode is nearest to `reference` `(n, 4)`.

    If q has density exp(-q'Aq), then S * q has A' = L_S A L_S' with L_S the left multiplication by S.
    """
    shape = (len(matrix), len(group), 4)
    copies = roma.quat_product(
        group.to(matrix).expand(shape), mode(matrix).to(matrix).unsqueeze(1).expand(shape)
    )
    nearest = torch.einsum("ngi,ni->ng", copies, reference.to(matrix)).abs().argmax(1)
    left = left_multiplication_matrix(group.to(matrix)[nearest])
    return left @ matrix @ left.mT

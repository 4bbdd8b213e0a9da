"""What a head's numbers mean: numbers -> matrix A of a Bingham distribution over rotations."""

from __future__ import annotations

import math

import roma
import torch
from torch import Tensor, nn

from cryoforum_plugin.posterior import matrix_from_upper

NUMBERS = {"symmetric": 10, "qcqp": 10, "6d": 6, "quaternion": 4}

# Vectors shorter than this are not brought to length 1: bounds the gradients, and keeps the rounding error
# that is left of parallel vectors from becoming a direction.
SHORTEST = 1e-4


def quaternion_outer_product(rotation: Tensor) -> Tensor:
    """q q' `(..., 4, 4)` of the XYZW quaternion of rotation matrices `(..., 3, 3)`.

    4 q q' - I is linear in the rotation matrix (Davenport's K matrix), so that unlike for q itself no cases
    have to be told apart.
    """
    r = [row.unbind(-1) for row in rotation.unbind(-2)]
    trace = r[0][0] + r[1][1] + r[2][2]
    x, y, z = (2 * r[i][i] - trace for i in range(3))
    xy, xz, yz = r[0][1] + r[1][0], r[0][2] + r[2][0], r[1][2] + r[2][1]
    xw, yw, zw = r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]
    k = matrix_from_upper(torch.stack([x, xy, xz, xw, y, yz, yw, z, zw, trace], dim=-1))
    return (k + torch.eye(4, dtype=k.dtype, device=k.device)) / 4


class Representation(nn.Module):
    """Numbers theta -> A, symmetric 4x4; the most likely rotation is A's eigenvector of smallest eigenvalue.

    symmetric : A itself, upper triangle row by row (Peretroukhin et al. 2020). qcqp : the upper triangular
    L of A = L L' (the paper, eq. 3). quaternion : q of any length. 6d : the rotation matrix's first two
    columns before Gram-Schmidt (Zhou et al. 2019). The last two say nothing of certainty, so that
    A = kappa (I - q q') with one learned kappa: the same width for all images.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.numbers = NUMBERS[kind]
        if kind in ("6d", "quaternion"):
            self.log_kappa = nn.Parameter(torch.tensor(math.log(100.0)))

    def forward(self, theta: Tensor) -> Tensor:
        """Map numbers `(..., numbers)`, at least float32, to matrices `(..., 4, 4)`."""
        if self.kind == "symmetric":
            return matrix_from_upper(theta)
        if self.kind == "qcqp":
            upper = matrix_from_upper(theta).triu()
            return upper @ upper.mT
        if self.kind == "6d":
            columns = torch.stack([theta[..., :3], theta[..., 3:]], dim=-1)
            outer = quaternion_outer_product(roma.special_gramschmidt(columns, SHORTEST))
        else:
            q = nn.functional.normalize(theta, dim=-1, eps=SHORTEST)
            outer = q.unsqueeze(-1) * q.unsqueeze(-2)
        return self.log_kappa.exp() * (torch.eye(4, dtype=outer.dtype, device=outer.device) - outer)

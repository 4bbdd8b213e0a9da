"""A Bingham distribution moved to the symmetry copy that RELION's asymmetric unit contains."""

from __future__ import annotations

from torch import Tensor

from cryoforum_plugin.geometry import left_multiplication_matrix, operator_to_unit
from cryoforum_plugin.posterior.bingham import mode


def reduce_bingham(matrix: Tensor, symmetry: str) -> Tensor:
    """Rewrite A `(n, 4, 4)` for the copy S * q of its mode q that lies in the asymmetric unit of `symmetry`.

    A' = L_S A L_S' with L_S the left multiplication by S: mode, eigenvalues and every credible region move
    together. The mode's viewing direction decides (`reduce_to_asymmetric_unit`). Raises SettingsError for
    an unknown group.
    """
    left = left_multiplication_matrix(operator_to_unit(mode(matrix), symmetry)).to(matrix)
    return left @ matrix @ left.mT

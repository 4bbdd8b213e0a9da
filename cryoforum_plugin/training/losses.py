"""Training losses."""

from __future__ import annotations

from torch import Tensor

from cryoforum_plugin.network import NetworkOutput
from cryoforum_plugin.posterior import negative_log_likelihood


def shift_negative_log_likelihood(shift: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """-log density `(b,)` of `target` `(b, 2)` under an isotropic normal at `shift` `(b, 2)`.

    log_variance : `(b,)` of each component. The constant log(2 pi) is left out.
    """
    return (shift - target).square().sum(-1) / 2 * (-log_variance).exp() + log_variance


def pose_loss(
    output: NetworkOutput, rotation: Tensor, shift: Tensor, group: Tensor | None, shift_weight: float
) -> tuple[Tensor, Tensor]:
    """Mean loss of a batch and its orientation part (nat): Bingham likelihood + weighted shift likelihood.

    rotation : `(b, 4)` XYZW labels. shift : `(b, 2)` fraction of the box. group : symmetry operators.
    """
    orientation = negative_log_likelihood(output.bingham, rotation, group).mean()
    position = shift_negative_log_likelihood(output.shift, output.shift_log_variance, shift).mean()
    return orientation + shift_weight * position, orientation

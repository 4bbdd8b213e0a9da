"""Other poses that a network with several modes holds for possible."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.geometry import (
    angular_distance_to_group,
    reduce_to_asymmetric_unit,
    symmetry_group,
)
from cryoforum_plugin.particles import Prediction
from cryoforum_plugin.posterior import matrix_from_upper, mode

ALTERNATIVE = 0.1  # weight above which a further hypothesis is reported
ALTERNATIVE_DEG = 10.0  # nearer ones are the same


def with_alternatives(found: Prediction, network: RawPrediction, symmetry: str) -> Prediction:
    """Add to refined poses the best hypothesis of the network that is another, where it has several."""
    if network.modes is None or network.log_weight is None or found.rotation is None:
        return found
    chosen = torch.from_numpy(np.nan_to_num(found.rotation, nan=0.5))
    modes, log_weight = network.modes.nan_to_num(0.0), network.log_weight.nan_to_num(0.0)
    other, weight = best_alternative(modes, log_weight, symmetry, chosen)
    bad = network.unusable.numpy()
    return replace(
        found,
        alternative_rotation=np.where(bad[:, None], np.nan, other.numpy()),
        alternative_weight=np.where(bad, np.nan, weight.numpy()),
    )


def best_alternative(
    modes: Tensor, log_weight: Tensor, symmetry: str = "C1", chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rotation `(n, 4)` and weight `(n,)` of the heaviest mode that is another than the first, or than `chosen` `(n, 4)`.

    modes : `(n, k, 10)`, the heaviest first; log_weight : `(n, k)`. Modes lighter than ALTERNATIVE, or nearer than
    ALTERNATIVE_DEG to the first or its symmetry copies, are none: then the first mode's rotation, and weight 0.
    """
    rotation = mode(matrix_from_upper(modes))
    group = torch.from_numpy(symmetry_group(symmetry))
    first = rotation[:, :1] if chosen is None else chosen.to(rotation).unsqueeze(1)
    first = first.expand_as(rotation)
    apart = angular_distance_to_group(rotation, first, group) > math.radians(ALTERNATIVE_DEG)
    weight = torch.where(apart, log_weight.exp(), 0.0)
    weight = torch.where(weight > ALTERNATIVE, weight, 0.0)
    heaviest, place = weight.max(dim=1)
    place = torch.where(heaviest > 0, place, 0)
    other = rotation[torch.arange(len(rotation)), place]
    other = torch.where(heaviest[:, None] > 0, other, first[:, 0])
    return reduce_to_asymmetric_unit(other, symmetry), heaviest

"""How far the network's rotation-invariant features of an image lie from those of the training particles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COMPONENTS = 32


@dataclass(frozen=True)
class OutlierModel:
    """Principal components of the features of training particles.

    mean `(f,)`, components `(k, f)` scaled to unit variance, residual_sd.
    """

    mean: Tensor
    components: Tensor
    residual_sd: float

    def distance(self, features: Tensor) -> Tensor:
        """Squared Mahalanobis distance `(n,)` within the components plus the scaled rest; NaN stays NaN."""
        centred = features.double() - self.mean
        inside = centred @ self.components.T
        variance = 1 / self.components.square().sum(1)  # rows are v / s.d.
        rest = centred.square().sum(1) - (inside.square() * variance).sum(1)
        return inside.square().sum(1) + rest.clamp(min=0) / self.residual_sd**2

    def state(self) -> dict[str, Tensor | float]:
        """Plain tensors and numbers, for model.pt."""
        return dict(vars(self))


def fit_outliers(training: Tensor) -> OutlierModel:
    """Fit on features `(n, f)` of training particles."""
    features = training.double()
    mean = features.mean(0)
    centred = features - mean
    k = max(1, min(COMPONENTS, len(features) // 8, features.shape[1] - 1))
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    sd = (singular[:k] / max(1, len(features) - 1) ** 0.5).clamp(min=1e-6)
    components = directions[:k] / sd[:, None]
    rest = centred - (centred @ directions[:k].T) @ directions[:k]
    left = max(1, features.shape[1] - k)
    residual_sd = float((rest.square().sum() / (len(features) * left)).sqrt())
    return OutlierModel(mean, components, max(residual_sd, 1e-6))

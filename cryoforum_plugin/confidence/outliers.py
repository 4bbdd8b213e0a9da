"""How unlike the training particles an image is, from the network's rotation-invariant features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.particles import FloatArray

COMPONENTS = 32


@dataclass(frozen=True)
class OutlierModel:
    """Principal components of the features, and how far held-out particles lie from their centre.

    mean `(f,)`, components `(k, f)` scaled to unit variance, residual_sd, distances `(m,)` ascending.
    """

    mean: Tensor
    components: Tensor
    residual_sd: float
    distances: Tensor

    def distance(self, features: Tensor) -> Tensor:
        """Squared Mahalanobis distance `(n,)` within the components plus the scaled rest."""
        centred = features.double() - self.mean
        inside = centred @ self.components.T
        variance = 1 / self.components.square().sum(1)  # rows are v / s.d.
        rest = centred.square().sum(1) - (inside.square() * variance).sum(1)
        return inside.square().sum(1) + rest.clamp(min=0) / self.residual_sd**2

    def score(self, features: Tensor) -> FloatArray:
        """Part `(n,)` in [0, 1] of the held-out particles that lie nearer to the centre; NaN stays NaN."""
        distance = self.distance(features)
        rank = torch.searchsorted(self.distances, distance.nan_to_num()).double() / len(self.distances)
        return np.where(torch.isfinite(distance).numpy(), rank.numpy(), np.nan)

    def state(self) -> dict[str, Tensor | float]:
        """Plain tensors and numbers, for model.pt."""
        return {
            "mean": self.mean,
            "components": self.components,
            "residual_sd": self.residual_sd,
            "distances": self.distances,
        }


def fit_outliers(training: Tensor, held_out: Tensor) -> OutlierModel:
    """Fit on features `(n, f)` of training particles; rank against those `(m, f)` of held-out ones."""
    features = training.double()
    mean = features.mean(0)
    centred = features - mean
    k = max(1, min(COMPONENTS, len(features) // 8, features.shape[1] - 1))
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    sd = (singular[:k] / max(1, len(features) - 1) ** 0.5).clamp(min=1e-6)
    components = directions[:k] / sd[:, None]
    rest = centred - (centred @ directions[:k].T) @ directions[:k]
    residual_sd = max(float(rest.square().mean().sqrt()), 1e-6)
    model = OutlierModel(mean, components, residual_sd, torch.zeros(1, dtype=torch.float64))
    return OutlierModel(mean, components, residual_sd, model.distance(held_out).sort().values)

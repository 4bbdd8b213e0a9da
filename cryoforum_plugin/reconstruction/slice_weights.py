"""How much each particle's slice counts: alike, by its confidence, or by the covariance of its pose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoforum_plugin.confidence.pose_quality import PoseUncertainty, pose_uncertainty
from cryoforum_plugin.errors import ParticleFileError, SettingsError
from cryoforum_plugin.images.fourier import frequency_grid
from cryoforum_plugin.particles import IntArray, ParticleSet
from cryoforum_plugin.posterior.pose_damping import damping

WEIGHTS = ("none", "confidence", "covariance")


@dataclass(frozen=True)
class SliceWeights:
    """Weights of the particles of one table.

    confidence : `(n,)` multiplies a particle's share, data and weight alike. poses : where given, a transform X is
    taken for D CTF F instead of CTF F, D(k) what an uncertain pose leaves of the signal in expectation (see
    `pose_damping`) times the probability of the right basin; least squares then adds D CTF X over D^2 CTF^2.
    rho2_A2 : mean square coordinate of the particle's density.
    """

    confidence: Tensor | None = None
    poses: PoseUncertainty | None = None
    rho2_A2: float = 0.0

    def of(
        self, rows: IntArray, box_px: int, pixel_size_A: float, device: torch.device | str
    ) -> tuple[Tensor, Tensor | None]:
        """Share `(b,)` of particles, and D `(b, box, box // 2 + 1)` where there is one."""
        one = (
            torch.ones(len(rows), device=device)
            if self.confidence is None
            else self.confidence[rows].to(device)
        )
        if self.poses is None:
            return one, None
        ky, kx = frequency_grid(box_px, device)
        k_per_A = torch.stack([kx, ky], -1) / (box_px * pixel_size_A)
        covariance, shift_sd_A = (
            v[rows].float().to(device) for v in (self.poses.covariance, self.poses.shift_sd_A)
        )
        left = damping(covariance, shift_sd_A, self.rho2_A2, k_per_A)
        right = torch.from_numpy(self.poses.right[rows]).float().to(device)
        return one, left * right[:, None, None]


def slice_weights(particles: ParticleSet, weight: str, rho2_A2: float) -> SliceWeights:
    """Weights by name. rho2_A2 : as in SliceWeights.

    Raises ParticleFileError where the table lacks what they need, SettingsError for another name.
    """
    if weight not in WEIGHTS:
        raise SettingsError(f"unknown weight {weight!r}; use {', '.join(WEIGHTS)}")
    if weight == "none":
        return SliceWeights()
    prediction = particles.prediction
    if prediction is None:
        raise ParticleFileError(
            f"{particles.source}: --weight {weight} needs a confidence (rlnParticleFigureOfMerit); "
            "run `cryoforum predict` first or leave the option out"
        )
    if weight == "confidence":
        return SliceWeights(confidence=torch.from_numpy(prediction.confidence).float())
    return SliceWeights(poses=pose_uncertainty(prediction, particles.source), rho2_A2=rho2_A2)

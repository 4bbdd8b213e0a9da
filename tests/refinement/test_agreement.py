"""Agreement of images with the slices that fit them, in bands of frequency."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_volume, random_matrices

from cryoforum_plugin.confidence.raw import MATCH
from cryoforum_plugin.refinement.agreement import agreement
from cryoforum_plugin.refinement.slices import FourierPoints, GradientSlicer
from cryoforum_plugin.refinement.solver import Observed

N, BOX = 200, 32
POINTS = FourierPoints(BOX, 10.0)
COUNTS = (POINTS.count(4.0), POINTS.count(7.0), len(POINTS.k))
SLICER = GradientSlicer(blob_volume(blob_positions(), BOX), POINTS)
R = torch.from_numpy(random_matrices(N)).float()
USUAL, NOISE = 1.5, 20.0  # contrast of the particles, and what whitening divides by


def found(gains: tuple[float, float, float] = (1, 1, 1), strength: float = 1.0) -> dict[str, np.ndarray]:
    """Figures of exact poses, the particle's three bands multiplied by `gains` and all of it by `strength`."""
    transfer = torch.full((N, len(POINTS.k)), 1 / NOISE)
    band = torch.zeros(len(POINTS.k))
    for gain, start, end in zip(gains, (0, *COUNTS), COUNTS, strict=False):
        band[start:end] = gain
    noise = torch.randn(N, len(POINTS.k), 2, generator=torch.Generator().manual_seed(1))
    particle = SLICER.values(R, len(POINTS.k)) * band * transfer * USUAL * strength
    observed = Observed(particle + torch.view_as_complex(noise), transfer)
    figures = agreement(SLICER, observed, R, torch.zeros(N, 2), torch.full((N,), USUAL), COUNTS)
    return dict(zip(MATCH, figures.numpy().T, strict=True))


def test_what_fits_has_the_usual_contrast_even_bands_and_noise_left() -> None:
    figures = found()
    for name in ("contrast", "coarse_rest", "middle_rest", "fine_rest"):
        assert np.median(figures[name]) == pytest.approx(0, abs=0.05)
    for name in ("coarse", "middle", "fine"):
        assert np.median(figures[name]) == pytest.approx(0, abs=0.35)
        assert figures[name].std() < 1.2  # standard errors


def test_contrast_is_relative_to_the_usual() -> None:
    assert np.median(found(strength=0.5)["contrast"]) == pytest.approx(np.log(0.5), abs=0.1)


def test_a_band_that_is_missing_is_told() -> None:
    usual, missing = found(), found((1, 1, 0))
    assert np.median(missing["fine"]) < np.median(usual["fine"]) - 1
    assert np.median(missing["coarse"]) > np.median(usual["coarse"])


def test_what_the_reference_does_not_know_is_left_over() -> None:
    transfer = torch.full((N, len(POINTS.k)), 1 / NOISE)
    other = SLICER.values(R.flip(0), len(POINTS.k)) * transfer * USUAL * 3
    noise = torch.randn(N, len(POINTS.k), 2, generator=torch.Generator().manual_seed(1))
    observed = Observed(other + torch.view_as_complex(noise), transfer)
    figures = agreement(SLICER, observed, R, torch.zeros(N, 2), torch.full((N,), USUAL), COUNTS)
    assert float(figures[:, MATCH.index("coarse_rest")].median()) > 0.5

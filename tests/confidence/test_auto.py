"""--auto on simulated particles, a fifth of which are pure noise that was refined against the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_projections, random_matrices
from memory_reader import Memory
from scipy.spatial.transform import Rotation
from scipy.stats import chi

from cryoforum_plugin.confidence.auto import automatic
from cryoforum_plugin.confidence.by_map import quality_order
from cryoforum_plugin.confidence.criteria import Criteria
from cryoforum_plugin.confidence.selection import select_particles
from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.particles import Ctf, IntArray, ParticleSet, Prediction
from cryoforum_plugin.posterior.bingham import matrix_about, upper_from_matrix
from cryoforum_plugin.reconstruction.nested import NestedMaps, NestedReconstruction

N, BOX, PIXEL_A = 1500, 32, 4.0
POSITIONS = blob_positions()
NOISE = np.arange(N) % 5 == 0


def aligned_noise(noise: np.ndarray, views: int = 3000) -> np.ndarray:
    """Rotations `(n, 3, 3)` at which the reference correlates best with noise images `(n, box, box)`."""
    R = random_matrices(views, seed=9)
    templates = blob_projections(POSITIONS, R, BOX).flatten(1)
    templates = templates / templates.norm(dim=1, keepdim=True)
    best = (torch.from_numpy(noise).flatten(1) @ templates.T).argmax(dim=1)
    return R[best.numpy()]


def particles_with(
    confidence: np.ndarray, noise_sd: float, error_deg: np.ndarray, radius_deg: np.ndarray | None = None
) -> tuple[ParticleSet, NestedReconstruction]:
    """Particles with random errors (s.d. `(n,)` about each axis) in white noise; those of NOISE are noise alone."""
    rng = np.random.default_rng(2)
    true = Rotation.from_matrix(random_matrices(N))
    images = blob_projections(POSITIONS, true.as_matrix(), BOX).numpy()
    images[NOISE] = 0
    images = (images + noise_sd * rng.standard_normal(images.shape)).astype(np.float32)
    pose = (
        true * Rotation.from_rotvec(np.radians(error_deg)[:, None] * rng.standard_normal((N, 3)))
    ).as_quat()
    pose[NOISE] = Rotation.from_matrix(aligned_noise(images[NOISE])).as_quat()
    posterior = np.radians(error_deg if radius_deg is None else radius_deg / chi.ppf(0.9, 3))
    precision = np.eye(3) / posterior[:, None, None] ** 2
    bingham = upper_from_matrix(matrix_about(torch.from_numpy(pose), torch.from_numpy(precision))).numpy()
    prediction = Prediction(
        confidence,
        bingham=bingham,
        credible_radius_90_deg=np.degrees(posterior) * chi.ppf(0.9, 3),
        expected_error_deg=np.degrees(posterior) * math.sqrt(8 / math.pi),
        right_basin=None if radius_deg is None else confidence,
    )
    zeros = np.zeros(N)
    # a contrast transfer of one: amplitude contrast alone
    ctf = Ctf(zeros, zeros, zeros, np.full(N, 300.0), zeros, np.ones(N), zeros)
    particles = ParticleSet(
        Path("p.star"), (Path("p.mrcs"),), np.zeros(N, dtype=np.int64), np.arange(N), np.full(N, PIXEL_A), pose, None,
        ctf, np.ones(N), np.ones(N, dtype=np.int64), 1 + (np.arange(N) // 5) % 2, np.zeros(N, dtype=np.int64), np.arange(N),
        np.arange(N, dtype=np.uint64), prediction, None, BOX,
    )  # fmt: skip
    return particles, NestedReconstruction(lambda _: Memory(images))


def mixture_radius_deg(right: np.ndarray) -> np.ndarray:
    """Radius (deg) of the 90 % ball where the right basin is narrow and has the probability `right`, below 0.9."""
    angle = np.linspace(0, np.pi, 2000)
    uniform = (angle - np.sin(angle)) / np.pi
    return np.degrees(np.interp((0.9 - right) / (1 - right), uniform, angle))


@pytest.fixture(scope="module")
def with_noise() -> tuple[ParticleSet, NestedReconstruction]:
    rng = np.random.default_rng(0)
    confidence = np.where(NOISE, rng.beta(0.5, 10, N), rng.uniform(0.8, 0.89, N))
    return particles_with(confidence, 6.0, np.full(N, 1.5), mixture_radius_deg(confidence))


def test_noise_that_was_aligned_to_the_reference_is_left_out(with_noise) -> None:
    particles, maps = with_noise
    mask, line, curve = automatic(particles, particles.prediction, "C1", maps)
    assert curve is not None
    assert "clearest half maps" in line
    assert mask[NOISE].mean() < 0.05
    assert mask[~NOISE].mean() > 0.95
    # the trap: by the FSC alone all the noise would have been welcome
    assert curve.points[-1].score > curve.points[curve.chosen].score
    assert not curve.points[-1].allowed


def test_a_map_overrules_confidences_that_promise_too_much() -> None:
    """A third of the particles have random poses but nearly half the confidence of the others."""
    rng = np.random.default_rng(0)
    lost = np.arange(N) % 3 == 1
    confidence = np.where(lost, rng.uniform(0.5, 0.6, N), rng.uniform(0.8, 0.89, N))
    confidence[NOISE] = 0.0
    particles, maps = particles_with(
        confidence, 3.0, np.where(lost, 120.0, 1.5), mixture_radius_deg(confidence)
    )
    mask, _, curve = automatic(particles, particles.prediction, "C1", maps)
    alone, _, _ = automatic(particles, particles.prediction)
    assert alone[lost & ~NOISE].all()
    assert mask[lost].mean() < 0.1
    assert mask[~lost & ~NOISE].mean() > 0.9
    assert curve is not None
    assert curve.points[curve.chosen].resolution_A < curve.points[-1].resolution_A


def test_curve_is_nested_and_goes_into_json(with_noise) -> None:
    particles, maps = with_noise
    selection = select_particles(particles, Criteria(auto=True, balance_halves=True), "C1", maps)
    auto = selection.figures()["auto"]
    kept = [point["kept"] for point in auto["curve"]]
    assert kept == sorted(set(kept))
    assert kept[-1] == N
    assert 12 <= len(kept) <= 16
    assert abs(kept[auto["chosen"]] - selection.keep.sum()) <= 0.03 * N
    assert set(auto["curve"][0]) >= {"threshold", "kept", "score", "resolution_A", "view_coverage"}
    assert len(selection.lines()) > len(kept)


def test_an_image_that_cannot_be_read_leaves_the_choice_to_the_confidences(with_noise) -> None:
    particles, _ = with_noise

    def broken(_: ParticleSet) -> Memory:
        raise ImageStackError("p.mrcs is missing")

    mask, line, curve = automatic(particles, particles.prediction, "C1", NestedReconstruction(broken))
    assert curve is None
    assert "p.mrcs is missing" in line
    assert mask[NOISE].mean() < 0.05
    assert mask[~NOISE].all()
    no_images = select_particles(
        particles, Criteria(auto=True, images=False), "C1", NestedReconstruction(broken)
    )
    assert "images were not looked at" in no_images.explanation[0]


def test_a_set_that_sees_from_one_side_only_is_not_chosen(with_noise) -> None:
    """Where the surest are side views, more are kept than the FSC of a small set would ask for."""
    particles, _ = with_noise

    class Flat:
        """Maps that are the clearest for the smallest set."""

        def diameter_A(self, particles: ParticleSet) -> float:
            return 80.0

        def __call__(self, particles: ParticleSet, parts: Sequence[IntArray]) -> NestedMaps:
            m = len(parts)
            fsc = np.linspace(0.95, 0.5, m)[:, None] * (np.arange(17) < 10)
            return NestedMaps(fsc, np.full(17, 1e4), np.full(m, 20.0), 128.0, 1)

    tilt = np.degrees(
        np.arccos(np.abs(Rotation.from_quat(particles.require_rotation()).as_matrix()[:, 2, 2]))
    )
    confidence = 0.89 - 0.001 * tilt
    confidence[NOISE] = 0
    radius = mixture_radius_deg(confidence)
    prediction = Prediction(confidence, credible_radius_90_deg=radius)
    mask, _, curve = automatic(particles, prediction, "C1", Flat())
    assert curve is not None
    whole = curve.points[-1].view_coverage
    assert curve.points[0].view_coverage < 0.8 * whole
    assert curve.points[curve.chosen].view_coverage > 0.94 * whole
    assert not curve.points[0].allowed
    assert mask.sum() < (~NOISE).sum()


def test_order_is_by_confidence_to_a_hundredth_then_by_error() -> None:
    prediction = Prediction(
        np.array([0.991, 0.994, 0.5, 0.7]), expected_error_deg=np.array([1.0, 2.0, 3.0, 9.0])
    )
    assert quality_order(prediction).tolist() == [0, 1, 3, 2]


def test_stride_reads_part_of_the_images_and_scales_back(with_noise, monkeypatch: pytest.MonkeyPatch) -> None:
    particles, maps = with_noise
    order = np.flatnonzero(~NOISE)
    whole = maps(particles, [order])
    monkeypatch.setattr("cryoforum_plugin.reconstruction.nested.MOST", 400)
    part = maps(particles, [order])
    assert (whole.stride, part.stride) == (1, 3)
    ssnr = [m.stride * m.fsc[0, 2:7] / (1 - m.fsc[0, 2:7]) for m in (whole, part)]
    assert np.log(ssnr[1]).mean() == pytest.approx(np.log(ssnr[0]).mean(), abs=0.35)

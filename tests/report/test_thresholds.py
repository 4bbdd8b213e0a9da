"""What thresholds would keep is what `select` keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoforum_plugin.cli.options import selection_criteria
from cryoforum_plugin.confidence.selection import Criteria, select_particles
from cryoforum_plugin.confidence.view_coverage import view_coverage
from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.report.resolution import KnownSignal, of_half_maps
from cryoforum_plugin.report.threshold_charts import threshold_charts, threshold_texts
from cryoforum_plugin.report.thresholds import Thresholds, weigh_thresholds

Make = Callable[..., ParticleSet]
NO_OPTIONS = {
    "min_confidence": None, "max_error": None, "keep": None, "statistic": None, "quantile": None, "auto": False,
    "max_outlier": None, "target": None, "balance_views": False, "no_images": False,
}  # fmt: skip


def predicted(make: Make, n: int = 500, halves: int = 2) -> ParticleSet:
    """Particles of which half set 2 is the less certain, many of them equally so, most from one side."""
    rng = np.random.default_rng(5)
    half_set = rng.integers(1, halves + 1, n) if halves else np.zeros(n, dtype=np.int64)
    confidence = np.round(rng.beta(0.4, 0.4, n) * np.where(half_set == 2, 0.9, 1.0), 3)
    tilt = np.arccos(rng.uniform(-1, 1, n)) * 0.3
    rotation = Rotation.from_euler("ZYZ", np.stack([rng.uniform(0, 360, n), np.degrees(tilt), rng.uniform(0, 360, n)], 1),
                                   degrees=True).as_quat()  # fmt: skip
    prediction = Prediction(confidence, expected_error_deg=1 + 40 * (1 - confidence))
    return make(n, prediction, half_set=half_set, rotation=rotation)


def weighed(particles: ParticleSet, **options: object) -> Thresholds:
    found = weigh_thresholds(particles, **options)
    assert found is not None
    return found


@pytest.mark.parametrize("halves", [0, 1, 2])
def test_numbers_errors_and_views_are_those_of_the_selection(make_particles: Make, halves: int) -> None:
    particles = predicted(make_particles, halves=halves)
    found = weighed(particles)
    assert 50 < len(found.texts) <= 202
    assert (np.diff(found.values) > 0).all()
    assert found.view_coverage is not None
    assert found.expected_deg is not None
    for position in range(0, len(found.texts), 7):
        criteria = selection_criteria(
            NO_OPTIONS | {"min_confidence": float(found.texts[position])}, least_apart=1
        )
        chosen = select_particles(particles, criteria)
        kept = {name: counts[position] for name, counts in found.kept.items()}
        assert kept == {name: counts["kept"] for name, counts in chosen.counts.items()}
        assert found.total == {name: sum(counts.values()) for name, counts in chosen.counts.items()}
        rows = particles[chosen.keep]
        assert rows.prediction is not None
        assert rows.prediction.expected_error_deg is not None
        assert found.expected_deg[position] == pytest.approx(
            rows.prediction.expected_error_deg.mean(), rel=1e-6
        )
        assert found.view_coverage[position] == pytest.approx(
            view_coverage(rows.require_rotation()).scf, rel=1e-6
        )


def test_no_threshold_is_offered_that_select_refuses(make_particles: Make) -> None:
    particles = predicted(make_particles)
    found = weighed(particles)
    select_particles(particles, Criteria(min_confidence=found.values[-1]))
    assert particles.prediction is not None
    highest = particles.prediction.confidence[particles.half_set == 2].max()
    with pytest.raises(SettingsError, match="half set 2"):
        select_particles(particles, Criteria(min_confidence=highest + 1e-6))
    assert found.values[-1] == pytest.approx(highest, abs=0.01)


def test_a_half_set_without_confidence_leaves_nothing_to_choose(make_particles: Make) -> None:
    confidence = np.where(np.arange(20) % 2, np.linspace(0, 1, 20), 0.0)
    particles = replace(make_particles(20, Prediction(confidence)), half_set=1 + np.arange(20) % 2)
    assert weigh_thresholds(particles) is None


def test_it_begins_where_it_is_told(make_particles: Make) -> None:
    found = weighed(predicted(make_particles), start=0.123)
    assert found.texts[found.start] == "0.123"
    charts = threshold_charts(found, np.linspace(0, 1, 500), "predicted.star")
    marks = [chart.marks[0] for chart in charts]  # type: ignore[union-attr]
    assert [mark.moves for mark in marks] == ["confidence", "kept", "kept"]
    assert marks[0].value == 0.123
    assert marks[1].value == pytest.approx(100 * found.kept["all"][found.start] / 500)
    assert "command" not in threshold_texts(found)  # the table is not on disk


def test_equal_confidences_leave_nothing_to_choose(make_particles: Make) -> None:
    assert weigh_thresholds(make_particles(20)) is None
    assert weigh_thresholds(make_particles(20, Prediction(np.ones(20)))) is None


def test_tables_with_confidences_alone_are_weighed(make_particles: Make) -> None:
    particles = make_particles(30, Prediction(np.linspace(0, 1, 30)), rotation=None)
    found = weighed(particles)
    assert found.expected_deg is found.view_coverage is None
    assert list(threshold_texts(found)) == ["particles kept", "of half set 1", "of half set 2"]


def test_all_particles_reach_the_resolution_that_was_measured(make_particles: Make) -> None:
    """200 good particles and as many that show nothing, in half maps with a B factor and with a low-pass."""
    n = 400
    confidence = np.where(np.arange(n) // 2 % 2 == 0, 0.99, 0.01) + 1e-4 * np.random.default_rng(1).random(n)
    radius_deg = np.where(confidence > 0.5, 1.0, 170.0)
    particles = make_particles(n, Prediction(confidence, credible_radius_90_deg=radius_deg))
    shells = np.arange(33)
    ratio = 40 * np.exp(-(shells**2) / 60.0)
    for cut in (33, 12):
        fsc = np.where(shells < cut, ratio / (1 + ratio), 0.0)
        resolution_A = np.r_[np.inf, 192 / shells[1:]]
        found = weighed(particles, signal=of_half_maps(resolution_A, fsc, n, 100.0)).resolution_A
        assert found is not None
        below = int(np.flatnonzero(fsc < 0.143)[0])
        measured = 192 / (below - 1 + (fsc[below - 1] - 0.143) / (fsc[below - 1] - fsc[below]))
        assert found[0] == pytest.approx(measured, rel=0.01)
        assert found.min() <= found[0]
        assert found[-1] > found.min()  # hardly any particle is left
    without = weighed(particles, signal=KnownSignal(ratio / (1 + ratio), 192.0, n, False, 100.0)).resolution_A
    assert without is not None
    assert torch.isfinite(torch.from_numpy(without)).all()

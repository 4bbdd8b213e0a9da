"""Charts of ordinary and of degenerate particles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryoforum_plugin.charts.figures import draw
from cryoforum_plugin.charts.plots import plot
from cryoforum_plugin.geometry import super_fibonacci_quaternions
from cryoforum_plugin.report.particle_charts import (
    confidence_histogram,
    expected_error_histogram,
    view_density,
    view_distributions,
)


def test_view_density_of_uniform_poses_is_one() -> None:
    density = view_density(super_fibonacci_quaternions(20000).numpy())
    assert density.mean() == pytest.approx(1)
    assert np.abs(density - 1).max() < 0.3


def test_view_density_puts_views_where_they_belong() -> None:
    """rot 100, tilt 60 is the direction (sin t cos r, sin t sin r, cos t)."""
    q = np.tile(Rotation.from_euler("ZYZ", [100, 60, 33], degrees=True).as_quat(), (500, 1))
    density = view_density(q)
    rows, columns = density.shape
    expected = int((np.cos(np.radians(60)) + 1) / 2 * rows), int((100 + 180) / 360 * columns)
    assert np.unravel_index(density.argmax(), density.shape) == expected


@pytest.mark.parametrize("n", [1, 3, 1000])
def test_every_particle_is_counted_once(n: int) -> None:
    q = super_fibonacci_quaternions(n).numpy()
    values = np.linspace(0, 1, n)
    confidence = confidence_histogram({"predicted": values, "selected": values[:1]}, 0.5)
    error = expected_error_histogram({"predicted": 180 * values})
    for counts in (confidence.counts["predicted"], error.counts["predicted"]):
        assert counts.sum() == n
    views = view_distributions({"predicted": q, "selected": q[: n // 2 + 1]})
    assert len({view.highest for view in views}) == 1
    for chart in (confidence, error, *views):
        assert draw(chart).axes
        assert plot(chart).renderers


@pytest.mark.parametrize("error_deg", [0.0, 180.0])
def test_expected_errors_at_the_ends_are_counted(error_deg: float) -> None:
    assert expected_error_histogram({"all": np.full(4, error_deg)}).counts["all"].sum() == 4

"""Figures from ordinary and from degenerate arrays."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from cryoforum_plugin.geometry import super_fibonacci_quaternions
from cryoforum_plugin.report import figures


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_training_curves(epochs: int) -> None:
    epoch = np.arange(1.0, epochs + 1)
    metrics = {
        "epoch": epoch,
        "train_loss": -epoch,
        "validation_loss": np.full(epochs, np.nan),
        "validation_median_deg": 90 / epoch,
    }
    figure = figures.training_curves(metrics)
    loss, error = figure.axes
    assert [line.get_label() for line in loss.lines] == ["training"]
    assert "(deg)" in error.get_ylabel()
    assert png(figure)


def test_view_density_of_uniform_poses_is_one() -> None:
    density = figures.view_density(super_fibonacci_quaternions(20000).numpy())
    assert density.mean() == pytest.approx(1)
    assert np.abs(density - 1).max() < 0.3


def test_view_density_puts_views_where_they_belong() -> None:
    """rot 100, tilt 60 is the direction (sin t cos r, sin t sin r, cos t)."""
    q = np.tile(Rotation.from_euler("ZYZ", [100, 60, 33], degrees=True).as_quat(), (500, 1))
    density = figures.view_density(q)
    rows, columns = density.shape
    expected = int((np.cos(np.radians(60)) + 1) / 2 * rows), int((100 + 180) / 360 * columns)
    assert np.unravel_index(density.argmax(), density.shape) == expected


@pytest.mark.parametrize("n", [1, 3, 1000])
def test_figures_of_particles(n: int) -> None:
    q = super_fibonacci_quaternions(n).numpy()
    values = np.linspace(0, 1, n)
    assert png(figures.view_distributions({"predicted": q, "selected": q[: n // 2 + 1]}))
    assert png(figures.confidence_histogram({"predicted": values, "selected": values[:1]}, 0.5))
    assert png(figures.expected_error_histogram({"predicted": 180 * values}))


def test_expected_errors_of_zero_are_drawn() -> None:
    assert png(figures.expected_error_histogram({"perfect": np.zeros(4)}))
    assert png(figures.expected_error_histogram({"failed": np.full(4, 180.0)}))


def test_fsc_curves_leave_out_the_origin() -> None:
    resolution_A = np.r_[np.inf, 96 / np.arange(1, 17)]
    figure = figures.fsc_curves({"all": (resolution_A, np.linspace(1, -0.2, 17))})
    curve = figure.axes[0].lines[0]
    assert len(curve.get_xdata()) == 16
    assert figure.axes[0].get_ylim()[0] <= -0.2
    assert png(figure)


def test_text_page() -> None:
    assert png(figures.table_figure("Settings", [("epochs", "3"), ("symmetry", "C1")]))

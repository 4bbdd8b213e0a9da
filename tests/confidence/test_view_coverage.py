import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryoforum_plugin.confidence.view_coverage import (
    view_cells,
    view_coverage,
    view_histogram,
    viewing_directions,
)
from cryoforum_plugin.geometry import cell_centres, cell_of, symmetry_group


def poses(tilt_deg: np.ndarray, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turns = rng.uniform(0, 360, (2, len(tilt_deg)))
    return Rotation.from_euler("ZYZ", np.stack([turns[0], tilt_deg, turns[1]], 1), degrees=True).as_quat()


def test_uniform_views_cover_evenly_and_directions_are_those_of_the_third_column() -> None:
    q = Rotation.random(20000, rng=1).as_quat()
    assert view_coverage(q).scf == pytest.approx(1, abs=0.002)
    np.testing.assert_allclose(viewing_directions(q), Rotation.from_quat(q).as_matrix()[:, :, 2], atol=1e-12)


def test_side_views_attenuate_as_baldwin_and_lyumkis_found() -> None:
    # views around the equator fill direction theta as 2 / (pi sin theta): the mean of its inverse is pi^2 / 8
    side = view_coverage(poses(np.full(20000, 90.0)))
    assert side.scf == pytest.approx(8 / np.pi**2, abs=0.01)
    assert side.unsampled == 0


def test_a_missing_cone_is_told_and_scattered_views_fill_it() -> None:
    # views within 30 degrees of z leave directions within 60 degrees of it empty: 1 - cos 60 of the half sphere
    rng = np.random.default_rng(2)
    tilt = np.degrees(np.arccos(rng.uniform(np.cos(np.radians(30)), 1, 20000)))
    top = view_coverage(poses(tilt))
    assert top.unsampled == pytest.approx(1 - np.cos(np.radians(60)), abs=0.1)
    assert top.scf < 0.1
    mixed = view_coverage(np.concatenate([poses(tilt), Rotation.random(5000, rng=3).as_quat()]))
    assert mixed.unsampled == 0
    assert top.scf < mixed.scf < 1


def test_symmetry_shares_views_among_copies() -> None:
    # the six directions of O's 4-folds, seen at once: the same from each of them
    one = view_histogram(poses(np.zeros(600)), "O")
    centres = cell_centres()
    seen = centres[one > 0]
    assert np.abs(seen).max(axis=1).min() > 0.99
    assert one.sum() == pytest.approx(600)
    assert view_coverage(poses(np.zeros(600)), "O").scf > 1.5 * view_coverage(poses(np.zeros(600))).scf


def test_opposite_views_count_alike() -> None:
    q = poses(np.random.default_rng(1).uniform(0, 40, 3000))
    turned = (Rotation.from_quat(q) * Rotation.from_quat([0.0, 1.0, 0.0, 0.0])).as_quat()
    assert view_coverage(turned).scf == pytest.approx(view_coverage(q).scf, rel=0.02)


def test_cells_have_equal_area_and_copies_share_theirs() -> None:
    direction = np.random.default_rng(1).standard_normal((400_000, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    count = np.bincount(cell_of(direction, 100), minlength=len(cell_centres(100)))
    assert abs(len(count) - 100) <= 3
    expected = len(direction) / len(count)
    assert np.abs(count - expected).max() < 5 * np.sqrt(expected)
    assert (cell_of(cell_centres(100), 100) == np.arange(len(count))).all()
    q = Rotation.random(2000, rng=4).as_quat()
    copies = (Rotation.from_quat(symmetry_group("D7")[9]) * Rotation.from_quat(q)).as_quat()
    assert (view_cells(copies, "D7") == view_cells(q, "D7")).mean() > 0.999

"""The validation split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from particle_tables import make_particles
from scipy.spatial.transform import Rotation

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.particles.splitting import split_rows


def test_every_row_once_and_fraction_kept(tmp_path: Path) -> None:
    particles = make_particles(tmp_path, 400)
    training, validation = split_rows(particles, 0.25, 1)
    assert sorted([*training, *validation]) == list(range(400))
    assert len(validation) == 100
    assert np.array_equal(split_rows(particles, 0.25, 1)[1], validation)
    assert not np.array_equal(split_rows(particles, 0.25, 2)[1], validation)


def test_copies_of_a_particle_stay_together(tmp_path: Path) -> None:
    particles = replace(make_particles(tmp_path, 400), origin=np.arange(400) // 4)
    training, validation = split_rows(particles, 0.2, 1)
    assert not set(particles.origin[training]) & set(particles.origin[validation])


def test_rare_views_are_in_both_parts(tmp_path: Path) -> None:
    particles = make_particles(tmp_path, 400)
    tilt = np.where(np.arange(400) < 40, 90.0, 5.0)  # 10 % side views
    rotation = Rotation.from_euler(
        "ZYZ", np.stack([np.full(400, 20.0), tilt, np.arange(400.0)], 1), degrees=True
    )
    _, validation = split_rows(replace(particles, rotation=rotation.as_quat()), 0.1, 3)
    assert (validation < 40).sum() in (3, 4, 5)


@pytest.mark.parametrize("symmetry", ["C4", "D7", "O", "I1"])
def test_symmetry_mates_are_split_alike(symmetry: str, tmp_path: Path) -> None:
    particles = make_particles(tmp_path, 400)
    group = symmetry_group(symmetry)
    chosen = Rotation.from_quat(group[np.random.default_rng(0).integers(len(group), size=400)])
    moved = replace(particles, rotation=(chosen * Rotation.from_quat(particles.require_rotation())).as_quat())
    expected = split_rows(particles, 0.2, 1, symmetry)[1]
    assert np.array_equal(split_rows(moved, 0.2, 1, symmetry)[1], expected)


def test_too_few_particles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParticleFileError, match="cannot be split"):
        split_rows(make_particles(tmp_path, 3), 0.1, 1)

"""The next best orientation in tables: written, read back, never NaN, never left over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from particle_tables import angles_deg, make_particles, make_prediction

from cryosparc_job import dataset
from relion_external import particles as star

COUNT = 6


@pytest.mark.parametrize("adapter", [star, dataset], ids=["star", "cs"])
def test_written_and_read_back(adapter: object, tmp_path: Path) -> None:
    particles, prediction = make_particles(tmp_path, COUNT), make_prediction(COUNT)
    path = tmp_path / ("a.star" if adapter is star else "a.cs")
    prediction.alternative_weight[0] = 0.0
    prediction.alternative_rotation[1] = np.nan
    adapter.write_particles(particles, path, prediction)
    again = adapter.read_particles(path, tmp_path).prediction
    assert again.alternative_weight[0] == 0
    assert again.alternative_weight[1] == 0
    assert again.confidence[1] == 0
    assert angles_deg(again.alternative_rotation[1:2], particles.rotation[1:2]).max() < 1e-3
    whole = np.delete(np.arange(COUNT), 1)
    np.testing.assert_allclose(
        again.alternative_weight[whole], prediction.alternative_weight[whole], rtol=1e-6
    )
    assert angles_deg(again.alternative_rotation[whole], prediction.alternative_rotation[whole]).max() < 1e-3


@pytest.mark.parametrize("adapter", [star, dataset], ids=["star", "cs"])
def test_a_prediction_without_takes_an_old_one_back(adapter: object, tmp_path: Path) -> None:
    first, second = (tmp_path / f"{name}{'.star' if adapter is star else '.cs'}" for name in "ab")
    adapter.write_particles(make_particles(tmp_path, COUNT), first, make_prediction(COUNT))
    single = replace(make_prediction(COUNT, 2), alternative_rotation=None, alternative_weight=None)
    adapter.write_particles(adapter.read_particles(first, tmp_path), second, single)
    weight = adapter.read_particles(second, tmp_path).prediction.alternative_weight
    assert weight is None or (weight == 0).all()

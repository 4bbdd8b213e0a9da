"""Rows that show the same physical particle."""

from __future__ import annotations

import numpy as np

from cryoforum_plugin.particles.origins import origin_labels


def test_equal_keys_and_near_picks_are_joined() -> None:
    image = np.array([0, 1, 2, 1, 4, 5])
    micrograph = np.array([0, 0, 0, 1, 1, -1])
    position = np.array([[10.0, 10], [200, 50], [12, 11], [10, 10], [900, 80], [10, 10]])
    labels = origin_labels(image, micrograph=micrograph, position_px=position)
    assert labels[0] == labels[2]  # 2.2 px apart
    assert labels[1] == labels[3]  # the same image
    assert len(set(labels.tolist())) == 4
    assert len(set(origin_labels(image).tolist())) == 5


def test_a_symmetry_expanded_copy_joins_what_each_key_joins() -> None:
    labels = origin_labels(np.array([0, 0, 1, 2, 3]), np.array([7, 8, 8, 9, 10]))
    assert labels[0] == labels[1] == labels[2]
    assert len(set(labels.tolist())) == 3


def test_placeholder_coordinates_join_nothing() -> None:
    image, zero = np.arange(50), np.zeros(50, dtype=np.int64)
    assert len(np.unique(origin_labels(image, micrograph=zero, position_px=np.zeros((50, 2))))) == 50

"""Large errors that are other symmetry copies are told from errors."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryoforum_plugin.confidence.copies import angular_errors, warn_of_copies
from cryoforum_plugin.geometry import COMMON_GROUPS, symmetry_group


def test_common_groups_are_known_and_sorted_by_size() -> None:
    sizes = [len(symmetry_group(name)) for name in COMMON_GROUPS]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("has", "given"), [("C4", "C1"), ("D2", "C2"), ("D7", "C1"), ("D3Y", "D3"), ("O", "D4"), ("I1", "I2")]
)
def test_copies_are_named(has: str, given: str, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    known, group = Rotation.random(300, rng=rng), Rotation.from_quat(symmetry_group(has))
    found = (
        group[rng.integers(len(group), size=300)]
        * known
        * Rotation.from_rotvec(0.02 * rng.normal(size=(300, 3)))
    )
    error = angular_errors(found.as_quat(), known.as_quat(), symmetry_group(given))
    with caplog.at_level(logging.WARNING, "cryoforum"):
        assert warn_of_copies(found.as_quat(), known.as_quat(), error, given) == has
    assert f"give --symmetry {has}" in caplog.text


@pytest.mark.parametrize("kind", ["random", "good"])
def test_errors_are_not_taken_for_copies(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    known = Rotation.random(300, rng=np.random.default_rng(0))
    found = Rotation.random(300, rng=np.random.default_rng(1)) if kind == "random" else known
    error = angular_errors(found.as_quat(), known.as_quat(), symmetry_group("C1"))
    assert warn_of_copies(found.as_quat(), known.as_quat(), error, "C1") is None
    assert caplog.text == ""

"""Point groups: group laws, and RELION's own operators."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.geometry import symmetry_group

ORDERS = {
    "C1": 1,
    "C3": 3,
    "D2": 4,
    "D7": 14,
    "T": 12,
    "O": 24,
    "I": 60,
    "I1": 60,
    "I2": 60,
    "I3": 60,
    "I4": 60,
}


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Largest element difference between each two matrices of lists `(m, 3, 3)` and `(n, 3, 3)`."""
    return np.abs(a[:, None] - b[None]).max(axis=(2, 3))


@pytest.mark.parametrize("name", ORDERS)
def test_is_a_group_with_the_identity_first(name: str) -> None:
    operators = Rotation.from_quat(symmetry_group(name)).as_matrix()
    assert len(operators) == ORDERS[name]
    np.testing.assert_allclose(operators[0], np.eye(3), atol=1e-9)
    products = np.einsum("aij,bjk->abik", operators, operators).reshape(-1, 3, 3)
    assert distances(products, operators).min(axis=1).max() < 1e-9
    assert (distances(operators, operators) < 1e-6).sum() == len(operators)


@pytest.mark.parametrize("name", ORDERS)
def test_operators_are_relions(name: str, relion) -> None:
    printed = relion.run("relion_refine", "--sym", name, "--print_symmetry_ops")
    number = r"-?\d+\.?\d*(?:[eE][-+]?\d+)?"
    blocks = re.split(r"R\(\d+\)=", printed)[1:]
    theirs = np.array([[float(x) for x in re.findall(number, block)[:9]] for block in blocks]).reshape(
        -1, 3, 3
    )
    ours = Rotation.from_quat(symmetry_group(name)).as_matrix()
    assert len(theirs) == len(ours)
    between = distances(theirs, ours)
    assert between.min(axis=0).max() < 1e-5
    assert between.min(axis=1).max() < 1e-5


@pytest.mark.parametrize("name", [" c4 ", "d2", "i2", "o"])
def test_case_and_blanks_do_not_matter(name: str) -> None:
    np.testing.assert_array_equal(symmetry_group(name), symmetry_group(name.strip().upper()))


@pytest.mark.parametrize("name", ["", "C0", "X3", "D", "I5", "C1000", "T2", "O1"])
def test_an_unknown_group_is_refused_with_advice(name: str) -> None:
    with pytest.raises(SettingsError, match=r"unknown symmetry .*use Cn, Dn"):
        symmetry_group(name)

"""Point groups: group laws, and RELION's own operators."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.geometry import symmetry_group

CYCLIC = {f"C{n}": n for n in (*range(1, 14), 24, 36)}
DIHEDRAL = {f"D{n}": 2 * n for n in (*range(1, 14), 24)}
POLYHEDRAL = {"T": 12, "O": 24, "I": 60, "I1": 60, "I2": 60, "I3": 60, "I4": 60}
RELIONS = CYCLIC | DIHEDRAL | POLYHEDRAL
ORDERS = RELIONS | {f"D{n}Y": 2 * n for n in (1, 2, 3, 7, 12)}


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


@pytest.mark.parametrize("name", RELIONS)
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


def test_relion_itself_has_no_i5(relion) -> None:
    """RELION lists pg_I5 in its source and then says that it is not implemented; nor do we have it."""
    command = ["relion_refine", "--sym", "I5", "--print_symmetry_ops"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "pg_I5 not implemented" in said.stdout + said.stderr


def generated(axes: list[tuple[int, tuple[float, float, float]]]) -> np.ndarray:
    """Matrices `(n, 3, 3)` of the group that n-fold axes (fold, direction) generate."""
    steps = [
        Rotation.from_rotvec(2 * np.pi / fold * np.array(axis) / np.linalg.norm(axis)).as_matrix()
        for fold, axis in axes
    ]
    found, queue = [np.eye(3)], [np.eye(3)]
    while queue:
        last = queue.pop()
        for step in steps:
            product = step @ last
            if min(np.abs(product - known).max() for known in found) > 1e-6:
                found.append(product)
                queue.append(product)
                assert len(found) <= 60, "these axes generate no point group"
    return np.array(found)


CRYOSPARCS = {
    # Dn has its 2-fold on y, T a 3-fold on z: discuss.cryosparc.com/t/12482 (a developer); Dn so in Scipion too
    "C4": [(4, (0, 0, 1))],
    "D2Y": [(2, (0, 0, 1)), (2, (0, 1, 0))],
    "D3Y": [(3, (0, 0, 1)), (2, (0, 1, 0))],
    "D7Y": [(7, (0, 0, 1)), (2, (0, 1, 0))],
    "T": [(3, (0, 0, 1)), (2, (0, 0.816496, 0.577350))],
    # axes as a developer gave them: github.com/cryoem-uoft/cryosparc-issues/issues/127
    "I1": [
        (2, (0, 1, 0)),
        (5, (-0.85065080702670, 0, 0.5257311142635)),
        (3, (-0.9341723640, 0.3568220765, 0)),
    ],
    "I2": [
        (2, (0, 0, 1)),
        (5, (-1.618033989, -1, 0)),
        (3, (-0.53934467, -1.4120227, 0)),
    ],
}


@pytest.mark.parametrize("name", CRYOSPARCS)
def test_groups_of_cryosparcs_axes(name: str) -> None:
    theirs = generated(CRYOSPARCS[name])
    ours = Rotation.from_quat(symmetry_group(name)).as_matrix()
    assert len(theirs) == len(ours)
    assert distances(theirs, ours).min(axis=1).max() < 1e-5


@pytest.mark.parametrize("n", range(1, 9))
def test_relions_and_cryosparcs_dn_are_the_same_for_even_n_only(n: int) -> None:
    relions, cryosparcs = (
        Rotation.from_quat(symmetry_group(name)).as_matrix() for name in (f"D{n}", f"D{n}Y")
    )
    apart = distances(relions, cryosparcs).min(axis=1).max()
    assert (apart < 1e-9) == (n % 2 == 0)


@pytest.mark.parametrize("name", [" c4 ", "d2", "i2", "o"])
def test_case_and_blanks_do_not_matter(name: str) -> None:
    np.testing.assert_array_equal(symmetry_group(name), symmetry_group(name.strip().upper()))


@pytest.mark.parametrize("name", ["", "C0", "X3", "D", "I5", "C1000", "T2", "O1", "C3Y", "D3Z", "TY"])
def test_an_unknown_group_is_refused_with_advice(name: str) -> None:
    with pytest.raises(SettingsError, match=r"unknown symmetry .*use Cn, Dn"):
        symmetry_group(name)

"""Every rotation convention against a formula from an independent source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryoforum_plugin.geometry import (
    angular_distance,
    angular_distance_to_group,
    in_plane_quaternion,
    quaternion_to_relion_euler,
    quaternion_to_rotation_vector,
    random_quaternions,
    relion_euler_to_quaternion,
    right_multiplication_matrix,
    rotation_vector_to_quaternion,
    super_fibonacci_quaternions,
    symmetry_group,
)
from cryoforum_plugin.selftest import BLOBS_PX, project_blobs, relion_euler_matrix, run_checks

ANGLES_DEG = np.array(
    [[0.0, 0, 0], [30, 60, 110], [-120, 135, 20], [10, 90, -170], [77, 1e-3, 5], [77, 179.999, 5]]
)
POLES_DEG = np.array([[40.0, 0, 25], [40, 180, 25], [-130, 0, 170], [-130, 180, 170]])


def matrices(quaternion: np.ndarray) -> np.ndarray:
    return Rotation.from_quat(quaternion).as_matrix()


def same_rotation(a: np.ndarray, b: np.ndarray) -> float:
    """Largest angle in rad between two lists of quaternions."""
    return float(angular_distance(torch.from_numpy(a), torch.from_numpy(b)).max())


@pytest.mark.parametrize("angles_deg", [*ANGLES_DEG, *POLES_DEG])
def test_matrix_is_the_transpose_of_relions(angles_deg: np.ndarray) -> None:
    R = matrices(relion_euler_to_quaternion(angles_deg[None]))[0]
    np.testing.assert_allclose(R.T, relion_euler_matrix(angles_deg), atol=1e-12)


def test_relion_matrix_is_a_product_of_three_turns() -> None:
    rot, tilt, psi = np.radians(ANGLES_DEG[1])

    def about(axis: str, angle: float) -> np.ndarray:
        c, s = np.cos(angle), np.sin(angle)
        return np.array(
            [[c, -s, 0], [s, c, 0], [0, 0, 1]] if axis == "z" else [[c, 0, s], [0, 1, 0], [-s, 0, c]]
        )

    A = about("z", -psi) @ about("y", -tilt) @ about("z", -rot)
    np.testing.assert_allclose(A, relion_euler_matrix(ANGLES_DEG[1]), atol=1e-12)


def test_euler_angles_survive_a_round_trip() -> None:
    angles_deg = quaternion_to_relion_euler(relion_euler_to_quaternion(ANGLES_DEG[:4]))
    np.testing.assert_allclose(angles_deg, ANGLES_DEG[:4], atol=1e-9)


@pytest.mark.parametrize("angles_deg", POLES_DEG)
def test_at_the_poles_rot_is_zero_and_the_rotation_is_kept(angles_deg: np.ndarray) -> None:
    quaternion = relion_euler_to_quaternion(angles_deg[None])
    again_deg = quaternion_to_relion_euler(quaternion)
    assert again_deg[0, 0] == 0
    assert same_rotation(relion_euler_to_quaternion(again_deg), quaternion) < 1e-7


@pytest.mark.parametrize("tilt_deg", [1e-8, 1e-6, 1e-4, 1e-2, 180 - 1e-6, 180 - 1e-3])
def test_near_the_poles_the_rotation_is_kept(tilt_deg: float) -> None:
    quaternion = relion_euler_to_quaternion(np.array([[33.0, tilt_deg, -71]]))
    again = relion_euler_to_quaternion(quaternion_to_relion_euler(quaternion))
    assert same_rotation(again, quaternion) < 3e-7


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1))
def test_any_rotation_survives_euler_angles_and_rotation_vectors(values: tuple[float, ...]) -> None:
    quaternion = np.array([values]) / np.linalg.norm(values)
    euler = relion_euler_to_quaternion(quaternion_to_relion_euler(quaternion))
    vector = rotation_vector_to_quaternion(quaternion_to_rotation_vector(quaternion))
    assert same_rotation(euler, quaternion) < 3e-7
    assert same_rotation(vector, quaternion) < 1e-12


@pytest.mark.parametrize("angle_rad", [1e-7, 0.3, 2.0, 3.1415])
def test_rotation_vector_is_rodrigues_formula(angle_rad: float) -> None:
    axis = np.array([1.0, -2.0, 0.5]) / np.linalg.norm([1.0, -2.0, 0.5])
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    expected = np.eye(3) + np.sin(angle_rad) * k + (1 - np.cos(angle_rad)) * k @ k
    R = matrices(rotation_vector_to_quaternion(axis[None] * angle_rad))[0]
    np.testing.assert_allclose(R, expected, atol=1e-12)


def test_rotation_vector_equals_an_independent_parser(shared_data) -> None:
    folder = shared_data / "real" / "cryosparc_refined"
    table = np.load(folder / "cryosparc_P12_J24_001_particles.cs")
    oracle = np.load(folder / "oracle_pose_ctf.npz")["rotation_matrix"]
    R = matrices(rotation_vector_to_quaternion(table["alignments3D/pose"]))
    np.testing.assert_allclose(R.transpose(0, 2, 1), oracle, atol=1e-6)


@pytest.mark.parametrize("angle_rad", [0.0, 1e-7, 1e-4, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distance_is_the_turning_angle(angle_rad: float, dtype: torch.dtype) -> None:
    q = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.1, 0.8], dtype=torch.float64), dim=0)
    turned = (
        right_multiplication_matrix(in_plane_quaternion(torch.tensor(angle_rad, dtype=torch.float64))) @ q
    )
    measured = angular_distance(q.to(dtype), turned.to(dtype))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert measured == pytest.approx(angle_rad, abs=tolerance)
    assert angular_distance(-q.to(dtype), turned.to(dtype)) == pytest.approx(angle_rad, abs=tolerance)


def test_distance_has_a_correct_gradient_that_is_finite_at_coincidence() -> None:
    q = super_fibonacci_quaternions(5).requires_grad_()
    p = super_fibonacci_quaternions(7)[1:6].requires_grad_()
    assert torch.autograd.gradcheck(angular_distance, (p, q))
    same = torch.tensor([0.0, 0, 0, 1], dtype=torch.float64, requires_grad=True)
    angular_distance(same, same.detach()).backward()
    assert torch.equal(same.grad, torch.zeros(4, dtype=torch.float64))


def test_distance_to_group_is_the_smallest_over_left_products(generator: torch.Generator) -> None:
    p, q = random_quaternions(20, generator).double(), random_quaternions(20, generator).double()
    group = symmetry_group("D3")
    measured = angular_distance_to_group(p, q, torch.from_numpy(group))
    turns = [
        (
            Rotation.from_quat(p.numpy()).inv() * Rotation.from_quat(S) * Rotation.from_quat(q.numpy())
        ).magnitude()
        for S in group
    ]
    np.testing.assert_allclose(measured, np.min(turns, axis=0), atol=1e-7)


def test_right_multiplication_matrix_agrees_with_scipy(generator: torch.Generator) -> None:
    q, r = torch.nn.functional.normalize(random_quaternions(2, generator).double(), dim=1)
    expected = (Rotation.from_quat(q.numpy()) * Rotation.from_quat(r.numpy())).as_quat()
    assert same_rotation((right_multiplication_matrix(r) @ q).numpy(), expected) < 1e-12


@pytest.mark.parametrize("angle_rad", [0.4, -2.2])
def test_turning_the_image_multiplies_the_pose_from_the_right(angle_rad: float) -> None:
    q = relion_euler_to_quaternion(ANGLES_DEG[1:4])
    turned = Rotation.from_quat(q) * Rotation.from_euler("z", -angle_rad)
    before = np.einsum("nji,bj->nbi", matrices(q), BLOBS_PX)[..., :2]
    after = np.einsum("nji,bj->nbi", turned.as_matrix(), BLOBS_PX)[..., :2]
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    np.testing.assert_allclose(after, before @ np.array([[c, -s], [s, c]]).T, atol=1e-12)


def test_mirroring_the_image_multiplies_by_a_half_turn_about_y() -> None:
    q = relion_euler_to_quaternion(ANGLES_DEG[1:4])
    behind = Rotation.from_quat(q) * Rotation.from_quat([0, 1, 0, 0])
    images, mirrored = project_blobs(matrices(q)), project_blobs(behind.as_matrix())
    np.testing.assert_allclose(mirrored[:, :, 1:], images[:, :, :0:-1], atol=1e-12)


def test_random_quaternions_are_uniform_and_repeatable() -> None:
    q = random_quaternions(20000, torch.Generator().manual_seed(1))
    assert torch.equal(q, random_quaternions(20000, torch.Generator().manual_seed(1)))
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(len(q)))
    torch.testing.assert_close(q.T @ q / len(q), torch.eye(4) / 4, atol=0.01, rtol=0)


def test_super_fibonacci_covers_the_rotations(generator: torch.Generator) -> None:
    grid = super_fibonacci_quaternions(4608).float()
    probes = random_quaternions(500, generator)
    nearest = 2 * torch.acos((probes @ grid.T).abs().amax(1).clamp(max=1))
    assert torch.rad2deg(nearest).mean() < 8
    assert torch.rad2deg(nearest).max() < 14


def test_every_check_of_the_doctor_passes() -> None:
    assert [check for check in run_checks() if not check.passed] == []

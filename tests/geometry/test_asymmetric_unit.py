"""Asymmetric units: one of all equivalent poses, and the one that RELION itself lists."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import roma
import starfile
import torch
from torch import Tensor

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.geometry import (
    angular_distance,
    angular_distance_to_group,
    in_asymmetric_unit,
    quaternion_to_relion_euler,
    random_quaternions,
    reduce_to_asymmetric_unit,
    relion_euler_to_quaternion,
    symmetry_group,
)

GROUPS = ["C1", "C2", "C3", "C4", "D1", "D2", "D3", "D7", "T", "O", "I", "I1", "I2", "I3", "I4"]
WITH_CRYOSPARCS = [*GROUPS, "D1Y", "D2Y", "D3Y", "D7Y"]


def group_of(name: str) -> Tensor:
    return torch.from_numpy(symmetry_group(name))


def copies_of(q: Tensor, group: Tensor) -> Tensor:
    """All S * q `(order, n, 4)` of poses `(n, 4)`."""
    shape = (len(group), *q.shape)
    return roma.quat_product(group[:, None].expand(shape), q.expand(shape))


def rot_and_tilt_deg(q: Tensor) -> tuple[np.ndarray, np.ndarray]:
    angles = quaternion_to_relion_euler(q.numpy())
    return angles[:, 0], angles[:, 1]


@pytest.fixture
def poses(generator: torch.Generator) -> Tensor:
    """Return uniform poses `(300, 4)`, float64."""
    return torch.nn.functional.normalize(random_quaternions(300, generator).double(), dim=-1)


@pytest.mark.parametrize("name", WITH_CRYOSPARCS)
def test_exactly_one_of_the_copies_is_in_the_unit_and_all_reduce_to_it(name: str, poses: Tensor) -> None:
    group = group_of(name)
    copies = copies_of(poses, group)
    reduced = reduce_to_asymmetric_unit(poses, name)
    assert in_asymmetric_unit(copies, name).sum(0).tolist() == [1] * len(poses)
    assert in_asymmetric_unit(reduced, name).all()
    assert angular_distance_to_group(reduced, poses, group).max() < 1e-7
    assert angular_distance(reduce_to_asymmetric_unit(copies, name), reduced).max() < 1e-7
    torch.testing.assert_close(reduce_to_asymmetric_unit(reduced, name), reduced, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["C2", "C3", "C4", "C9"])
def test_range_of_rot_of_cyclic_groups(name: str, poses: Tensor) -> None:
    rot, _ = rot_and_tilt_deg(reduce_to_asymmetric_unit(poses, name))
    half = 180 / int(name[1:])
    assert 0.95 * half < np.abs(rot).max() <= half


@pytest.mark.parametrize("name", ["D1", "D2", "D3", "D7"])
def test_ranges_of_rot_and_tilt_of_dihedral_groups(name: str, poses: Tensor) -> None:
    rot, tilt = rot_and_tilt_deg(reduce_to_asymmetric_unit(poses, name))
    half = 180 / int(name[1:])
    beside = np.abs((rot - 90 + 180) % 360 - 180)
    assert 0.95 * half < beside.max() <= half
    assert 85 < tilt.max() <= 90


def test_ranges_with_a_2_fold_on_y(poses: Tensor) -> None:
    rot, tilt = rot_and_tilt_deg(reduce_to_asymmetric_unit(poses, "D7Y"))
    assert 0.95 * 180 / 7 < np.abs(rot).max() <= 180 / 7
    assert 85 < tilt.max() <= 90


def test_d2_covers_the_range_of_the_paper(poses: Tensor) -> None:
    rot, tilt = rot_and_tilt_deg(reduce_to_asymmetric_unit(poses, "D2"))
    assert rot.min() >= 0
    assert rot.max() < 180
    assert tilt.max() < 90
    assert np.histogram(rot, 4, (0, 180))[0] == pytest.approx(75, rel=0.3)


def test_c1_changes_nothing(poses: Tensor) -> None:
    assert torch.equal(reduce_to_asymmetric_unit(poses, "C1"), poses)


@pytest.mark.parametrize("name", WITH_CRYOSPARCS)
@pytest.mark.parametrize(
    "angles", [(0, 0, 0), (0, 180, 30), (90, 90, 0), (180, 60, 0), (-90, 45, 0), (45, 54.7356, 1)]
)
def test_directions_on_axes_and_edges_get_one_pose_in_the_unit(
    name: str, angles: tuple[float, float, float]
) -> None:
    pose = torch.from_numpy(relion_euler_to_quaternion(np.array([angles], dtype=float))).float()
    reduced = reduce_to_asymmetric_unit(pose, name)
    assert reduced.shape == (1, 4)
    assert in_asymmetric_unit(reduced, name).all()
    assert angular_distance_to_group(reduced.double(), pose.double(), group_of(name)).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_shape_and_type_are_kept_under_autocast_too(dtype: torch.dtype, poses: Tensor) -> None:
    q = poses.to(dtype).reshape(3, 100, 4)
    expected = reduce_to_asymmetric_unit(q, "O")
    assert expected.dtype == dtype
    assert expected.shape == q.shape
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reduce_to_asymmetric_unit(q, "O"), expected)
    assert reduce_to_asymmetric_unit(q[:0], "O").shape == (0, 100, 4)


def test_gradient_passes_through(poses: Tensor) -> None:
    q = poses.clone().requires_grad_()
    reduce_to_asymmetric_unit(q, "T").square().sum().backward()
    assert q.grad is not None
    torch.testing.assert_close(q.grad, 2 * poses)  # a product with a unit quaternion keeps lengths


@pytest.mark.parametrize("reduce", [reduce_to_asymmetric_unit, in_asymmetric_unit])
def test_an_unknown_group_is_refused(reduce: Callable[[Tensor, str], Tensor], poses: Tensor) -> None:
    with pytest.raises(SettingsError, match="unknown symmetry"):
        reduce(poses, "X3")


def test_case_and_blanks_do_not_matter(poses: Tensor) -> None:
    assert torch.equal(reduce_to_asymmetric_unit(poses, " d3 "), reduce_to_asymmetric_unit(poses, "D3"))


@pytest.mark.parametrize("name", GROUPS[1:])
def test_relion_searches_the_same_unit(name: str, relion, project: Path, write_star) -> None:
    """The directions of RELION's search grid lie in our unit, and every direction of ours is near one."""
    ball = np.exp(-((np.indices((16, 16, 16)) - 8) ** 2).sum(0) / 8).astype(np.float32)
    for file_name, data in (("map.mrc", ball), ("stack.mrcs", ball.sum(0, keepdims=True))):
        with mrcfile.new(project / file_name) as file:
            file.set_data(data)
            file.voxel_size = 3.0
    image = {"rlnImageName": ["1@stack.mrcs"], "rlnOpticsGroup": [1]}
    text = write_star("particles.star", image).read_text()
    (project / "particles.star").write_text(text.replace(" 32 ", " 16 "))
    relion.run(
        "relion_refine", "--i", "particles.star", "--ref", "map.mrc", "--o", "./run", "--sym", name, "--iter", 1,
        "--healpix_order", 4, "--psi_step", 120, "--particle_diameter", 40, "--firstiter_cc", cwd=project,
    )  # fmt: skip
    grid = starfile.read(project / "run_it001_sampling.star")["sampling_directions"]
    angles = grid[["rlnAngleRot", "rlnAngleTilt"]].to_numpy(dtype=float)
    theirs = torch.from_numpy(relion_euler_to_quaternion(np.pad(angles, ((0, 0), (0, 1)))))
    assert len(theirs) == pytest.approx(12 * 4**4 / len(symmetry_group(name)), rel=0.1)
    assert in_asymmetric_unit(theirs, name).all()

    ours = reduce_to_asymmetric_unit(
        random_quaternions(2000, torch.Generator().manual_seed(1)).double(), name
    )
    directions = [roma.unitquat_to_rotmat(q)[:, :, 2] for q in (ours, theirs)]
    nearest = (directions[0] @ directions[1].mT).amax(1).clamp(max=1).acos().max()
    assert math.degrees(nearest) < 2 * 3.7  # two steps: of directions at edges RELION keeps only some

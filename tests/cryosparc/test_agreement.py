"""Poses and shifts are the same in RELION and cryoSPARC to 1e-4 degrees and 1e-3 px, by either program's rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from blobs import blob_positions, blob_projections, blob_volume, correlation
from fake_cryosparc.synthetic import synthetic_particles
from particle_tables import angles_deg, make_particles
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from cryoforum_plugin.formats import read_particles, write_particles
from cryoforum_plugin.particles import ParticleSet

if TYPE_CHECKING:
    from tests.conftest import Relion

POSE_DEG, SHIFT_PX = 1e-4, 1e-3
PSIZE_A, BLOB_PSIZE_A = 1.5, 3.0


def relion_matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    """Matrix A of RELION's Euler_angles2matrix (src/euler.cpp), from degrees; volume to image."""
    (ca, cb, cg), (sa, sb, sg) = (f(np.radians([rot, tilt, psi])) for f in (np.cos, np.sin))
    cc, cs, sc, ss = cb * ca, cb * sa, sb * ca, sb * sa
    return np.array(
        [
            [cg * cc - sg * sa, cg * cs + sg * ca, -cg * sb],
            [-sg * cc - cg * sa, -sg * cs + cg * ca, sg * sb],
            [sc, ss, cb],
        ]
    )


def cryosparc_matrix(pose: np.ndarray) -> np.ndarray:
    """Matrix that a rotation vector is the logarithm of; image to volume."""
    x, y, z = pose.astype(np.float64)
    return np.asarray(expm(np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])))


def all_poses() -> np.ndarray:
    """Quaternions `(n, 4)`: random, seen along the axis or nearly so, half turns or nearly so, none at all."""
    rng = np.random.default_rng(4)
    tilts = np.repeat([0.0, 1e-6, 1e-3, 90.0, 180 - 1e-3, 180 - 1e-6, 180.0], 6)
    angles = rng.uniform(-180, 180, (len(tilts), 2))
    along = [relion_matrix(rot, tilt, psi).T for (rot, psi), tilt in zip(angles, tilts, strict=True)]
    axes = np.concatenate([np.eye(3), -np.eye(3), rng.normal(size=(6, 3))])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    turns = [Rotation.from_rotvec(angle * axes) for angle in (np.pi, np.pi - 1e-7, np.pi - 1e-4)]
    some = [Rotation.random(200, rng=rng), Rotation.from_matrix(along), *turns, Rotation.identity(1)]
    return Rotation.concatenate(some).as_quat()


def all_particles(folder: Path) -> ParticleSet:
    """Return particles with all poses, and shifts from none to many pixels."""
    rotation = all_poses()
    made = make_particles(folder, len(rotation))
    size = np.random.default_rng(2).choice([0.0, 0.01, 1.0, 30.0], (len(rotation), 1))
    return replace(made, rotation=rotation, shift_A=made.shift_A * size)


def assert_agree(a: ParticleSet, b: ParticleSet) -> None:
    """Assert that poses and shifts agree to what is promised."""
    assert a.shift_A is not None
    assert b.shift_A is not None
    assert angles_deg(a.require_rotation(), b.require_rotation()).max() < POSE_DEG
    assert np.abs((a.shift_A - b.shift_A) / a.pixel_size_A[:, None]).max() < SHIFT_PX


def star_columns(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angles `(n, 3)`, origins in Å `(n, 2)` and pixel sizes `(n,)` of a STAR file, not read by us."""
    blocks = starfile.read(path)
    rows = blocks["particles"].merge(blocks["optics"], on="rlnOpticsGroup", how="left")
    angles = rows[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    return (
        angles,
        rows[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy(),
        rows["rlnImagePixelSize"].to_numpy(),
    )


def load(path: Path) -> Any:
    """Return a .cs file as the client reads it."""
    from cryosparc.dataset import Dataset

    return Dataset.load(str(path))


def assert_same_numbers(star: Path, cs: Path) -> None:
    """Assert that a STAR file and a .cs file say the same, by the rules of the programs and without our code."""
    (angles, origin_A, _), table = star_columns(star), load(cs)
    theirs = np.array([relion_matrix(*row) for row in angles])
    ours = np.array([cryosparc_matrix(pose) for pose in table["alignments3D/pose"]])
    assert np.degrees(Rotation.from_matrix(theirs @ ours).magnitude()).max() < POSE_DEG  # A = R transposed
    psize_A = table["alignments3D/psize_A"][:, None].astype(np.float64)
    assert np.abs(table["alignments3D/shift"] - origin_A / psize_A).max() < SHIFT_PX
    regular = np.abs(angles[:, 1] - 90) < 80
    zyz = Rotation.from_rotvec(table["alignments3D/pose"][regular]).as_euler("ZYZ", degrees=True)
    assert np.abs((zyz - angles[regular] + 180) % 360 - 180).max() < 1e-3


def test_the_same_particles_through_both_adapters(project: Path) -> None:
    made = all_particles(project)
    for suffix in ("star", "cs"):
        write_particles(made, project / f"a.{suffix}")
    sets = [made, read_particles(project / "a.star"), read_particles(project / "a.cs")]
    for a, b in combinations(sets, 2):
        assert_agree(a, b)
    assert_same_numbers(project / "a.star", project / "a.cs")


@pytest.mark.parametrize(("first", "second"), [("star", "cs"), ("cs", "star")])
def test_there_and_back(first: str, second: str, project: Path) -> None:
    made = all_particles(project)
    write_particles(made, project / f"a.{first}")
    write_particles(read_particles(project / f"a.{first}"), project / f"b.{second}")
    write_particles(read_particles(project / f"b.{second}"), project / f"c.{first}")
    assert_agree(read_particles(project / f"c.{first}"), made)
    paths = {first: project / f"a.{first}", second: project / f"b.{second}"}
    assert_same_numbers(paths["star"], paths["cs"])
    assert_same_numbers(**{first: project / f"c.{first}", second: paths[second]})


@pytest.fixture
def write_table(project: Path) -> Callable[..., Path]:
    """Return a writer of the client's own table of particles that were binned after their refinement."""

    def write(format: str) -> Path:
        from cryosparc import dataset

        pose = Rotation.from_quat(all_poses()).as_rotvec()
        table = synthetic_particles(
            len(pose), project, box=8, psize_A=PSIZE_A, blob_psize_A=BLOB_PSIZE_A, pose=pose
        )
        table.save(str(project / "table.cs"), format=getattr(dataset, format))
        return project / "table.cs"

    return write


@pytest.mark.parametrize("format", ["NUMPY_FORMAT", "CSDAT_FORMAT"])
def test_a_table_that_the_client_wrote(format: str, write_table: Callable[..., Path], project: Path) -> None:
    path = write_table(format)
    write_particles(read_particles(path), project / "a.star", data_root=project)
    assert_same_numbers(project / "a.star", path)
    np.testing.assert_allclose(star_columns(project / "a.star")[2], BLOB_PSIZE_A)
    write_particles(read_particles(project / "a.star", project), project / "b.cs")
    given, back = load(path), load(project / "b.cs")
    np.testing.assert_allclose(back["alignments3D/psize_A"], BLOB_PSIZE_A)
    shift_px = given["alignments3D/shift"] * PSIZE_A / BLOB_PSIZE_A
    assert np.abs(back["alignments3D/shift"] - shift_px).max() < SHIFT_PX
    assert_same_numbers(project / "a.star", project / "b.cs")


def test_relion_moves_the_centre_the_same(
    write_table: Callable[..., Path], relion: Relion, project: Path
) -> None:
    """`relion_star_handler --center` subtracts a point of the volume, projected by the pose, from the shift."""
    path, centre_px = write_table("NUMPY_FORMAT"), np.array([7.0, -4.0, 11.0])
    write_particles(read_particles(path), project / "a.star", data_root=project)
    named = [
        part for axis, value in zip("XYZ", centre_px, strict=True) for part in (f"--center_{axis}", value)
    ]
    relion.run("relion_star_handler", "--i", "a.star", "--o", "b.star", "--center", *named, cwd=project)
    table, moved = load(path), read_particles(project / "b.star", project)
    assert moved.shift_A is not None
    to_image = np.array([cryosparc_matrix(pose).T for pose in table["alignments3D/pose"]])
    expected_A = table["alignments3D/shift"] * PSIZE_A - (to_image @ centre_px)[:, :2] * BLOB_PSIZE_A
    assert np.abs(moved.shift_A - expected_A).max() / BLOB_PSIZE_A < SHIFT_PX


def test_relion_turns_the_volume_the_same(
    write_table: Callable[..., Path], relion: Relion, project: Path
) -> None:
    """`relion_particle_symmetry_expand` multiplies the operators of the volume's point group to the poses."""
    path = write_table("NUMPY_FORMAT")
    write_particles(read_particles(path), project / "a.star", data_root=project)
    relion.run(
        "relion_particle_symmetry_expand", "--i", "a.star", "--o", "b.star", "--sym", "C3", cwd=project
    )
    expanded = read_particles(project / "b.star", project).require_rotation().reshape(-1, 3, 4)
    pose = np.array([cryosparc_matrix(pose) for pose in load(path)["alignments3D/pose"]])
    turns = Rotation.from_euler("z", [[0], [120], [240]], degrees=True).as_matrix()
    copies = [Rotation.from_matrix(turn @ pose).as_quat() for turn in turns]
    distance = [[angles_deg(expanded[:, k], copy).max() for copy in copies] for k in range(3)]
    assert sorted(np.argmin(distance, axis=1)) == [0, 1, 2]
    assert np.min(distance, axis=1).max() < POSE_DEG


def test_relion_projects_what_cryosparc_would_see(relion: Relion, project: Path) -> None:
    """From the client's table, through our STAR file, to RELION's images: those that the table's poses show."""
    n, box = 60, 32
    positions = blob_positions()
    with mrcfile.new(project / "map.mrc") as file:
        file.set_data(blob_volume(positions, box).numpy())
        file.voxel_size = PSIZE_A
    table = synthetic_particles(n, project, box=box, psize_A=PSIZE_A)
    table.save(str(project / "table.cs"))
    write_particles(read_particles(project / "table.cs"), project / "a.star", data_root=project)
    relion.run("relion_project", "--i", "map.mrc", "--o", "theirs", "--ang", "a.star", cwd=project)
    matrices = np.array([cryosparc_matrix(pose) for pose in table["alignments3D/pose"]])
    expected = blob_projections(positions, matrices, box, np.asarray(table["alignments3D/shift"]))
    theirs = torch.from_numpy(np.array(mrcfile.read(project / "theirs.mrcs"), dtype=np.float32))
    assert correlation(theirs, expected).min() > 0.995

"""A quick check that the installed libraries and this program agree on every convention.

Each check compares the program with a formula written out here from its source: RELION's Euler matrix
(`3dem/relion:src/euler.cpp`), Rodrigues' rotation formula, RELION's CTF (`src/ctf.cpp`), and exact
projections of Gaussian blobs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from cryoforum_plugin.geometry import (
    quaternion_to_relion_euler,
    relion_euler_to_quaternion,
    rotation_vector_to_quaternion,
    symmetry_group,
)
from cryoforum_plugin.particles import FloatArray

BOX_PX = 48
BLOB_SIGMA_PX = 2.0
INTERPOLATION = 0.08  # a wrong sign or axis deviates by 0.5 and more, trilinear slices by 0.04
# No symmetry and no mirror image of itself; xyz about pixel n // 2, with different weights.
BLOBS_PX = np.array([[7.0, 1, -3], [-4, 8, 2], [0, -6, 7], [-8, -3, -5], [3, 4, 9]])
BLOB_WEIGHTS = np.array([1.0, 0.8, 1.3, 0.6, 1.1])
POSES_DEG = np.array([[0.0, 0, 0], [30, 60, 110], [-120, 135, 20], [75, 20, -160]])


class Check(NamedTuple):
    """One convention: its name, whether it holds, and the largest deviation in the stated unit."""

    name: str
    passed: bool
    detail: str


def project_blobs(
    R: FloatArray, points_px: FloatArray = BLOBS_PX, shift_px: FloatArray | None = None
) -> FloatArray:
    """Exact projections `(n, box, box)` of the blobs at R `(n, 3, 3)`; the particle stands at -shift_px.

    A blob at r shows at the first two coordinates of R^T r, x along columns, y along rows downwards.
    """
    xy = np.einsum("nji,bj->nbi", R, points_px)[..., :2]
    if shift_px is not None:
        xy = xy - shift_px[:, None, :]
    axis = np.arange(BOX_PX) - BOX_PX // 2
    columns = np.exp(-((axis - xy[..., :1]) ** 2) / (2 * BLOB_SIGMA_PX**2))  # (n, blobs, box)
    rows = np.exp(-((axis - xy[..., 1:]) ** 2) / (2 * BLOB_SIGMA_PX**2))
    weights = np.resize(BLOB_WEIGHTS, len(points_px))
    return np.asarray(np.einsum("b,nbi,nbj->nij", weights, rows, columns))


def blob_volume() -> FloatArray:
    """Blob density `(box, box, box)` zyx whose projections `project_blobs` gives."""
    axis = np.arange(BOX_PX) - BOX_PX // 2
    x, y, z = (np.exp(-((axis - BLOBS_PX[:, i, None]) ** 2) / (2 * BLOB_SIGMA_PX**2)) for i in range(3))
    scale = 1 / (BLOB_SIGMA_PX * np.sqrt(2 * np.pi))  # a projection integrates along the beam
    return np.asarray(scale * np.einsum("b,bi,bj,bk->ijk", BLOB_WEIGHTS, z, y, x))


def relion_euler_matrix(angles_deg: FloatArray) -> FloatArray:
    """RELION's matrix A `(3, 3)` (volume to image coordinates) of one (rot, tilt, psi)."""
    (cf, ct, cp), (sf, st, sp) = np.cos(np.radians(angles_deg)), np.sin(np.radians(angles_deg))
    return np.array(
        [
            [cp * ct * cf - sp * sf, cp * ct * sf + sp * cf, -cp * st],
            [-sp * ct * cf - cp * sf, -sp * ct * sf + cp * cf, sp * st],
            [st * cf, st * sf, ct],
        ]
    )


def _matrices(quaternion: FloatArray) -> FloatArray:
    return np.asarray(Rotation.from_quat(quaternion).as_matrix())


def _poses() -> FloatArray:
    return relion_euler_to_quaternion(POSES_DEG)


def _largest(name: str, a: object, b: object, limit: float) -> Check:
    """Compare two arrays by their largest difference relative to the largest value of the second."""
    expected = np.asarray(b, dtype=np.float64)
    deviation = float(np.abs(np.asarray(a, dtype=np.float64) - expected).max() / np.abs(expected).max())
    return Check(name, deviation <= limit, f"relative deviation {deviation:.1e}, allowed {limit:.0e}")


def _euler() -> Check:
    expected = np.stack([relion_euler_matrix(angles).T for angles in POSES_DEG])
    return _largest("RELION Euler angles to R", _matrices(_poses()), expected, 1e-12)


def _euler_inverse() -> Check:
    angles = np.concatenate([POSES_DEG, [[40.0, 0, 25], [40, 180, 25]]])  # tilt 0 and 180: only R is defined
    q = relion_euler_to_quaternion(angles)
    again = relion_euler_to_quaternion(quaternion_to_relion_euler(q))
    return _largest("R to RELION Euler angles", _matrices(again), _matrices(q), 1e-7)


def _rotation_vector() -> Check:
    vector = np.array([0.4, -1.1, 0.7])
    angle = np.linalg.norm(vector)
    x, y, z = vector / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    expected = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
    return _largest(
        "cryoSPARC rotation vector to R", _matrices(rotation_vector_to_quaternion(vector)), expected, 1e-12
    )


def _star_reader() -> Check:
    """What is written in RELION's format, as the `starfile` package reads it."""
    import starfile

    from cryoforum_plugin import formats
    from cryoforum_plugin.particles import ParticleSet

    n, angles = len(POSES_DEG), ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
    rows, ones = np.arange(n), np.ones(n)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "poses.star"
        shift_A, stack = np.zeros((n, 2)), (Path(folder) / "none.mrcs",)
        poses = ParticleSet(path, stack, 0 * rows, rows, ones, _poses(), shift_A, None, ones, 1 + 0 * rows,
                            1 + rows % 2, rows, rows, rows.astype(np.uint64), None, None)  # fmt: skip
        formats.write_particles(poses, path)
        read = starfile.read(path)["particles"][angles].to_numpy()
    return _largest(
        "STAR text as starfile reads it",
        _matrices(relion_euler_to_quaternion(read)),
        _matrices(_poses()),
        1e-7,
    )


def _projection() -> Check:
    from cryoforum_plugin.images.projector import Projector

    R = _matrices(_poses())
    images = Projector(torch.from_numpy(blob_volume()).float(), 1.0).project(torch.from_numpy(R))
    return _largest("projection of off-centre blobs", images, project_blobs(R), INTERPOLATION)


def _shift() -> Check:
    from cryoforum_plugin.images.projector import Projector

    R, shift_px = _matrices(_poses()), np.array([[3.0, -2], [0, 4], [-5, 1], [2.5, 0.5]])
    pixel_size_A = 1.7
    images = Projector(torch.from_numpy(blob_volume()).float(), pixel_size_A).project(
        torch.from_numpy(R), shift_A=torch.from_numpy(shift_px * pixel_size_A).float()
    )
    expected = project_blobs(R, shift_px=shift_px)
    return _largest("sign and unit of the shift", images, expected, INTERPOLATION)


def _ctf() -> Check:
    from cryoforum_plugin.images.ctf import ctf_2d
    from cryoforum_plugin.particles import Ctf

    row = (18000.0, 15000.0, 35.0, 300.0, 2.7, 0.1, 0.0)
    box, pixel_size_A = 64, 2.0
    kx = np.fft.rfftfreq(box, pixel_size_A)[None, :]
    ky = np.fft.fftfreq(box, pixel_size_A)[:, None]
    k2, alpha = kx**2 + ky**2, np.arctan2(ky, kx)
    wavelength_A = 12.2643247 / np.sqrt(3e5 * (1 + 0.978466e-6 * 3e5))
    defocus_A = 16500 + 1500 * np.cos(2 * (alpha - np.radians(35.0)))
    gamma = -np.pi * wavelength_A * defocus_A * k2 + np.pi / 2 * 2.7e7 * wavelength_A**3 * k2**2
    expected = -np.sin(gamma - np.arctan(0.1 / np.sqrt(1 - 0.1**2)))
    values = ctf_2d(Ctf(*(np.array([value]) for value in row)), box, pixel_size_A)[0]
    return _largest("CTF: sign, astigmatism, DC = +amplitude contrast", values, expected, 2e-3)


def _in_plane(mirrored: bool) -> Check:
    from cryoforum_plugin.images.augment import in_plane_operation, transform_images

    angle_rad = torch.tensor([0.3, -1.1, 2.0, -2.9], dtype=torch.float64)
    mirrors = torch.full((4,), mirrored)
    q = _poses()
    moved = transform_images(torch.from_numpy(project_blobs(_matrices(q))), angle_rad, mirrors)
    operation = Rotation.from_quat(in_plane_operation(angle_rad, mirrors).numpy())
    expected = project_blobs((Rotation.from_quat(q) * operation).as_matrix())
    rule = "mirror in x, then rotate: q (0, 1, 0, 0) rz(-a)" if mirrored else "in-plane rotation: q rz(-a)"
    return _largest(rule, moved, expected, 1e-2)


def _symmetry() -> Check:
    group = Rotation.from_quat(symmetry_group("D3"))
    points = np.concatenate([S.apply(BLOBS_PX) for S in group])
    q = Rotation.from_quat(_poses()[1])
    images = np.concatenate([project_blobs((S * q).as_matrix()[None], points) for S in group])
    return _largest(
        "point groups act from the left: S q", images, np.broadcast_to(images[0], images.shape), 1e-9
    )


CHECKS: tuple[Callable[[], Check], ...] = (
    _euler,
    _euler_inverse,
    _rotation_vector,
    _star_reader,
    _projection,
    _shift,
    _ctf,
    lambda: _in_plane(mirrored=False),
    lambda: _in_plane(mirrored=True),
    _symmetry,
)


def run_checks() -> list[Check]:
    """Run every check; one that raises counts as failed."""
    results = []
    for check in CHECKS:
        try:
            results.append(check())
        except Exception as error:
            results.append(Check(check.__name__.strip("_"), False, f"{type(error).__name__}: {error}"))
    return results

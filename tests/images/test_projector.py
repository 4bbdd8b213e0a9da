"""Projections against exact ones, torch-fourier-slice and RELION's."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from blobs import blob_positions, blob_projections, blob_volume, correlation, random_matrices
from scipy.spatial.transform import Rotation
from torch_fourier_slice import project_3d_to_2d

from cryoforum_plugin.images.fourier import fourier_crop, shift_images
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.maps.volume import make_even

POSITIONS = blob_positions()
VOLUME = blob_volume(POSITIONS)
R = random_matrices(24)


def test_exact_projections_of_blobs() -> None:
    images = Projector(VOLUME, 1.0).project(torch.from_numpy(R))
    exact = blob_projections(POSITIONS, R)
    assert correlation(images, exact).min() > 0.999
    assert float((images - exact).norm() / exact.norm()) < 0.03
    assert float((images * exact).sum() / exact.square().sum()) == pytest.approx(1, abs=1e-2)  # scale


def test_more_padding_is_more_accurate() -> None:
    exact = blob_projections(POSITIONS, R)
    errors = [
        float((Projector(VOLUME, 1.0, padding=p).project(torch.from_numpy(R)) - exact).norm())
        for p in (1, 2, 4)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_identity_is_the_sum_along_z() -> None:
    image = Projector(VOLUME, 1.0, padding=4).project(torch.eye(3)[None])[0]
    assert float((image - VOLUME.sum(0)).abs().max() / image.max()) < 0.01


def test_agrees_with_torch_fourier_slice() -> None:
    matrices = torch.from_numpy(R).float()
    ours = Projector(VOLUME, 1.0).project(matrices)
    theirs = project_3d_to_2d(VOLUME, matrices)
    assert correlation(ours, theirs).min() > 0.9995


def test_smaller_box_equals_cropped_projection() -> None:
    matrices = torch.from_numpy(R[:6])
    small = Projector(VOLUME, 1.5, box_px=20)
    full = fourier_crop(Projector(VOLUME, 1.5).project(matrices), 20)
    assert small.pixel_size_A == pytest.approx(2.4)
    assert small.project(matrices).shape == (6, 20, 20)
    assert float((small.project(matrices) - full).norm() / full.norm()) < 0.03  # corners aside


def test_shift_displaces_by_its_negative_and_pixel_size() -> None:
    shift_px = np.array([[2.5, -1.0], [0.0, 3.25]])
    images = Projector(VOLUME, 2.0).project(torch.from_numpy(R[:2]), shift_A=torch.from_numpy(shift_px) * 2.0)
    assert correlation(images, blob_projections(POSITIONS, R[:2], shift_px=shift_px)).min() > 0.999
    recentred = shift_images(images, torch.from_numpy(shift_px))
    assert correlation(recentred, blob_projections(POSITIONS, R[:2])).min() > 0.999


def test_ctf_multiplies_the_transform() -> None:
    projector, matrices = Projector(VOLUME, 1.0), torch.from_numpy(R[:3])
    ctf = torch.rand(3, 32, 17)
    slices = torch.fft.rfft2(torch.fft.ifftshift(projector.project(matrices, ctf), dim=(-2, -1)))
    keep = (slice(None), slice(None), slice(1, 16))  # columns whose Friedel mates are not in the half plane
    assert torch.allclose(slices[keep], (projector.slices(matrices) * ctf)[keep], atol=2e-3)


def test_in_plane_rotation_turns_the_content_backwards() -> None:
    angle = 0.4
    turned = R[:1] @ Rotation.from_rotvec([0, 0, -angle]).as_matrix()
    image = Projector(VOLUME, 1.0).project(torch.from_numpy(turned))
    spin = Rotation.from_rotvec([0, 0, angle]).as_matrix()
    seen = (POSITIONS @ R[0]) @ spin.T  # content of the first image turned from x to y
    assert correlation(image, blob_projections(seen, np.eye(3)[None])).min() > 0.999


def test_differentiable_in_the_orientation() -> None:
    rotation_vector = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    projector = Projector(VOLUME, 1.0)

    def energy(matrices: torch.Tensor) -> torch.Tensor:
        return (projector.project(matrices)[:, 10:20, 5:12]).square().sum()

    matrix = torch.linalg.matrix_exp(_skew(rotation_vector)).requires_grad_()
    energy(matrix).backward()
    assert matrix.grad is not None
    step = _skew(torch.tensor([[1e-2, 0.0, 0.0]], dtype=torch.float64)) @ matrix.detach()
    numeric = (energy(matrix.detach() + step) - energy(matrix.detach() - step)) / 2
    assert float((matrix.grad * step).sum()) == pytest.approx(float(numeric), rel=0.1)


def _skew(v: torch.Tensor) -> torch.Tensor:
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)


def test_autocast_does_not_touch_it() -> None:
    projector, matrices = Projector(VOLUME, 1.0), torch.from_numpy(R[:2]).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = projector.project(matrices)
    assert torch.equal(image, projector.project(matrices))


@pytest.mark.parametrize("box", [None, 33, 34, 0])
def test_refuses_odd_volumes_and_bad_boxes(box: int | None) -> None:
    volume = torch.zeros(33, 33, 33) if box is None else VOLUME
    with pytest.raises(ValueError, match="even"):
        Projector(volume, 1.0, box_px=box)


def test_odd_volume_made_even_keeps_its_centre() -> None:
    odd = blob_volume(POSITIONS, 33)
    image = Projector(make_even(odd), 1.0).project(torch.from_numpy(R[:4]))
    assert correlation(image, blob_projections(POSITIONS, R[:4], 34)).min() > 0.999


def _crop_to_even(volume: np.ndarray) -> torch.Tensor:
    """Fourier-crop the 65-voxel map to 64 about index 32."""
    transform = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume)))[:64, :64, :64]
    transform[0], transform[:, 0], transform[:, :, 0] = 0, 0, 0
    return torch.from_numpy(np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(transform)).real)).float()


@pytest.mark.parametrize("name", ["rln_proj_64_centered", "rln_proj_64_shifted"])
def test_relions_own_projections(shared_data: Path, name: str) -> None:
    folder = shared_data / "real" / "relion_projections"
    if not folder.is_dir():
        pytest.skip("no relion_projections")
    table = starfile.read(folder / f"{name}.star")["particles"]
    angles = table[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    labels = [label for label in table.columns if label.startswith("rlnOrigin")]
    matrices = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix()
    with mrcfile.open(folder / f"{name}.mrcs", permissive=True) as file:
        relion_images = torch.from_numpy(np.array(file.data, dtype=np.float32))
    volume = _crop_to_even(np.load(folder / "clean70SRibosome_vol.npy"))
    shift = torch.from_numpy(table[labels].to_numpy(dtype=np.float64))
    images = Projector(volume, 1.0).project(torch.from_numpy(matrices), shift_A=shift)
    assert correlation(images, relion_images).min() > 0.999


def _project_learned(volume: torch.Tensor, box: int = 32) -> torch.Tensor:
    matrices, ctf = torch.from_numpy(R[:5]), torch.linspace(-1, 1, box * (box // 2 + 1)).view(box, -1)
    return Projector(torch.zeros_like(VOLUME), 1.0, box).project(matrices, ctf, torch.ones(5, 2), volume)


@pytest.mark.parametrize("box", [32, 20])
def test_gradient_of_the_volume_is_the_adjoint(box: int, generator: torch.Generator) -> None:
    volume = torch.nn.Parameter(torch.zeros_like(VOLUME))
    images = _project_learned(volume, box)
    of_images = torch.randn(images.shape, generator=generator)
    (images * of_images).sum().backward()
    assert volume.grad is not None
    direction = torch.randn(VOLUME.shape, generator=generator)  # projection is linear: any step is exact
    there = float((_project_learned(direction, box).double() * of_images).sum())
    assert float((volume.grad.double() * direction).sum()) == pytest.approx(there, rel=1e-4)


def test_volume_given_later_is_projected_like_one_given_at_first() -> None:
    matrices = torch.from_numpy(R[:3])
    empty = Projector(torch.zeros_like(VOLUME), 1.0)
    expected = Projector(VOLUME, 1.0).project(matrices)
    assert torch.equal(empty.project(matrices, volume=VOLUME), expected)
    assert not empty.project(matrices).any()
    with pytest.raises(ValueError, match="32 voxels"):
        empty.project(matrices, volume=VOLUME[:-2, :-2, :-2])


def test_fixed_volume_keeps_no_graph() -> None:
    projector = Projector(torch.nn.Parameter(VOLUME.clone()), 1.0)
    assert not projector.transform.requires_grad
    assert not projector.project(torch.from_numpy(R[:1])).requires_grad

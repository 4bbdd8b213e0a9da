"""Back-projection of exact projections gives the volume back."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_projections, blob_volume, correlation, random_matrices
from scipy.spatial.transform import Rotation

from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.fourier import radial_average
from cryoforum_plugin.particles import Ctf
from cryoforum_plugin.reconstruction.backproject import BackProjector
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation

POSITIONS = blob_positions()
VOLUME = blob_volume(POSITIONS)
N = 800
R = random_matrices(N)


def transforms(images: torch.Tensor) -> torch.Tensor:
    return torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))


def exact_slices() -> torch.Tensor:
    return transforms(blob_projections(POSITIONS, R))


def matrices() -> torch.Tensor:
    return torch.from_numpy(R).float()


def ctfs(n: int = N, box: int = 32) -> torch.Tensor:
    one, rng = np.ones(n), np.random.default_rng(0)
    defocus = rng.uniform(1e4, 2.5e4, n)
    return ctf_2d(Ctf(defocus, defocus, 0 * one, 300 * one, 2.7 * one, 0.1 * one, 0 * one), box, 4.0)


@pytest.mark.parametrize("padding", [1, 2])
def test_noise_free_projections_give_the_volume_back(padding: int) -> None:
    projector = BackProjector(32, padding=padding)
    projector.insert(exact_slices(), matrices())
    fsc = fourier_shell_correlation(projector.volume(), VOLUME)
    assert fsc[1:11].min() > (0.99 if padding == 2 else 0.95)
    volume = projector.volume()
    assert float((volume * VOLUME).sum() / VOLUME.square().sum()) == pytest.approx(1, abs=0.05)


def test_ctf_is_divided_out() -> None:
    ctf = ctfs()
    projector = BackProjector(32)
    projector.insert(exact_slices() * ctf, matrices(), ctf)
    assert fourier_shell_correlation(projector.volume(), VOLUME)[1:11].min() > 0.99


def test_phase_flipped_images_are_the_same() -> None:
    ctf = ctfs()
    plain, flipped = BackProjector(32), BackProjector(32)
    plain.insert(exact_slices() * ctf, matrices(), ctf)
    flipped.insert_weighted(exact_slices() * ctf.abs() * ctf.abs(), matrices(), ctf.square())
    assert torch.allclose(plain.volume(), flipped.volume(), atol=1e-4)


def test_hermitian_plane_equals_full_insertion() -> None:
    """The half kx >= 0 holds what inserting every frequency and its Friedel mate would give."""
    projector = BackProjector(8, padding=1)
    image = transforms(torch.randn(1, 8, 8))
    rotation = matrices()[:1]
    projector.insert(image, rotation)
    full = np.zeros((8, 8, 8), complex)
    whole = np.fft.fft2(np.fft.irfft2(image[0].numpy()))
    for i, ky in enumerate(np.fft.fftfreq(8, 1 / 8)):
        for j, kx in enumerate(np.fft.fftfreq(8, 1 / 8)):
            if kx**2 + ky**2 >= 16:
                continue
            k = rotation[0].numpy()[:, :2] @ np.array([kx, ky], dtype=np.float32)
            low = np.floor(k).astype(int)
            for corner in np.ndindex(2, 2, 2):
                weight = np.prod(np.where(corner, k - low, 1 - (k - low)))
                x, y, z = (low + corner) % 8
                full[z, y, x] += weight * whole[i, j]
    real, imaginary, _ = projector._complete()
    ours = torch.complex(real, imaginary).numpy()
    inner = np.arange(-3, 4) % 8
    assert (
        np.abs(ours[np.ix_(inner, inner, range(1, 4))] - full[np.ix_(inner, inner, range(1, 4))]).max() < 1e-4
    )
    assert np.abs(ours[inner][:, inner, 0] - full[inner][:, inner, 0]).max() < 1e-4


def test_batches_do_not_matter() -> None:
    together, apart = BackProjector(32), BackProjector(32)
    ctf = ctfs()
    together.insert(exact_slices(), matrices(), ctf)
    for rows in (slice(0, 300), slice(300, N)):
        apart.insert(exact_slices()[rows], matrices()[rows], ctf[rows])
    assert torch.allclose(together.volume(), apart.volume(), atol=1e-4)


def test_adding_two_halves_is_inserting_all() -> None:
    together, first, second = BackProjector(32), BackProjector(32), BackProjector(32)
    together.insert(exact_slices(), matrices())
    first.insert(exact_slices()[::2], matrices()[::2])
    second.insert(exact_slices()[1::2], matrices()[1::2])
    first += second
    assert torch.allclose(together.volume(), first.volume(), atol=1e-4)


def test_weight_zero_leaves_a_particle_out() -> None:
    junk = exact_slices()
    junk[::2] = torch.randn_like(junk[::2]) * 50
    weights = torch.ones(N)
    weights[::2] = 0
    projector, clean = BackProjector(32), BackProjector(32)
    projector.insert(junk, matrices(), weights=weights)
    clean.insert(exact_slices()[1::2], matrices()[1::2])
    assert torch.allclose(projector.volume(), clean.volume(), atol=1e-4)


@pytest.mark.parametrize("name", ["C3", "D2", "O"])
def test_asymmetric_unit_gives_the_symmetric_volume(name: str) -> None:
    group = Rotation.from_quat(symmetry_group(name))
    positions = np.concatenate([s.apply(POSITIONS[:4]) for s in group])
    volume = blob_volume(positions)
    operators = torch.from_numpy(group.as_matrix()).float()
    projector = BackProjector(32)
    projector.insert(transforms(blob_projections(positions, R[:200])), matrices()[:200])
    projector.symmetrise(operators)
    found = projector.volume()
    assert fourier_shell_correlation(found, volume)[1:11].min() > 0.99


def test_symmetry_mates_of_the_poses_give_the_same_volume() -> None:
    group = Rotation.from_quat(symmetry_group("C4"))
    positions = np.concatenate([s.apply(POSITIONS[:4]) for s in group])
    slices = transforms(blob_projections(positions, R))
    chosen = np.random.default_rng(0).integers(4, size=N)
    mates = torch.from_numpy(group.as_matrix()[chosen] @ R).float()
    volumes = []
    for rotation in (matrices(), mates):
        projector = BackProjector(32)
        projector.insert(slices, rotation)
        projector.symmetrise(torch.from_numpy(group.as_matrix()).float())
        volumes.append(projector.volume())
    assert float(correlation(volumes[0][None], volumes[1][None])) > 0.9999


def test_regularisation_per_shell_damps_only_that_shell() -> None:
    projector = BackProjector(32)
    projector.insert(transforms(torch.randn(N, 32, 32)), matrices())
    strong = torch.full((17,), 1e-3)
    strong[8:] = 1e6
    damped, plain = (torch.fft.rfftn(projector.volume(r)).abs().square() for r in (strong, 1e-3))
    ratio = radial_average(damped, 3) / radial_average(plain, 3)
    assert ratio[3:7].min() > 0.7  # the gridding correction mixes neighbouring shells
    assert ratio[10:16].max() < 0.05


def test_an_empty_projector_gives_zeros_and_odd_boxes_are_refused() -> None:
    assert torch.equal(BackProjector(16).volume(), torch.zeros(16, 16, 16))
    with pytest.raises(ValueError, match="even"):
        BackProjector(33)


def test_autocast_does_not_touch_it() -> None:
    plain, cast = BackProjector(32), BackProjector(32)
    slices = exact_slices()[:100]
    plain.insert(slices, matrices()[:100])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast.insert(slices, matrices()[:100])
        volume = cast.volume()
    assert torch.equal(plain.volume(), volume)


def test_a_thousand_particles_of_64_px_take_seconds() -> None:
    images, ctf = torch.randn(1000, 64, 33, dtype=torch.complex64), ctfs(1000, 64)
    start = time.perf_counter()
    BackProjector(64).insert(images, torch.from_numpy(random_matrices(1000)).float(), ctf)
    assert time.perf_counter() - start < 30  # 0.4 s on an idle core

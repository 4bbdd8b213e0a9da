import csv

import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_volume

from cryoforum_plugin.reconstruction.cone_fsc import HALF_ANGLE_DEG, cone_fsc
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation
from cryoforum_plugin.reconstruction.write import write_cones

N, PIXEL_A = 48, 2.0
GENERATOR = torch.Generator().manual_seed(1)


def noise(size: int = N) -> torch.Tensor:
    return torch.randn(size, size, size, generator=GENERATOR)


def frequencies() -> tuple[torch.Tensor, torch.Tensor]:
    """Length and |cos| to z of the frequencies of an rfftn."""
    kz, ky, kx = torch.meshgrid(
        torch.fft.fftfreq(N, 1 / N), torch.fft.fftfreq(N, 1 / N), torch.fft.rfftfreq(N, 1 / N), indexing="ij"
    )
    length = (kx**2 + ky**2 + kz**2).sqrt()
    return length, (kz / length.clamp(min=1)).abs()


def test_a_cone_that_is_not_seen_is_the_worst_direction() -> None:
    """Half maps that agree up to shell 16, and only up to shell 8 within 40 degrees of z."""
    length, cosine = frequencies()
    end = torch.where(cosine > np.cos(np.radians(40)), 8, 16)
    signal = torch.fft.rfftn(noise()) * (length <= end)
    halves = [torch.fft.irfftn(signal + 0.05 * torch.fft.rfftn(noise()), s=(N,) * 3) for _ in range(2)]
    found = cone_fsc(*halves, PIXEL_A)
    side_A = N * PIXEL_A
    assert found.worst_A == pytest.approx(side_A / 8.9, rel=0.06)
    assert found.best_A == pytest.approx(side_A / 16.9, rel=0.06)
    up = found.directions[:, 2]
    assert (up[found.resolution_A > 0.9 * found.worst_A] > np.cos(np.radians(40 + HALF_ANGLE_DEG))).all()
    # cones wholly outside the missing one are even, those wholly inside are not
    assert np.cos(np.radians(40 + HALF_ANGLE_DEG)) < found.even < np.cos(np.radians(40 - HALF_ANGLE_DEG))


def test_equal_maps_reach_nyquist_everywhere_and_noise_nowhere() -> None:
    volume = blob_volume(blob_positions())
    same = cone_fsc(volume, volume, PIXEL_A)
    assert (same.resolution_A == 2 * PIXEL_A).all()
    assert same.even == 1
    other = cone_fsc(noise(), noise(), PIXEL_A)
    assert np.median(other.resolution_A) > N * PIXEL_A / 4


def test_more_particles_have_a_higher_signal_to_noise_ratio() -> None:
    volume = blob_volume(blob_positions())
    a, b = (volume + 0.3 * noise(len(volume)) for _ in range(2))
    once, thrice = cone_fsc(a, b, PIXEL_A), cone_fsc(a, b, PIXEL_A, times=3.0)
    known = once.fsc[:, 1:6] > 0.05
    ratio = (thrice.fsc / (1 - thrice.fsc))[:, 1:6] / (once.fsc / (1 - once.fsc))[:, 1:6]
    np.testing.assert_allclose(ratio[known].numpy(), 3, rtol=0.01)
    assert thrice.worst_A <= once.worst_A


def test_a_cone_is_the_sum_over_its_frequencies() -> None:
    a, b = noise(), noise()
    b = b + a
    found = cone_fsc(a, b, PIXEL_A)
    length, _ = frequencies()
    fa, fb = torch.fft.rfftn(a.double()), torch.fft.rfftn(b.double())
    shell, number = 20, 40
    kz, ky, kx = torch.meshgrid(
        torch.fft.fftfreq(N, 1 / N), torch.fft.fftfreq(N, 1 / N), torch.fft.rfftfreq(N, 1 / N), indexing="ij"
    )
    along = sum(k * float(d) for k, d in zip((kx, ky, kz), found.directions[number], strict=True)).abs()
    inside = (length.round() == shell) & (along >= length * np.cos(np.radians(HALF_ANGLE_DEG))) & (kx > 0)
    exact = (fa * fb.conj()).real[inside].sum() / (
        fa.abs().square()[inside].sum() * fb.abs().square()[inside].sum()
    ).sqrt()
    assert float(found.fsc[number, shell]) == pytest.approx(float(exact), abs=0.06)
    assert float(found.fsc[:, 5:].mean()) == pytest.approx(
        float(fourier_shell_correlation(a, b)[5:].mean()), abs=0.02
    )


def test_table_names_directions_as_relion_does(tmp_path) -> None:
    volume = blob_volume(blob_positions())
    found = cone_fsc(volume, volume, PIXEL_A)
    write_cones(tmp_path / "fsc_cones.csv", found)
    with (tmp_path / "fsc_cones.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.directions)
    rot, tilt = np.radians([float(rows[7]["rot_deg"]), float(rows[7]["tilt_deg"])])
    direction = [np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)]
    np.testing.assert_allclose(direction, found.directions[7], atol=1e-3)
    assert float(rows[0]["fsc_10"]) == pytest.approx(1)

"""A point group that the particles contradict is refused, one that they have is not; wrong frames are named."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from blobs import blob_positions, blob_volume, positions_with
from chain import TINY, cryoforum, succeed

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.geometry import random_quaternions, reduce_to_asymmetric_unit
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.maps.rebuilt import Unsymmetrised
from cryoforum_plugin.maps.symmetry_check import check_symmetry, judge
from cryoforum_plugin.reconstruction.backproject import BackProjector
from cryoforum_plugin.reconstruction.write import write_map

SIZE = 32


def half_maps(
    positions: np.ndarray, count: int = 400, noise: float = 1.0, unit: str = "C1", seed: int = 1
) -> Unsymmetrised:
    """Half maps of `count` projections with noise of `noise` times the signal's s.d.; poses in the unit of `unit`."""
    generator = torch.Generator().manual_seed(seed)
    poses = reduce_to_asymmetric_unit(random_quaternions(count, generator), unit)
    R = roma.unitquat_to_rotmat(poses)
    images = Projector(blob_volume(positions, SIZE), 1.0).project(R)
    images = images + noise * images.std() * torch.randn(images.shape, generator=generator)
    transforms = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
    projectors = (BackProjector(SIZE), BackProjector(SIZE))
    for half, projector in enumerate(projectors):
        projector.insert(transforms[half::2], R[half::2])
    first, second = projectors
    return Unsymmetrised(
        (first.volume(), second.volume()), (first.weights_of_frequencies(), second.weights_of_frequencies())
    )


@pytest.mark.parametrize("unit", ["all poses", "asymmetric unit"])
@pytest.mark.parametrize("name", ["C2", "C4", "C7", "D2", "D7", "D7Y", "T", "O", "I1", "I2", "I3", "I4"])
def test_the_particles_own_group_fits(name: str, unit: str) -> None:
    maps = half_maps(positions_with(name), unit="C1" if unit == "all poses" else name)
    verdict = judge(maps, name)
    assert verdict.worst is not None
    assert not verdict.doubtful
    error = verdict.worst.standard_error / verdict.worst.unturned
    assert verdict.worst.ratio > 0.9 - 2 * error
    assert verdict.fits is None  # nothing larger


@pytest.mark.parametrize("unit", ["all poses", "asymmetric unit"])
@pytest.mark.parametrize(
    ("has", "asked", "fits"),
    [
        ("C1", "C4", "C1"),
        ("C2", "C4", "C2"),
        ("C3", "C4", "C3"),
        ("C4", "D4", "C4"),
        ("D2", "O", "D2"),
        ("D7", "D7Y", "D7"),
        ("D7Y", "D7", "D7Y"),
        ("T", "O", "T"),
        ("I1", "I2", "I1"),
        ("I1", "I3", "I1"),
        ("I2", "I4", "I2"),
    ],
)
def test_a_group_or_frame_that_is_not_the_particles_is_refused(
    has: str, asked: str, fits: str, unit: str
) -> None:
    maps = half_maps(positions_with(has, 2 if has != "C1" else 8), unit="C1" if unit == "all poses" else has)
    verdict = judge(maps, asked)
    assert verdict.contradicted
    assert verdict.fits == fits
    with pytest.raises(SettingsError, match=rf"{asked} does not fit .* correlates .* fit {fits}[.,] .*false"):
        check_symmetry(maps, asked, "particles.star", refuse=True)


def test_a_pseudo_symmetric_particle_is_doubted_or_refused_with_its_true_group() -> None:
    """C2, and nearly C4: in two of four copies one blob of three is missing."""
    positions = positions_with("C4", 3)
    verdict = judge(half_maps(np.delete(positions, [2, 11], axis=0), 2000), "C4")
    assert verdict.doubtful
    assert verdict.fits == "C2"


def test_a_message_names_angle_axis_and_both_correlations() -> None:
    with pytest.raises(SettingsError) as caught:
        check_symmetry(half_maps(positions_with("C2")), "C4", "particles.star", refuse=True)
    assert "particles.star: C4 does not fit the particles: turned by 90 deg about z" in str(caught.value)
    figures = re.search(
        r"half map 1 correlates (-?\d\.\d\d) with half map 2, unturned (-?\d\.\d\d);", str(caught.value)
    )
    assert figures is not None
    turned, unturned = map(float, figures.groups())
    assert turned < 0.8 * unturned
    assert 0.5 < unturned <= 1


def test_a_refusal_can_be_overruled(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cryoforum"):
        check_symmetry(half_maps(positions_with("C2")), "C4", "particles.star", refuse=False)
    assert "C4 does not fit" in caplog.text
    assert "training.check_symmetry is false" in caplog.text


@pytest.mark.parametrize(("has", "asked"), [("D2", "C1"), ("C4", "C2"), ("O", "D4"), ("I2", "D2")])
def test_more_symmetry_than_asked_for_is_a_hint(
    has: str, asked: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cryoforum"):
        check_symmetry(half_maps(positions_with(has)), asked, "particles.star", refuse=True)
    assert f"seem to have symmetry {has}, more than the {asked} asked for" in caplog.text


def test_an_asymmetric_particle_as_c1_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cryoforum"):
        check_symmetry(half_maps(blob_positions(12, 9.0)), "C1", "particles.star", refuse=True)
        check_symmetry(None, "C4", "particles.star", refuse=True)
    assert caplog.text == ""


@pytest.mark.parametrize("kind", ["noise alone", "ball", "few and noisy"])
def test_what_cannot_be_told_is_not_refused(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    if kind == "ball":
        maps = half_maps(np.zeros((1, 3)), noise=0.1)
    elif kind == "noise alone":
        maps = half_maps(positions_with("C2"), noise=1000.0)
    else:
        maps = half_maps(positions_with("C4"), count=12, noise=10.0)
    with caplog.at_level(logging.WARNING, "cryoforum"):
        check_symmetry(maps, "C4", "particles.star", refuse=True)
    assert judge(maps, "C4").worst is None
    assert "too few particles, or too alike, to tell" in caplog.text


def test_noise_does_not_make_the_own_group_a_contradiction() -> None:
    for seed in range(20):
        maps = half_maps(positions_with("D2"), count=60, noise=6.0, seed=seed)
        assert not judge(maps, "D2").contradicted


def test_train_refuses_before_it_writes_anything(tmp_path: Path) -> None:
    write_map(tmp_path / "map.mrc", blob_volume(positions_with("C2"), SIZE), 5.0)
    succeed("simulate", tmp_path / "map.mrc", "-o", tmp_path / "sim", "--count", 200, "--snr", 1, "--quiet")
    done = cryoforum(
        "train",
        tmp_path / "sim" / "particles.star",
        "-o",
        tmp_path / "model",
        "--symmetry",
        "C4",
        "--quiet",
        *TINY,
    )
    assert done.exit_code != 0
    assert "C4 does not fit the particles: turned by 90 deg about z" in done.output
    assert "the data fit C2" in done.output
    assert not (tmp_path / "model").exists()

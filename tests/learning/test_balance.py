"""Rare views are drawn more often, whatever copy they are seen from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import roma
import torch
from tiny_trainer import blob_trainer

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.geometry import random_quaternions, symmetry_group
from cryoforum_plugin.learning.balance import LARGEST, view_density, view_weights, weighted_rows
from cryoforum_plugin.learning.label_noise import LabelNoise
from cryoforum_plugin.settings import preset, with_values

C1 = torch.tensor([[0.0, 0.0, 0.0, 1.0]])


def preferred(n: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses, nine in ten within about 15 degrees of the z axis, and the tilt of each."""
    generator = torch.Generator().manual_seed(seed)
    q = random_quaternions(n, generator).double()
    axis = torch.randn(n, 3, generator=generator).double() * 0.13
    axis[:, 2] = 0
    turn = roma.rotvec_to_unitquat(torch.randn(n, 1, generator=generator).double() * torch.eye(3)[2])
    near = roma.quat_product(roma.rotvec_to_unitquat(axis), turn)
    q[: 9 * n // 10] = near[: 9 * n // 10]
    return q, roma.unitquat_to_rotmat(q)[:, 2, 2]


def test_even_views_are_drawn_alike() -> None:
    q = random_quaternions(20_000, torch.Generator().manual_seed(1))
    assert view_density(q, C1, mirrored=False).mean() == pytest.approx(1, abs=0.05)
    weight = view_weights(q, C1, mirrored=False, power=1.0)
    assert weight.std() < 0.2


def test_rare_views_are_drawn_as_often_as_frequent_ones() -> None:
    q, cosine = preferred(20_000)
    weight = view_weights(q, C1, mirrored=False, power=1.0)
    assert weight.max() / weight.min() <= LARGEST**2 + 1e-9
    rows = weighted_rows(weight, 50_000, torch.Generator().manual_seed(2))
    rare = (cosine.abs() < 0.7).double()
    assert rare.mean() < 0.1
    assert rare[rows].mean() > 3 * rare.mean()
    half = view_weights(q, C1, mirrored=False, power=0.5)
    drawn = weighted_rows(half, 50_000, torch.Generator().manual_seed(2))
    assert rare.mean() < rare[drawn].mean() < rare[rows].mean()
    assert (view_weights(q, C1, mirrored=False, power=0.0) == 1).all()


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2"])
def test_copies_and_views_from_behind_count_together(symmetry: str) -> None:
    group = torch.from_numpy(symmetry_group(symmetry))
    q, _ = preferred(5000)
    q = roma.quat_product(roma.rotvec_to_unitquat(torch.tensor([0.4, 0.7, 0.0]).double()).expand(5000, 4), q)
    density = view_density(q, group, mirrored=True)
    behind = roma.quat_product(q, torch.tensor([0.0, 1.0, 0.0, 0.0]).double().expand(5000, 4))
    moved = torch.where(torch.arange(5000)[:, None] % 2 == 0, behind, q)
    moved = roma.quat_product(group[torch.arange(5000) % len(group)], moved)
    again = view_density(moved, group, mirrored=True)
    # up to the cells of the grid
    assert np.corrcoef(density.log(), again.log())[0, 1] > 0.95
    assert (density / again).log().abs().mean() < 0.2


@pytest.mark.parametrize("other", [{"training.branches": "siamese"}, {"training.simulated": 1.0}])
def test_pairs_and_simulated_images_are_not_balanced(other: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="balance_views"):
        with_values(preset("default"), {"training.balance_views": 0.5} | other)


def test_a_balanced_training_does_better_on_rare_views(tmp_path: Path) -> None:
    poses, _ = preferred(400)
    loss = {}
    for power in (0.0, 1.0):
        trainer = blob_trainer(
            tmp_path / str(power), poses, 2, training__balance_views=power, training__simulated=0
        )
        drawn = torch.cat(trainer._drawn_rows())
        rare = (roma.unitquat_to_rotmat(poses)[:, 2, 2].abs() < 0.7)[drawn].double().mean()
        assert (rare > 0.15) == (power > 0)
        trainer.checkpoint.mkdir(parents=True)
        trainer.run(lambda steps, note: None)
        loss[power] = trainer.metrics[-1].validation_loss  # of even views
    assert loss[1.0] < loss[0.0] - 0.2


def test_the_part_of_wrong_labels_is_that_of_the_particles_not_of_the_draws() -> None:
    """All labels of rare views wrong: they are drawn ever so often, but they are few."""
    poses, cosine = preferred(4000)
    weight = view_weights(poses, C1, mirrored=True, power=1.0)
    wrong = cosine.abs() < 0.7
    noise = LabelNoise(0.02, SimpleNamespace(world_size=1))
    generator = torch.Generator().manual_seed(3)
    for _ in range(400):
        rows = weighted_rows(weight, 64, generator)
        nll = torch.where(wrong[rows], 40.0, -5.0).double()
        noise(nll, torch.zeros(64, dtype=torch.bool), 1 / weight[rows])
    assert wrong[weighted_rows(weight, 20_000, generator)].double().mean() > 3 * wrong.double().mean()
    assert noise.weight == pytest.approx(float(wrong.double().mean()), rel=0.25)

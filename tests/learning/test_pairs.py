"""Pair sampling: what is drawn, how evenly, and from a million particles (whose list of all pairs no memory holds)."""

from __future__ import annotations

import math

import numpy as np
import torch

from cryoforum_plugin.geometry import angular_distance_to_group, random_quaternions, symmetry_group
from cryoforum_plugin.learning.pairs import BINS, MOST, pairs_in_epoch, random_pairs, stratified_pairs

IDENTITY = torch.tensor([[0.0, 0.0, 0.0, 1.0]])


def counts(rotation: torch.Tensor, pairs: torch.Tensor, group: torch.Tensor = IDENTITY) -> np.ndarray:
    distance = angular_distance_to_group(rotation[pairs[:, 0]], rotation[pairs[:, 1]], group)
    return np.histogram(distance.numpy(), bins=BINS, range=(0, math.pi))[0]


def test_random_pairs_are_two_particles_each_drawn_uniformly() -> None:
    pairs = random_pairs(20, 40_000, torch.Generator().manual_seed(0))
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert pairs.min() == 0
    assert pairs.max() == 19
    seen = np.bincount(pairs[:, 0] * 20 + pairs[:, 1], minlength=400).reshape(20, 20)
    expected = 40_000 / 380
    off_diagonal = seen[~np.eye(20, dtype=bool)]
    assert np.abs(off_diagonal - expected).max() < 6 * math.sqrt(expected)


def test_stratified_pairs_fill_the_bins_equally() -> None:
    rotation = random_quaternions(2500, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    drawn = counts(rotation, random_pairs(2500, 8000, generator))
    assert drawn.max() > 20 * drawn.min()  # near pairs are rare among random ones
    equal = counts(rotation, stratified_pairs(rotation, IDENTITY, 8000, generator))
    assert equal.sum() == 8000
    assert np.abs(equal - 1000).max() <= 8  # rounding to float32 at the edges of bins


def test_bins_that_cannot_be_filled_leave_their_share_to_the_others() -> None:
    rotation = random_quaternions(500, torch.Generator().manual_seed(0))
    group = torch.from_numpy(symmetry_group("O")).float()  # no distance beyond 63 degrees
    found = counts(rotation, stratified_pairs(rotation, group, 4000, torch.Generator().manual_seed(1)), group)
    assert found.sum() == 4000
    assert (found[3:] == 0).all()
    assert found[:2].min() > 1200


def test_pairs_of_one_view_and_of_few_particles() -> None:
    same = IDENTITY.repeat(50, 1)
    assert stratified_pairs(same, IDENTITY, 1000, torch.Generator()).shape == (1000, 2)
    two = random_quaternions(2, torch.Generator().manual_seed(0))
    assert sorted(stratified_pairs(two, IDENTITY, 10, torch.Generator())[0].tolist()) == [0, 1]


def test_a_million_particles() -> None:
    rotation = random_quaternions(1_000_000, torch.Generator().manual_seed(0))
    number = pairs_in_epoch(len(rotation), 0.01)
    assert number == 1_000_000  # 1 % of all pairs would be 10^10
    pairs = stratified_pairs(rotation, IDENTITY, 20_000, torch.Generator().manual_seed(1))
    assert random_pairs(len(rotation), number, torch.Generator()).shape == (number, 2)
    assert np.abs(counts(rotation, pairs) - 2500).max() <= 20


def test_an_epoch_is_the_papers_part_of_the_pairs_within_limits() -> None:
    assert pairs_in_epoch(2500, 0.01) == 62_500
    assert pairs_in_epoch(20, 0.01) == 1024
    assert pairs_in_epoch(100_000, 0.01) == MOST

"""Pairs of training particles for the Siamese training of the paper, drawn without a list of all pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cryoforum_plugin.geometry import angular_distance_to_group

BINS = 8  # of the angular distance, 0 to 180 degrees
FEWEST, MOST = 1024, 250_000  # pairs in an epoch; more particles than MOST: as many pairs as particles
_CHUNK = 2**18
_CANDIDATES = 64  # looked through at most, per pair wanted
_RAREST = (
    0.01  # a bin with less than this part of its share is left out: its few pairs would repeat too often
)


def pairs_in_epoch(count: int, fraction: float) -> int:
    """Pairs that make an epoch of `count` particles: `fraction` of all ordered pairs, within limits."""
    return max(FEWEST, min(round(fraction * count**2), max(MOST, count)))


def random_pairs(count: int, number: int, generator: torch.Generator) -> Tensor:
    """Draw rows `(number, 2)` of two different particles of `count`, uniformly, with replacement."""
    first = torch.randint(count, (number,), generator=generator)
    return torch.stack([first, (first + torch.randint(1, count, (number,), generator=generator)) % count], 1)


def stratified_pairs(rotation: Tensor, group: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Draw rows `(number, 2)` of pairs whose angular distances fill BINS equal bins equally.

    rotation : `(n, 4)` XYZW labels on the CPU. group : `(g, 4)` operators the distance is taken modulo.
    Random pairs are looked through until every bin has its share. A rare bin repeats its pairs, one that
    is (nearly) empty, as with few views or symmetry, leaves its share to the others. Memory is of the order
    of `number`, whatever n is. Paper, section 3.5.
    """
    share = math.ceil(number / BINS)
    found: list[list[Tensor]] = [[] for _ in range(BINS)]
    have = [0] * BINS
    chunk = max(1024, _CHUNK // len(group))
    for _ in range(max(1, _CANDIDATES * number // chunk)):
        pairs = random_pairs(len(rotation), chunk, generator)
        distance = angular_distance_to_group(rotation[pairs[:, 0]], rotation[pairs[:, 1]], group)
        bins = (distance * (BINS / math.pi)).long().clamp(max=BINS - 1)
        for k in range(BINS):
            if have[k] < share:
                found[k].append(pairs[bins == k][: share - have[k]])
                have[k] += len(found[k][-1])
        if min(have) >= share:
            break
    used = [torch.cat(pairs) for pairs, n in zip(found, have, strict=True) if n >= max(1, _RAREST * share)]
    share = math.ceil(number / len(used))
    drawn = [pairs[torch.arange(share) % len(pairs)] for pairs in used]
    together = torch.cat(drawn)
    return together[torch.randperm(len(together), generator=generator)[:number]]

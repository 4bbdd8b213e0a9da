"""Which image it is, by content: the same in a copied, linked or renamed stack."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.particles import ParticleSet


def image_keys(particles: ParticleSet, reader: StackReader) -> Tensor:
    """Numbers `(n,)` int64 that tell images apart: by the first image of their stack, and their place in it.

    Raises ImageStackError where a stack cannot be read.
    """
    used = np.unique(particles.stack_index)
    names = np.zeros(len(reader.stacks), dtype=np.uint64)
    for stack in used.tolist():
        first = reader.read(np.array([stack]), np.array([0]))
        size = str(reader.header(stack).expected_bytes).encode()  # the first image may be blank
        digest = hashlib.blake2b(first.tobytes() + size, digest_size=8).digest()
        names[stack] = int.from_bytes(digest, "little")
    # multiplication by an odd number and a shift: neighbouring slices get keys far apart
    place = particles.slice_index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = names[particles.stack_index] ^ (place ^ (place >> np.uint64(29)))
    return torch.from_numpy(keys.view(np.int64))


def among(keys: Tensor, known: Tensor) -> Tensor:
    """Mask `(n,)` of `keys` `(n,)` that are in `known` `(m,)`, ascending."""
    if not len(known):
        return torch.zeros(len(keys), dtype=torch.bool)
    place = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
    return known[place] == keys

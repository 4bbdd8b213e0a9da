"""A reader of images that are in memory."""

from __future__ import annotations

import numpy as np

from cryoforum_plugin.particles import ParticleSet


class Memory:
    """Images `(n, box, box)`, by slice."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def check(self, particles: ParticleSet) -> int:
        return int(self.images.shape[-1])

    def read(self, stack_index: np.ndarray, slice_index: np.ndarray) -> np.ndarray:
        return self.images[slice_index].copy()

"""Particles whose poses are known, to calibrate on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.particles import FloatArray, IntArray


@dataclass(frozen=True)
class KnownPoses:
    """Particles of a pipeline with known poses.

    held_out : rows the network did not learn from. learned : rows it did; none where a model is calibrated anew.
    """

    pipeline: ImagePipeline
    held_out: IntArray
    learned: IntArray

    @property
    def rotation(self) -> FloatArray:
        """Known rotations `(n, 4)` of all particles."""
        return self.pipeline.particles.require_rotation()

    def shift_error_A(self, rows: IntArray, raw: RawPrediction) -> FloatArray:
        """Predicted minus known shifts `(m, 2)` of rows; the known ones are 0 where the table has none."""
        known = self.pipeline.particles.shift_A
        return raw.shift_A.numpy() - (np.zeros((len(rows), 2)) if known is None else known[rows])

"""Reliability without reading one's own answers: each fifth judged by a calibration of the other four."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from cryoforum_plugin.confidence.basin import Basin
from cryoforum_plugin.confidence.calibration import calibrated, radii
from cryoforum_plugin.confidence.labels import fit_factors
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.confidence.reliability import Figures, reliability
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.particles import FloatArray, Prediction

FOLDS = 5
COVERAGE_LEVELS = (*(level / 20 for level in range(1, 20)), 0.99)


def crossed(
    raw: RawPrediction,
    error_rad: FloatArray,
    shift_error_A: FloatArray,
    rotation: FloatArray,
    symmetry: str,
    basin: Basin | None = None,
    right: Any = None,
    judged: Any = None,
) -> Figures:
    """`reliability` of held-out answers with errors `(n,)` rad and `(n, 2)` Å.

    rotation : known poses `(n, 4)`. basin : of refined poses, then `right` `(n,)` bool says which are in the right one,
    and the widths are those of these. judged : `(n,)` bool, the rows that are judged; default all, the others are only
    fitted on.
    """
    n, group = len(error_rad), torch.from_numpy(symmetry_group(symmetry))
    right, judged = (np.ones(n, dtype=bool) if rows is None else rows for rows in (right, judged))
    fold = np.random.default_rng(1).permutation(n) % FOLDS
    parts, places, inside = [], [], []
    for number in range(FOLDS):
        rows, others = np.flatnonzero((fold == number) & judged), np.flatnonzero((fold != number) & right)
        if not len(rows) or len(others) < FOLDS:
            continue
        factors = fit_factors(raw[others], rotation[others], shift_error_A[others], group)
        factors = replace(factors, basin=basin)
        places.append(rows)
        parts.append(calibrated(raw[rows], factors, np.zeros(len(rows)), symmetry=symmetry))
        inside.append(error_rad[rows, None] <= radii(raw[rows], factors, COVERAGE_LEVELS))
    if not parts:
        return {}
    known = np.concatenate(places)
    found = np.concatenate(inside).mean(axis=0)
    coverage = dict(zip(COVERAGE_LEVELS, found.tolist(), strict=True))
    return reliability(_joined(parts), error_rad[known], coverage, symmetry)


def _joined(parts: list[Prediction]) -> Prediction:
    values: dict[str, Any] = {
        f.name: None
        if getattr(parts[0], f.name) is None
        else np.concatenate([getattr(part, f.name) for part in parts])
        for f in fields(Prediction)
    }
    return Prediction(**values)

"""Which known poses are implausible: no more likely under the calibrated posterior than a random rotation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryoforum_plugin.confidence.calibration import (
    Calibration,
    calibrated,
    fit,
    scaled,
)
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.geometry import angular_distance_to_group
from cryoforum_plugin.particles import FloatArray
from cryoforum_plugin.posterior import matrix_from_upper, mode, negative_log_likelihood
from cryoforum_plugin.posterior.mixture import mixture_negative_log_likelihood
from cryoforum_plugin.posterior.wrong_labels import LEAST, MOST, estimate_weight, responsibility, robust

SUSPECT = 0.5  # probability above which a label is implausible
SURE_DEG = 60.0  # predictions that expect a larger error judge no label
ROUNDS = 10
_ROWS_AT_ONCE = 16_384
_LOG_WIDTHS = torch.linspace(-4, 4, 33)


@dataclass(frozen=True)
class Judgement:
    """Of known poses: angle `(n,)` rad to the prediction, probability `(n,)` of being wrong, and `suspect` `(n,)`.

    weight : the part of wrong labels that the probabilities presuppose; 0 = no label was doubted.
    """

    angle_rad: FloatArray
    probability: FloatArray
    suspect: NDArray[np.bool_]
    weight: float


def _most(start: float) -> float:
    """Largest part of wrong labels to believe in, where `start` was learned: else a bad network explains all so."""
    return min(MOST, 2 * start)


def _estimated(nll: Tensor, start: float, most: float) -> float:
    """Part of wrong labels that makes `nll` `(n,)` most likely; 0 only from `start` 0."""
    return max(LEAST, estimate_weight(nll, start, most)) if start else 0.0


def errors(raw: RawPrediction, rotation: FloatArray, group: Tensor) -> FloatArray:
    """Angles `(n,)` rad between the modes and the known poses `(n, 4)`, modulo `group` `(g, 4)`."""
    found = mode(matrix_from_upper(raw.bingham.double()))
    return angular_distance_to_group(found, torch.from_numpy(rotation), group).numpy()


def label_nll(raw: RawPrediction, calibration: Calibration, rotation: FloatArray, group: Tensor) -> Tensor:
    """-log p `(n,)` (nat) of poses `(n, 4)` under the calibrated posterior."""
    parts = []
    for start in range(0, len(rotation), _ROWS_AT_ONCE):
        part, label = raw[slice(start, start + _ROWS_AT_ONCE)], torch.from_numpy(rotation)
        label = label[start : start + _ROWS_AT_ONCE]
        if part.modes is None or part.log_weight is None:
            matrix = matrix_from_upper(calibration.widened(part.bingham))
            parts.append(negative_log_likelihood(matrix, label, group))
        else:
            modes, log_weight = scaled(part.modes, part.log_weight, calibration)
            parts.append(mixture_negative_log_likelihood(matrix_from_upper(modes), log_weight, label, group))
    return torch.cat(parts)


def judge(
    raw: RawPrediction, calibration: Calibration, rotation: FloatArray, group: Tensor, start: float
) -> Judgement:
    """Judge known poses `(n, 4)` by predictions of their images.

    start : the part of wrong labels to begin with, 0 = none is wrong. A label is suspect only where the
    prediction is sure of itself: that the network does badly on an image says nothing of its label.
    """
    nll = label_nll(raw, calibration, rotation, group)
    weight = _estimated(nll, start, _most(start))
    probability = responsibility(nll, weight).numpy()
    expected = calibrated(raw, calibration, np.zeros(len(rotation))).expected_error_deg
    assert expected is not None
    suspect = (probability > SUSPECT) & (expected < SURE_DEG)
    return Judgement(errors(raw, rotation, group), probability, suspect, weight)


def fit_and_judge(
    raw: RawPrediction, rotation: FloatArray, shift_error_A: FloatArray, group: Tensor, start: float
) -> tuple[Calibration, Judgement]:
    """Fit the calibration on held-out rows without those whose labels it makes implausible.

    Begins at the width of largest likelihood, wrong labels allowed: 10 % of wrong labels alone would make the
    90 % balls so wide that nothing is implausible any more. Where most would be left out, none is.
    """
    if start == 0:
        factors = fit_factors(raw, rotation, shift_error_A, group)
        return factors, judge(raw, factors, rotation, group, start)
    width = _likely_width(raw, rotation, group, start, _most(start))
    judged = judge(raw, Calibration(width, 1.0), rotation, group, start)
    for _ in range(ROUNDS):
        if too_many(judged):
            break
        kept = np.flatnonzero(~judged.suspect)
        factors = fit_factors(raw[kept], rotation[kept], shift_error_A[kept], group)
        before, judged = judged, judge(raw, factors, rotation, group, start)
        if np.array_equal(before.suspect, judged.suspect):
            break
    if too_many(judged):
        return fit_and_judge(raw, rotation, shift_error_A, group, 0.0)
    return factors, judged


def too_many(judged: Judgement) -> bool:
    """Whether more than half of the labels are suspect: then the network is at fault, not they."""
    return float(judged.suspect.mean()) > MOST


def estimate_wrong(raw: RawPrediction, rotation: FloatArray, group: Tensor, start: float) -> float:
    """Part of wrong labels, up to a half, of held-out rows, where training saw no label to learn it from.

    start : where the search begins, 0 = none is wrong.
    """
    if start == 0:
        return 0.0
    width = _likely_width(raw, rotation, group, start, MOST)
    return _estimated(label_nll(raw, Calibration(width, 1.0), rotation, group), start, MOST)


def fit_factors(
    raw: RawPrediction, rotation: FloatArray, shift_error_A: FloatArray, group: Tensor
) -> Calibration:
    """Fit the calibration on rows with known poses `(n, 4)`.

    Of several modes, the width is fitted on the one each pose most likely belongs to; their weights are then
    raised to the power that makes the poses most likely.
    """
    if raw.modes is None or raw.log_weight is None:
        return fit(raw, errors(raw, rotation, group), shift_error_A)
    label = torch.from_numpy(rotation).unsqueeze(1).expand(-1, raw.modes.shape[1], -1)
    nll = negative_log_likelihood(matrix_from_upper(raw.modes.double()), label, group)
    own = (raw.log_weight - nll).argmax(1)
    single = replace(raw, bingham=raw.modes[torch.arange(len(own)), own], modes=None, log_weight=None)
    factors = fit(single, errors(single, rotation, group), shift_error_A, shaped=False)
    powers = torch.linspace(-2, 2, 33).exp().tolist()

    def loss(power: float) -> float:
        return float(label_nll(raw, replace(factors, weights=power), rotation, group).mean())

    return replace(factors, weights=min(powers, key=loss))


def _likely_width(
    raw: RawPrediction, rotation: FloatArray, group: Tensor, start: float, most: float
) -> float:
    """Factor of A, on a grid, that makes the labels most likely, a part up to `most` of wrong ones allowed."""

    def loss(log_width: float) -> float:
        nll = label_nll(raw, Calibration(math.exp(log_width), 1.0), rotation, group)
        return float(robust(nll, estimate_weight(nll, start, most)).mean())

    return math.exp(min(_LOG_WIDTHS.tolist(), key=loss))

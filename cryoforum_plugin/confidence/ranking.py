"""How well one number orders another."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from cryoforum_plugin.particles import FloatArray


def spearman(a: FloatArray, b: FloatArray) -> float | None:
    """Rank correlation of `(n,)` and `(n,)`, or None for fewer than three or constant values."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def auroc(score: FloatArray, positive: np.ndarray[Any, np.dtype[np.bool_]]) -> float | None:
    """Probability that a positive scores above a negative (ties count half), or None without one of them.

    By ranks (Mann-Whitney): U / (n+ n-) with U = sum of positive ranks - n+ (n+ + 1) / 2.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return None
    rank_sum = float(rankdata(score)[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)

"""Quantiles of the paper's statistics over the particles a model was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cryoforum_plugin.errors import ModelError


def read_training_quantile(model_dir: Path, statistic: str, quantile: float) -> float:
    """Value of `statistic` ("lambda_max" or "trace") below which `quantile` of the training particles lie.

    calibration.json holds "training_percentiles": {statistic: [101 values, for 0 % to 100 %]}.
    Raises ModelError when the model has none.
    """
    path = model_dir / "calibration.json"
    try:
        percentiles = json.loads(path.read_text())["training_percentiles"][statistic]
        return float(np.interp(100 * quantile, np.linspace(0, 100, len(percentiles)), percentiles))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: no training percentiles of {statistic}; leave out --model to use the quantile of the "
            "particles being filtered"
        ) from error

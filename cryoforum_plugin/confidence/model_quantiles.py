"""Quantiles of the paper's statistics over the particles a model was validated on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cryoforum_plugin.errors import ModelError


def read_model_quantile(model_dir: Path, statistic: str, quantile: float, views: int) -> float:
    """Value of `statistic` ("lambda_max" or "trace") below which `quantile` of the validation particles lie.

    views : test-time views the prediction used; the statistics depend on them. calibration.json holds
    "percentiles": {views: {statistic: [101 values, for 0 % to 100 %]}}. Raises ModelError without them.
    """
    path = model_dir / "calibration.json"
    try:
        percentiles = json.loads(path.read_text())["percentiles"][str(views)][statistic]
        return float(np.interp(100 * quantile, np.linspace(0, 100, len(percentiles)), percentiles))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: no percentiles of {statistic} for {views} views; leave out --model to use the quantile "
            "of the particles being filtered"
        ) from error

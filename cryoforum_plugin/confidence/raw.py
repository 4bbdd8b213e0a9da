"""What network and refinement say of particles, before calibration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

# of image and reference: log contrast; how far the contrast of the coarse, middle and fine band lies off that of all, in
# its own standard errors; log of what is left of each band over what noise would leave
MATCH = ("contrast", "coarse", "middle", "fine", "coarse_rest", "middle_rest", "fine_rest")


@dataclass(frozen=True)
class RawPrediction:
    """Network answers before calibration; rows that could not be read are NaN.

    bingham : `(n, 10)`. shift_A : `(n, 2)`. shift_sd_A : `(n,)`. features : `(n, f)`. unusable : `(n,)` bool.
    modes : `(n, k, 10)`, log_weight : `(n, k)`, of a network with k > 1 hypotheses, the heaviest, which is
    `bingham`, first; None with one. Of refined poses: contrast `(n,)` relative to the usual one, gain `(n,)` log
    likelihood over no particle, match `(n, m)` how image and reference agree (MATCH).
    """

    bingham: Tensor
    shift_A: Tensor
    shift_sd_A: Tensor
    features: Tensor
    unusable: Tensor
    modes: Tensor | None = None
    log_weight: Tensor | None = None
    contrast: Tensor | None = None
    gain: Tensor | None = None
    match: Tensor | None = None

    def __getitem__(self, rows: Any) -> RawPrediction:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {k: None if v is None else v[rows] for k, v in values.items()}
        return RawPrediction(**chosen)

"""Labels some of which are wrong: p(q) = (1 - w) p(q | A) + w, with w the part of labels that say nothing.

A wrong label is taken to be uniform over rotations, whose density is 1 against the measure that
`negative_log_likelihood` uses.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST, MOST = (
    1e-4,
    0.5,
)  # from no wrong label there is no way back; above a half the network learns from nothing


def _logs(weight: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 - w) and log(w), the latter -inf for w = 0."""
    w = torch.as_tensor(weight, dtype=like.dtype, device=like.device)
    return torch.log1p(-w), torch.log(w)


def robust(nll: Tensor, weight: Tensor | float) -> Tensor:
    """-log((1 - w) exp(-nll) + w) `(n,)` of labels with `nll` `(n,)` (nat); weight `(n,)` or one, in [0, 1)."""
    right, wrong = _logs(weight, nll)
    return -torch.logaddexp(right - nll, wrong.expand_as(nll))


def responsibility(nll: Tensor, weight: Tensor | float) -> Tensor:
    """Probability `(n,)` that a label with `nll` `(n,)` is wrong, where a part `weight` of labels is."""
    right, wrong = _logs(weight, nll)
    return torch.sigmoid(wrong - right + nll)


def estimate_weight(nll: Tensor, start: float, most: float = 1.0, rounds: int = 50) -> float:
    """Part of wrong labels, up to `most`, that makes `nll` `(n,)` most likely (EM); 0 from `start` 0."""
    weight = start
    for _ in range(rounds):
        weight = min(most, float(responsibility(nll, weight).mean()))
    return weight

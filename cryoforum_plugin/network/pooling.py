"""Pooling over the whole map, of any size: features that do not depend on the box."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cryoforum_plugin.network.device import at_least_float32


class GeneralisedMean(nn.Module):
    """Generalised mean (mean x^p)^(1/p) with one learned p >= 1 per channel (Radenovic et al. 2019).

    p = 1 is the average, large p the maximum. p = 1 + softplus(excess), which unlike a clamp at 1 never
    loses its gradient; it starts at 3.
    """

    SMALLEST = 1e-6  # inputs are raised to this: roots of negative numbers do not exist

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.excess = nn.Parameter(torch.full((channels,), math.log(math.expm1(2.0))))

    @property
    def p(self) -> Tensor:
        """Exponents `(channels,)`."""
        return 1 + nn.functional.softplus(self.excess)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool `(b, c, h, w)` to `(b, c)`, float32; by logarithms, as x^p under- and overflows."""
        with torch.autocast(maps.device.type, enabled=False):
            logs = at_least_float32(maps).clamp(min=self.SMALLEST).log().flatten(2)
            p = self.p[:, None]
            mean = torch.logsumexp(p * logs, dim=2, keepdim=True) - math.log(logs.shape[2])
            return (mean / p).exp().squeeze(2)


class MaxPooling(nn.Module):
    """Largest value of every channel, `(b, c, h, w)` to `(b, c)`; `average` adds the averages: `(b, 2c)`."""

    def __init__(self, average: bool = False) -> None:
        super().__init__()
        self.average = average

    def forward(self, maps: Tensor) -> Tensor:
        """Pool `(b, c, h, w)`."""
        largest = maps.amax((2, 3))
        return torch.cat([largest, maps.mean((2, 3))], dim=1) if self.average else largest


def make_pooling(kind: str, channels: int) -> tuple[nn.Module, int]:
    """Pooling of a kind (max, max_average, generalised_mean) and the number of features it gives."""
    if kind == "generalised_mean":
        return GeneralisedMean(channels), channels
    return {"max": (MaxPooling(), channels), "max_average": (MaxPooling(average=True), 2 * channels)}[kind]

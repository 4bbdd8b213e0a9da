"""How many labels of the particles are wrong, learned while the network trains."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor

from cryoforum_plugin.posterior.wrong_labels import LEAST, MOST, responsibility, robust

MEMORY = 2000  # particles that the running mean remembers


class LabelNoise:
    """Part of wrong labels: a running mean of the probability that each particle's label is wrong.

    That is expectation maximisation, a batch at a time. Several processes share one value. Labels that are
    exact (of simulated images) neither change it nor are ever doubted.
    """

    def __init__(self, start: float, fabric: Fabric, device: torch.device | str = "cpu") -> None:
        self.enabled, self.fabric = start > 0, fabric
        self._weight = torch.tensor(start, dtype=torch.float64, device=device)

    @property
    def weight(self) -> float:
        """The part; a look at it makes a GPU wait."""
        return float(self._weight)

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight.fill_(value)

    def __call__(self, nll: Tensor, exact: Tensor, counts: Tensor | None = None) -> Tensor:
        """Negative log-likelihoods `(b,)` with wrong labels allowed where not `exact` `(b,)`; learns from them.

        counts : `(b,)` how much each counts in the mean, where some particles are drawn more often than others:
        one over how often. None = all alike.
        """
        if not self.enabled:
            return nll
        weight = torch.where(exact, 0.0, self._weight.float()).to(nll)
        doubt = torch.where(exact, 0.0, responsibility(nll.detach(), weight))
        counts = torch.ones_like(doubt) if counts is None else counts.to(doubt)
        counts = torch.where(exact, 0.0, counts)
        total = torch.stack([(counts * doubt).sum(), counts.sum(), (~exact).sum().to(doubt)]).double()
        if self.fabric.world_size > 1:
            total = self.fabric.all_reduce(total, reduce_op="sum")  # type: ignore[assignment]
        found, weighted, count = total.unbind()
        step = (count / MEMORY).clamp(max=1.0)
        learned = (self._weight + step * (found / weighted - self._weight)).clamp(LEAST, MOST)
        self._weight = torch.where(count > 0, learned, self._weight)
        return robust(nll, weight)

"""Layers of torch, trained several times faster on a CPU; elsewhere, and in evaluation, they are torch's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PReLU(nn.PReLU):
    """PReLU whose gradient is put together of vectorised steps: torch's own goes number by number on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, c, h, w)`."""
        if x.device.type != "cpu" or not self.training:
            return super().forward(x)
        positive = torch.relu(x)
        return positive + (x - positive) * self.weight.to(x.dtype).view(-1, 1, 1)


class Dropout(nn.Dropout):
    """Dropout that draws 16 bits for each number, several times faster than torch's own on the CPUs we measured.

    The probability is that of `p` rounded to 1 / 65536.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, c, h, w)`."""
        if x.device.type != "cpu" or not self.training or not 0 < self.p < 1:
            return super().forward(x)
        b, c, h, w = x.shape
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        bits = words.view(torch.int16)[: x.numel()].view(b, h, w, c).permute(0, 3, 1, 2)  # as channels lie
        kept = bits >= round(self.p * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))

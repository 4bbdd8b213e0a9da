"""The optimiser, and which parts of the network it leaves alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cryoforum_plugin.network import PoseNetwork
from cryoforum_plugin.settings import TrainingSettings


def make_optimiser(
    network: nn.Module, settings: TrainingSettings, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW; or Adam whose weight decay is an L2 term of the loss, on kernels only, as in the paper."""
    fused = device.type in ("cpu", "cuda")
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(
            network.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=(0.9, 0.98),
            fused=fused,
        )
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": settings.weight_decay},
        {"params": others},
    ]
    return torch.optim.Adam(groups, lr=settings.learning_rate, betas=(0.95, 0.99), eps=1e-5, fused=fused)


def frozen_parts(network: PoseNetwork, freeze: str) -> list[nn.Module]:
    """Parts of the network that "early" (first half of the encoder's blocks) or "encoder" names."""
    if freeze == "encoder":
        return [network.encoder]
    body = list(network.encoder.body)
    return body[: len(body) // 2] if freeze == "early" else []

"""Batch normalisation by the statistics of a batch that several processes share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _Gather(torch.autograd.Function):
    """Tensors `(n)` of all processes, `(world, n)`; on CPUs (gloo) and GPUs (NCCL), with gradients to each."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        everyone = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
        distributed.all_gather(everyone, values.contiguous())
        return torch.stack(everyone)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # others may hold the same one
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]


def gather(values: Tensor) -> Tensor:
    """`values` `(...)` of all processes, `(world, ...)`; the losses of all have gradients to each."""
    gathered: Tensor = _Gather.apply(values)  # type: ignore[no-untyped-call]
    return gathered


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the images of all processes, each with as many; in evaluation an ordinary one.

    torch's SyncBatchNorm refuses CPUs. Statistics are float32 whatever autocast says.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise `(b, c, h, w)`."""
        if not self.training:
            return super().forward(maps)
        with torch.autocast(maps.device.type, enabled=False):
            variance, mean = torch.var_mean(maps.float(), dim=(0, 2, 3), correction=0)
            means, variances = gather(torch.stack([mean, variance])).unbind(1)  # (world, c)
            mean = means.mean(0)
            variance = (variances + (means - mean).square()).mean(0)
            count = maps.numel() // maps.shape[1] * len(means)
            self._remember(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
            scale = self.weight * (variance + self.eps).rsqrt()
            offset = self.bias - mean * scale
            return (maps * scale[:, None, None] + offset[:, None, None]).to(maps.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


def share_batch_norm(network: nn.Module) -> None:
    """Let every BatchNorm2d of `network` see the images of all processes; weights and their names stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d  # the same state, another forward

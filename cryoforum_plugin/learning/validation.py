"""Labels of the training, and how well the network does on particles it does not learn from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cryoforum_plugin.errors import ModelError
from cryoforum_plugin.geometry import (
    angular_distance_to_group,
    reduce_to_asymmetric_unit,
    symmetry_group,
)
from cryoforum_plugin.images.working import finish
from cryoforum_plugin.learning.losses import label_negative_log_likelihood, orientation_loss
from cryoforum_plugin.posterior import mode
from cryoforum_plugin.posterior.wrong_labels import robust
from cryoforum_plugin.settings import Settings


@dataclass(frozen=True)
class ValidationData:
    """Working images `(m, n, n)` float16 and their poses `(m, 4)` float32 XYZW."""

    images: Tensor
    rotation: Tensor


class Labels:
    """What training holds for the truth: poses modulo the point group, or reduced to its asymmetric unit."""

    def __init__(self, symmetry: str, reduced: bool, device: torch.device) -> None:
        self.symmetry, self.reduced = symmetry, reduced
        self.group = torch.from_numpy(symmetry_group(symmetry)).float().to(device)
        self.equivalent = self.group[:1] if reduced else self.group

    def of(self, rotation: Tensor) -> Tensor:
        """Labels `(b, 4)` of poses `(b, 4)`; those equivalent under `equivalent` are as good."""
        return reduce_to_asymmetric_unit(rotation, self.symmetry) if self.reduced else rotation


@torch.no_grad()  # not inference_mode: roma caches tensors that training then could not use
def validate(
    network: nn.Module,
    data: ValidationData,
    labels: Labels,
    settings: Settings,
    outliers: float = 0.0,
    fabric: Fabric | None = None,
) -> tuple[float, float, float]:
    """Loss of single images, median and mean error (deg) over the validation images; modulo symmetry.

    outliers : part of the labels that are taken for wrong, so that those do not decide the loss. fabric : several
    processes share the images, and all get the figures of all.
    """
    network.eval()
    losses, errors = [], []
    rank, world = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    shared = zip(data.images[rank::world].split(256), data.rotation[rank::world].split(256), strict=True)
    for images, rotation in shared:
        finished = finish(images.to(rotation.device).float(), settings.images.preprocessing)
        output = network(finished)
        matrix = output.bingham
        nll = robust(label_negative_log_likelihood(output, rotation, labels.group), outliers)
        losses.append(orientation_loss(matrix, rotation, labels.group, settings.loss, nll))
        errors.append(angular_distance_to_group(mode(matrix), rotation.double(), labels.group.double()))
    found = torch.stack([torch.cat(losses), torch.rad2deg(torch.cat(errors))])
    if fabric is not None and world > 1:
        everyone = found.new_zeros(2, len(data.rotation))
        everyone[:, rank::world] = found
        found = fabric.all_reduce(everyone, reduce_op="sum")  # type: ignore[assignment]
    error, loss = found[1], float(found[0].mean())
    if not math.isfinite(loss):
        raise ModelError(
            "training diverged (the validation loss is not finite); lower training.learning_rate"
        )
    return loss, float(error.median()), float(error.mean())

"""A Trainer of a network of a few channels on exact blob images in memory: an epoch takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from blobs import blob_positions, blob_volume
from lightning_fabric import Fabric

from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.launch import Devices
from cryoforum_plugin.launch.devices import make_fabric
from cryoforum_plugin.learning.batches import BatchMaker, TrainingData
from cryoforum_plugin.learning.loop import Trainer
from cryoforum_plugin.learning.validation import ValidationData
from cryoforum_plugin.network.model import build_network
from cryoforum_plugin.settings import preset, with_values

SIZE, PIXEL_A = 24, 5.0
SMALL = {
    "network.channels": 2, "network.features": 4, "network.hidden": 8, "training.learning_rate": 1e-2,
    "training.noise_range": 1.0,
}  # fmt: skip


def blob_trainer(
    folder: Path,
    rotation: torch.Tensor,
    epochs: int,
    labels: torch.Tensor | None = None,
    fabric: Fabric | None = None,
    noise: float = 0.0,
    **values: Any,
) -> Trainer:
    """Trainer on images with white noise of s.d. `noise`, without a CTF at poses `(n, 4)`, whose labels may be others.

    values : section__key = value, beside those of SMALL. A tenth of as many images, with right poses, are held out.
    """
    settings = with_values(
        preset("default"), SMALL | {key.replace("__", "."): value for key, value in values.items()}
    )
    projector = Projector(blob_volume(blob_positions(8, 6.0), SIZE), PIXEL_A)
    held_out = random_quaternions(max(20, len(rotation) // 10), torch.Generator().manual_seed(9))
    images, validation = (projector.project(roma.unitquat_to_rotmat(q)).half() for q in (rotation, held_out))
    if noise:
        images = (
            images + (noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(8))).half()
        )
    known = (rotation if labels is None else labels).float()
    data = TrainingData(images, known, None, np.full(len(known), PIXEL_A), "flip", projector)
    torch.manual_seed(settings.training.seed)
    return Trainer(
        fabric or make_fabric(Devices("cpu"), "32-true"),
        build_network(settings, SIZE),
        BatchMaker(data, settings.training, torch.Generator()),
        ValidationData(validation, held_out),
        settings,
        epochs,
        folder / "checkpoint",
    )

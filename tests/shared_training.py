"""What several processes run in the tests of shared training; the same in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from tiny_trainer import blob_trainer

from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.launch import Devices, Place
from cryoforum_plugin.launch.devices import make_fabric

FIRST = 3  # steps whose losses are told
IMAGES = 640


def train_case(fabric: Fabric, folder: Path, values: dict[str, Any], epochs: int = 1) -> dict[str, Any]:
    """Train on 200 images; losses and gradient norms of the first steps, weights and figures."""
    poses = random_quaternions(200, torch.Generator().manual_seed(1))
    labels = poses.clone()
    labels[:20] = random_quaternions(20, torch.Generator().manual_seed(2))
    trainer = blob_trainer(folder, poses, epochs, labels, fabric, 1.0, **values)
    trainer.checkpoint.mkdir(parents=True, exist_ok=True)
    losses: list[float] = []
    norms: list[float] = []
    original, clip = trainer._loss, fabric.clip_gradients

    def spied(batch: Any, done: float) -> tuple[torch.Tensor, torch.Tensor]:
        loss, orientation = original(batch, done)
        if len(losses) < FIRST:
            losses.append(float(fabric.all_reduce(loss.detach())))
        return loss, orientation

    def clipped(*arguments: Any, **named: Any) -> Any:
        norm = clip(*arguments, **named)
        if len(norms) < FIRST:
            norms.append(float(norm))
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_loss", spied)
        patch.setattr(fabric, "clip_gradients", clipped)
        best = trainer.run(lambda steps, note: None)
    row = trainer.metrics[-1]
    return {
        "losses": losses,
        "norms": norms,
        "weights": best,
        "figures": [row.train_loss, row.validation_loss, row.wrong_labels],
        "median_deg": row.validation_median_deg,
        "steps": trainer.steps_per_epoch,
    }


def train_cases(place: Place, folder: Path, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every case, by name, with epochs of IMAGES."""
    fabric = make_fabric(Devices("cpu", place.world), "32-true", place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cryoforum_plugin.learning.loop.epoch_images", lambda *arguments: IMAGES)
        return {name: train_case(fabric, folder / name, **case) for name, case in cases.items()}

"""A device that does not hold a batch: the step is taken in parts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tiny_trainer import blob_trainer
from torch import Tensor

from cryoforum_plugin.errors import DeviceError
from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.learning.batches import Batch
from cryoforum_plugin.learning.loop import Trainer


def trainer_with_room(folder: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Trainer on a device that holds `room` images."""
    trainer = blob_trainer(folder, random_quaternions(64, torch.Generator().manual_seed(1)), 1)
    (folder / "checkpoint").mkdir()
    whole = trainer._loss

    def loss(batch: Batch, done: float) -> tuple[Tensor, Tensor]:
        if len(batch.images) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(batch, done)

    monkeypatch.setattr(trainer, "_loss", loss)
    return trainer


def test_a_step_is_taken_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_with_room(tmp_path, 20, monkeypatch)
    with caplog.at_level(logging.WARNING):
        trainer.run(lambda count, note: None)
    assert trainer.parts == 4
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "out of memory with 64 images at a time",
        "out of memory with 32 images at a time",
    ]


def test_parts_have_the_gradients_of_the_whole(tmp_path: Path) -> None:
    trainer = blob_trainer(tmp_path, random_quaternions(64, torch.Generator().manual_seed(1)), 1)
    trainer.network.eval()  # batch norm sees each part by itself
    batch = trainer.batches.make(torch.arange(64))
    found = []
    for parts in (1, 4):
        trainer.parts = parts
        trainer.label_noise.enabled = False  # learns from part to part
        trainer._gradients(batch, 0.5)
        gradients = [p.grad for p in trainer.network.parameters() if p.grad is not None]
        found.append(torch.cat([gradient.flatten().clone() for gradient in gradients]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5 * float(found[0].abs().max()))


def test_what_never_fits_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_with_room(tmp_path, 0, monkeypatch)
    with pytest.raises(DeviceError, match="smaller --batch-size"):
        trainer.run(lambda count, note: None)

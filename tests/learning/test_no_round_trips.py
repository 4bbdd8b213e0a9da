"""A step of the training never looks at numbers of its device, nor copies between devices.

Shown without a GPU on torch's "meta" device, whose tensors have no numbers, under a mode that sees every operation.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_trainer import blob_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.learning import batches
from cryoforum_plugin.learning.loop import Trainer
from cryoforum_plugin.particles import Ctf

META = torch.device("meta")
LOOKS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class Watch(TorchDispatchMode):
    """Refuses operations that make a GPU wait."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        assert not any(look in str(function) for look in LOOKS), function
        if "copy" in str(function):
            assert len({tensor.device for tensor in tensors}) == 1, function
        return result


class MetaDraws(batches._Draws):
    """Draws without a generator, which "meta" has none of."""

    def __init__(self, count: int, share: slice, generator: torch.Generator) -> None:
        self.count, self.share, self.device = count, share, META
        self.generator = None  # type: ignore[assignment]

    def quaternions(self) -> torch.Tensor:
        return self.normal(4)


def on_meta(trainer: Trainer) -> None:
    """Bring everything that a step needs to "meta"."""
    data, n = trainer.batches.data, trainer.count
    columns = (12_000, 11_000, 20, 300, 2.7, 0.1, 0)
    meta = batches.TrainingData(
        data.images.to(META),
        data.rotation.to(META),
        Ctf(*(np.full(n, float(value)) for value in columns)),
        data.sampling_A,
        "flip",
        data.projector.to(META),
    )
    assert isinstance(meta.transfer(torch.zeros(1, dtype=torch.long, device=META)), torch.Tensor)  # made once
    trainer.batches.data, trainer.batches.device = meta, META
    trainer.network = trainer.network.module.to(META)
    trainer.labels.group, trainer.labels.equivalent = (
        group.to(META) for group in (trainer.labels.group, trainer.labels.equivalent)
    )
    trainer.label_noise._weight = trainer.label_noise._weight.to(META)
    trainer.fabric = SimpleNamespace(world_size=1, device=META)
    if trainer.draw_counts is not None:
        trainer.draw_counts = trainer.draw_counts.to(META)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"training__balance_views": 0.5},
        {"network__modes": 2},
        {"training__branches": "siamese", "loss__distance": 1.0, "loss__geodesic": 1.0},
    ],
)
def test_a_step_makes_no_gpu_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    poses = random_quaternions(40, torch.Generator().manual_seed(1))
    trainer = blob_trainer(tmp_path, poses, 1, training__noise_range=1.3, **values)
    monkeypatch.setattr(batches, "_Draws", MetaDraws)
    monkeypatch.setattr("torch.autocast", lambda *arguments, **named: nullcontext())
    on_meta(trainer)
    rows = batches.Rows(torch.zeros(16, dtype=torch.long), torch.zeros(16, dtype=torch.long, device=META))

    def step() -> None:
        loss, _ = trainer._loss(trainer.batches.make(rows), 0.5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), 10.0, error_if_nonfinite=False)

    step()  # fills the caches of constants
    with Watch():
        step()


def test_a_look_is_noticed() -> None:
    with Watch(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        float(torch.ones(1))
    with Watch(), pytest.raises(AssertionError, match="copy"):
        torch.ones(1).to(META)

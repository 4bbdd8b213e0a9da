"""The autoencoder of the documentation, with few images and steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "examples" / "autoencoder.py"


def test_learns_with_gradients_to_both_parts() -> None:
    spec = importlib.util.spec_from_file_location("autoencoder", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.HELD_OUT, script.BATCH = 128, 32
    model, (before, after) = script.run(count=512, steps=(30, 30), freeze="nothing")
    signal = 1 - before["noise"]  # images have variance 1
    assert after["loss"] < before["loss"] - 0.05 * signal
    for name, part in model.named_parameters():  # of the last step, on the images
        assert part.grad is not None, name
        assert float(part.grad.norm()) > 0, name

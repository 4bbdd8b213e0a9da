"""The autoencoder of the documentation, with few images and steps."""

from __future__ import annotations

from chain import load_example


def test_learns_with_gradients_to_both_parts() -> None:
    script = load_example("autoencoder")
    script.HELD_OUT, script.BATCH = 128, 32
    model, (before, after) = script.run(count=512, steps=(30, 30), freeze="nothing")
    signal = 1 - before["noise"]  # images have variance 1
    assert after["loss"] < before["loss"] - 0.05 * signal
    for name, part in model.named_parameters():  # of the last step, on the images
        assert part.grad is not None, name
        assert float(part.grad.norm()) > 0, name

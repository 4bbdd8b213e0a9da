"""Bare steps of the networks on images in memory, beside the machine's peak in the same arithmetic.

    python benchmarks/network_steps.py [--seconds 5] [--output FILE.json]

Images a second of a training step (network, gradients, optimiser; no preparation, no loss of poses) and of a prediction, for
the default and the paper's preset on this machine's CPU in bfloat16; operations a second that they make of it, as torch counts
them, and those of a large matrix product.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, command_line, machine, write_results
from torch.utils.flop_counter import FlopCounterMode

from cryoforum_plugin.network.encoder import fused_for_inference
from cryoforum_plugin.network.memory import freed_memory_kept
from cryoforum_plugin.network.model import build_network
from cryoforum_plugin.settings import Settings, preset

PRESETS = {"default": (Settings(), 64, 256, 64), "paper": (preset("paper"), 128, 64, 16)}  # box, batches
MATRIX = 2048


def per_s(step: Callable[[], object], seconds: float) -> float:
    """Steps a second, after two to warm up."""
    step()
    step()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        done += 1
    return done / (time.perf_counter() - start)


def operations(step: Callable[[], object]) -> int:
    """Floating point operations of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def rates(name: str, seconds: float) -> dict[str, Any]:
    """Images and operations a second of a preset's network."""
    settings, box, trained, predicted = PRESETS[name]
    network = build_network(settings, box).to(memory_format=torch.channels_last).train()
    fused = fused_for_inference(network, torch.bfloat16)
    optimiser = torch.optim.Adam(network.parameters(), 1e-4, fused=True)

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = network(torch.randn(trained, 1, box, box))
        optimiser.zero_grad()
        output.bingham.square().mean().backward()
        optimiser.step()

    @torch.no_grad()
    def predict() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            fused(torch.randn(predicted, 1, box, box))

    found: dict[str, Any] = {"preset": name}
    with freed_memory_kept():
        for what, step, images in (("trained", train, trained), ("predicted", predict, predicted)):
            each = operations(step) / images
            rate = per_s(step, seconds) * images
            found |= {
                f"{what}_per_s": round(rate, 1),
                f"{what}_MFLOP_an_image": round(each / 1e6, 1),
                f"{what}_GFLOP_per_s": round(each * rate / 1e9, 1),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--output", type=Path, default=RESULTS / "network_steps.json")
    arguments = parser.parse_args()
    a, b = torch.randn(2, MATRIX, MATRIX, dtype=torch.bfloat16)
    peak = per_s(lambda: a @ b, arguments.seconds) * 2 * MATRIX**3 / 1e9
    result = {
        "command": command_line(),
        "machine": machine(),
        "matrix_product_GFLOP_per_s": round(peak, 1),
        "rows": [rates(name, arguments.seconds) for name in PRESETS],
    }
    print(write_results(arguments.output, result))


if __name__ == "__main__":
    main()

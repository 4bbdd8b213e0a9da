"""One pass over a batch against a Siamese double pass on the same pairs: same gradients, less time.

    python benchmarks/pair_passes.py [--images 16] [--size 64] [--channels 16] [--repeats 5] [--device auto]

The paper's Siamese network shows both images of every pair to the network: 2 P images for P pairs. As both branches
share their weights, one pass over the B different images gives the same distances. Measured with the network of
the paper preset in evaluation mode (batch statistics would differ between the two), on the same pairs and labels:
the largest difference of a gradient, relative to the largest gradient, in float64, and the seconds of a step (forward and backward) in float32, alternating, median of the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, command_line, machine, write_results
from torch import Tensor

from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.learning.losses import pairwise_distance
from cryoforum_plugin.network import PoseNetwork
from cryoforum_plugin.network.device import choose_device
from cryoforum_plugin.network.model import build_network
from cryoforum_plugin.posterior import mode
from cryoforum_plugin.settings import preset, with_values

Pairs = tuple[Tensor, Tensor]


def pair_sets(count: int, device: torch.device) -> dict[str, Pairs]:
    """Pairs of `count` images: as many as images, each in two of them, and all there are."""
    order = torch.randperm(count)
    covering = (order.to(device), order.roll(1).to(device))
    first, second = torch.triu_indices(count, count, 1, device=device)
    return {"as_many_pairs_as_images": covering, "all_pairs": (first, second)}


def one_pass(network: PoseNetwork, images: Tensor, pairs: Pairs, group: Tensor) -> Tensor:
    """Predicted distances `(p,)` from one look at every image."""
    return pairwise_distance(mode(network(images).bingham), *pairs, group)


def double_pass(network: PoseNetwork, images: Tensor, pairs: Pairs, group: Tensor) -> Tensor:
    """The same from two looks at every pair."""
    found = [mode(network(images[rows]).bingham) for rows in pairs]
    rows = torch.arange(len(pairs[0]), device=images.device)
    return pairwise_distance(torch.cat(found), rows, rows + len(rows), group)


Passes = Callable[[PoseNetwork, Tensor, Pairs, Tensor], Tensor]


def gradients(
    passes: Passes, network: PoseNetwork, images: Tensor, rotation: Tensor, pairs: Pairs, group: Tensor
) -> dict[str, Tensor]:
    """Gradients of the mean absolute error of the distances, by parameter."""
    network.zero_grad(set_to_none=True)
    known = pairwise_distance(rotation, *pairs, group)
    (passes(network, images, pairs, group) - known).abs().mean().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of a gradient, relative to the largest gradient."""
    assert a.keys() == b.keys()
    difference = max(float((a[name] - b[name]).abs().max()) for name in a)
    return difference / max(float(value.abs().max()) for value in a.values())


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Wall time of one step."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(
    images_count: int, size: int, channels: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Gradients and times of both ways, for both sets of pairs."""
    torch.manual_seed(1)
    settings = with_values(preset("paper"), {"images.size_px": size, "network.channels": channels})
    network = build_network(settings, size).to(device).eval()
    images = torch.randn(images_count, 1, size, size, device=device)
    rotation = random_quaternions(images_count, torch.Generator().manual_seed(1)).to(device).double()
    group = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64, device=device)
    result: dict[str, Any] = {}
    for name, pairs in pair_sets(images_count, device).items():

        def step(passes: Passes, images: Tensor, pairs: Pairs = pairs) -> dict[str, Tensor]:
            return gradients(passes, network, images, rotation, pairs, group)

        network.double()
        difference = largest_difference(step(one_pass, images.double()), step(double_pass, images.double()))
        network.float()
        times: dict[str, list[float]] = {"one_pass": [], "double_pass": []}
        for repeat in range(repeats + 1):
            for way, passes in (("one_pass", one_pass), ("double_pass", double_pass)):
                taken = seconds(lambda passes=passes: step(passes, images), device)
                if repeat:  # the first warms up
                    times[way].append(round(taken, 5))
        one, double = (statistics.median(values) for values in times.values())
        result[name] = {
            "pairs": len(pairs[0]),
            "image_passes": {"one_pass": images_count, "double_pass": 2 * len(pairs[0])},
            "largest_relative_gradient_difference_float64": difference,
            "seconds_per_step": times,
            "median_seconds": {"one_pass": one, "double_pass": double},
            "times_faster": round(double / one, 2),
        }
        print(f"{name}: {len(pairs[0])} pairs, gradients differ by {difference:.1e}, "
              f"{one:.4f} s against {double:.4f} s a step", flush=True)  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=RESULTS / "pair_passes.json")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    content = {
        "command": command_line(),
        "machine": machine(),
        "device": str(device),
        "images": arguments.images,
        "size_px": arguments.size,
        "channels": arguments.channels,
        **measure(arguments.images, arguments.size, arguments.channels, arguments.repeats, device),
    }
    write_results(arguments.output, content)


if __name__ == "__main__":
    main()

"""Images a second of `cryoforum predict`, reading included, warm and repeated.

    python benchmarks/prediction_speed.py MODEL_DIR PARTICLES [--repeats 5] [--output FILE.json]

MODEL_DIR and PARTICLES are for instance those that `ribosome_snr.py --work-dir DIR` leaves behind (DIR/model,
DIR/sim/particles.star). Every run is a process of its own; the time is what the command prints: from opening
the stack to the calibrated prediction of the last image, without starting Python and writing the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, command_line, machine, run, write_results


def measure(model: Path, particles: Path, repeats: int, views: int) -> dict[str, Any]:
    """Run `predict` `repeats` times; return the speeds and the largest memory."""
    speeds, memory = [], []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for i in range(repeats):
            figures = out / f"{i}.json"
            step = run(
                particles.parent.parent, "predict", "--no-refine", model.resolve(), particles.resolve(), "-o", out / f"{i}.star",
                "--views", views, "--quiet", "--json", figures,
            )  # fmt: skip
            speeds.append(json.loads(figures.read_text())["particles_per_s"])
            memory.append(step["peak_memory_GB"])
    return {"images_per_s": speeds, "median": statistics.median(speeds), "peak_memory_GB": max(memory)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("particles", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "prediction_speed.json")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"command": command_line(), "machine": machine()}
    for views in (1, 2, 8):
        result[f"views_{views}"] = measure(arguments.model, arguments.particles, arguments.repeats, views)
    print(write_results(arguments.output, result, arguments.model.parent))


if __name__ == "__main__":
    main()

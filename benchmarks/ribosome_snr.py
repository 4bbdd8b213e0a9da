"""Accuracy, calibration and speed on the 70S ribosome at a given SNR, from a user's commands.

    python benchmarks/ribosome_snr.py [--snr 0.1] [--map MAP] [--output FILE.json] [--work-dir DIR]

Protocol of the paper: 5,000 projections of a 70S map at 128 px, low-passed to 11 A, uniform views, shifts up
to 3 px, defocus 1.0-2.5 um at 300 kV, white noise at the given SNR (variance ratio over the full box),
split 50/17/33 into training, validation and test. Every step is a `cryoforum` command run as a process of
its own; times are wall clock, memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import COUNT, MAP, RESULTS, TRAINING, VALIDATION, command_line, machine, run, write_results


def measure(map_file: Path, snr: float, work: Path, epochs: int | None, seed: int) -> dict[str, Any]:
    """Run the protocol in `work`; return the figures."""
    result: dict[str, Any] = {
        "protocol": {"map": map_file.name, "count": COUNT, "snr": snr, "seed": seed},
        "machine": machine(),
    }
    kept = TRAINING + VALIDATION
    steps = result["steps"] = {}
    steps["simulate"] = run(
        work, "simulate", map_file.resolve(), "-o", "sim", "--count", COUNT, "--snr", snr, "--low-pass", 11,
        "--split", kept, round(1 - kept, 4), "--seed", seed,
    )  # fmt: skip
    extra = [] if epochs is None else ["--epochs", epochs]
    steps["train"] = run(
        work,
        "train",
        "sim/train.star",
        "-o",
        "model",
        "--validation-fraction",
        round(VALIDATION / kept, 4),
        *extra,
    )
    for views in (1, 2, 4, 8):
        name = f"views_{views}"
        steps[f"predict_{name}"] = run(
            work,
            "predict",
            "model",
            "sim/test.star",
            "-o",
            f"{name}.star",
            "--views",
            views,
            "--no-refine",
            "--json",
            f"{name}_run.json",
        )
        run(work, "evaluate", f"{name}.star", "sim/test.star", "--json", f"{name}.json")
        result[name] = json.loads((work / f"{name}.json").read_text())
    # speed on the whole stack, after the file system has it in memory
    for views in (1, 8):
        steps[f"speed_views_{views}"] = run(
            work,
            "predict",
            "model",
            "sim/particles.star",
            "-o",
            f"all_{views}.star",
            "--views",
            views,
            "--no-refine",
            "--json",
            f"speed_{views}.json",
        )
        result[f"speed_views_{views}"] = json.loads((work / f"speed_{views}.json").read_text())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--map", type=Path, default=MAP)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS / "ribosome_snr.json")
    parser.add_argument("--work-dir", type=Path, default=None)
    arguments = parser.parse_args()
    if not arguments.map.exists():
        raise SystemExit(f"no map {arguments.map}; give one with --map or set CRYOFORUM_SHARED_DATA")
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work_dir or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        result = measure(arguments.map, arguments.snr, work, arguments.epochs, arguments.seed)
    content = {"command": command_line(), **result}
    print(write_results(arguments.output, content, work, arguments.map.parent))


if __name__ == "__main__":
    main()

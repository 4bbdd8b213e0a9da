"""Images a second beside the paper's original network, on the same machine, one after the other in one run.

    python benchmarks/original_network.py [--tensorflow PYTHON] [--count 5000] [--map MAP] [--output FILE.json]

The original is built of Keras parts (`keras_network.py`) and runs on the interpreter PYTHON, in whose environment
tensorflow-cpu is installed; its images come from memory. Ours are read from the stack of `cryoforum simulate`: what
`train` says in metrics.csv, validation included, from the second epoch on; what `predict` prints, reading and
calibration included. Each is measured in turn, `--repeats` times, and the median counts. Then the original is trained on
as many images as our default preset was shown, and the errors of both on a tenth that they did not see are compared; it
sees the stack's images as they are, with their CTF, as its program does.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    MAP,
    RESULTS,
    command_line,
    images_per_epoch,
    machine,
    run,
    run_process,
    trained_per_s,
    write_results,
)

PAIRS = 32  # a step of siamese training, for both
# an epoch is 1,024 pairs, where the paper's own hold 40 times as many; few particles to calibrate what has learned nothing yet
PAPER = (
    "--preset", "paper", "--batch-size", PAIRS, "--set", "training.pair_fraction=0.0001", "--validation-fraction", 0.02,
)  # fmt: skip


def keras(work: Path, python: str, seconds: float) -> dict[str, Any]:
    """Time the original network."""
    script, figures = Path(__file__).with_name("keras_network.py"), work / "keras.json"
    run_process(
        [python, str(script.resolve()), "stack.npy", "--batch", str(PAIRS), "--seconds", str(seconds), "--json", str(figures)],
        work,
    )  # fmt: skip
    return dict(json.loads(figures.read_text()))


def keras_error(work: Path, python: str, shown: int) -> dict[str, Any]:
    """Train the original network on `shown` images; its errors on the last tenth."""
    import mrcfile

    from cryoforum_plugin import formats

    np.save(work / "known.npy", formats.read_particles(work / "sim" / "particles.star").rotation)
    np.save(work / "all.npy", mrcfile.read(work / "sim" / "particles.mrcs").astype(np.float32))
    script, figures = Path(__file__).with_name("keras_network.py"), work / "keras_error.json"
    run_process(
        [python, str(script.resolve()), "all.npy", "--known", "known.npy", "--shown", str(shown), "--json", str(figures)],
        work,
    )  # fmt: skip
    return dict(json.loads(figures.read_text()))


def train(work: Path, model: str, epochs: int, *options: object) -> float:
    """Images trained a second, of all epochs but the first."""
    run(
        work, "train", "sim/particles.star", "-o", model, "--epochs", epochs, "--no-half-sets", "--overwrite", "--quiet",
        *options,
    )  # fmt: skip
    return trained_per_s(work / model)


def predict(work: Path, model: str, *options: object) -> float:
    """Particles predicted a second."""
    run(
        work, "predict", model, "sim/particles.star", "-o", "out.star", "--overwrite", "--quiet", "--json", "out.json",
        *options,
    )  # fmt: skip
    return float(json.loads((work / "out.json").read_text())["particles_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensorflow", default=sys.executable, help="interpreter that has tensorflow-cpu")
    parser.add_argument("--map", type=Path, default=MAP)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each of the original's two figures")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of the default preset; the paper preset has 2")
    parser.add_argument("--work-dir", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS / "original_network.json")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work_dir or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        run(
            work,
            "simulate",
            arguments.map.resolve(),
            "-o",
            "sim",
            "--count",
            arguments.count,
            "--snr",
            0.1,
            "--overwrite",
        )
        import mrcfile

        np.save(work / "stack.npy", mrcfile.read(work / "sim" / "particles.mrcs")[:1024])
        original: dict[str, Any] = {}
        for _ in range(arguments.repeats):
            original = keras(work, arguments.tensorflow, arguments.seconds)
            figures = {
                "original, trained": original["trained_per_s"],
                "original, predicted": original["predicted_per_s"],
                "default, trained": train(work, "model", arguments.epochs),
                "default, predicted, 1 view": predict(work, "model", "--no-refine", "--views", 1),
                "default, predicted, 2 views": predict(work, "model", "--no-refine"),
                "default, predicted, 8 views": predict(work, "model", "--no-refine", "--views", 8),
                "default, predicted and refined": predict(work, "model", "--refine"),
                "paper preset, trained": train(work, "paper", 2, *PAPER),
                "paper preset, predicted, 1 view": predict(work, "paper", "--no-refine", "--views", 1),
            }
            for name, value in figures.items():
                found.setdefault(name, []).append(round(value, 1))
        with open(work / "model" / "metrics.csv", newline="") as file:
            last = list(csv.DictReader(file))[-1]
        shown = arguments.epochs * images_per_epoch(work / "model")
        errors = {
            "default preset": {
                "shown": shown,
                "median_error_deg": float(last["validation_median_deg"]),
                "mean_error_deg": float(last["validation_mean_deg"]),
            },
            "original": keras_error(work, arguments.tensorflow, shown),
        }
    rows = {}
    for name, values in found.items():
        like = f"original, {'trained' if 'trained' in name else 'predicted'}"
        ratio = statistics.median(values) / statistics.median(found[like])
        rows[name] = {
            "images_per_s": values,
            "median": statistics.median(values),
            "times_original": round(ratio, 1),
        }
    result = {
        "command": command_line().replace(arguments.tensorflow, "PYTHON"),
        "machine": machine()
        | {"tensorflow": original["tensorflow"], "original_parameters": original["parameters"]},
        "particles": arguments.count,
        "rows": rows,
        "errors": errors,
    }
    print(write_results(arguments.output, result, work))
    print("\n".join(f"| {name} | {r['median']:.0f} | {r['times_original']} |" for name, r in rows.items()))


if __name__ == "__main__":
    main()

"""The whole chain on real input: images made by RELION, real tilt images, real particles.

    python benchmarks/real_input.py [--count 3000] [--epochs N] [--output FILE.json]

(a) `relion_project` makes particles of the 70S map with CTF, shifts and noise; they are trained on,
predicted, evaluated, selected and reconstructed. (b) 219 real ribosome tilt images and (c) 17 real particles
are trained on and predicted: far too few to learn from, so only that the chain runs and its output is sane.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import starfile
from common import MAP, RESULTS, SHARED, command_line, machine, run, write_results
from relion_common import MADE_PIXEL_SIZE_A, project, split

REAL = SHARED / "real"


def relion_particles(folder: Path, count: int) -> None:
    """Let `relion_project` make folder/relion.star, two thirds of it train.star, the rest test.star."""
    made = project(folder, MAP, MADE_PIXEL_SIZE_A, "--count", count, "--split", 0.67, 0.33)
    split(folder, made, {"train": "train.star", "test": "test.star"})


def chain(folder: Path, train: Path, test: Path, data_root: Path, options: list[object]) -> dict[str, Any]:
    """Train on `train`, predict `test`; return the figures."""
    name = train.stem
    root = ["--data-root", data_root]
    trained = run(folder, "train", train, "-o", f"{name}_model", *root, *options)
    predicted = run(
        folder,
        "predict",
        f"{name}_model",
        test,
        "-o",
        f"{name}_out.star",
        *root,
        "--json",
        f"{name}_run.json",
    )
    figures = json.loads((folder / f"{name}_run.json").read_text())
    columns = starfile.read(folder / f"{name}_out.star", always_dict=True)
    table = max(columns.values(), key=len)
    numbers = table.select_dtypes("number").to_numpy()
    figures["all_finite"] = bool(np.isfinite(numbers).all())
    figures["rows"] = len(table)
    return {"train": trained, "predict": predicted, "figures": figures}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS / "real_input.json")
    arguments = parser.parse_args()
    if not REAL.is_dir():
        raise SystemExit(f"no data in {REAL}; set CRYOFORUM_SHARED_DATA")
    epochs: list[object] = [] if arguments.epochs is None else ["--epochs", arguments.epochs]
    result: dict[str, Any] = {"command": command_line(), "machine": machine()}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if shutil.which("relion_project"):
            relion_particles(work, arguments.count)
            result["relion_project"] = chain(work, work / "train.star", work / "test.star", work, epochs)
            run(work, "evaluate", "train_out.star", "test.star", "--json", "eval.json")
            result["relion_project"]["evaluation"] = json.loads((work / "eval.json").read_text())
            run(work, "select", "train_out.star", "-o", "kept.star", "--keep", 0.75)
            run(work, "reconstruct", "kept.star", "-o", "map", "--json", "map.json")
            result["relion_project"]["reconstruction"] = json.loads((work / "map.json").read_text())
        few: list[object] = ["--epochs", 4]
        tilts = REAL / "ribosome_tilts_64px"
        result["ribosome_tilts_64px"] = chain(
            work, tilts / "sta_testing_bin8.star", tilts / "sta_testing_bin8.star", tilts, few
        )
        sample = REAL / "sample_200px"
        star = sample / "sample_particles_relion31.star"
        result["sample_200px"] = chain(work, star, star, sample, [*few, "--validation-fraction", 0.25])
    print(write_results(arguments.output, result, work))


if __name__ == "__main__":
    main()

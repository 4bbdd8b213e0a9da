"""How many refined particles a training needs, with and without simulated images, on the 70S ribosome.

    python benchmarks/simulation_counts.py [--counts 500 2500 20000] [--preset fast] [--work-dir DIR]

Particles are simulated as in `ribosome_snr.py`. For each number of refined particles (a tenth of them for
validation): trained on the particles alone, on the default mixture with the reference rebuilt from them, and on
that reference alone (`--simulate-from reference`). A training shows about 63,000 images with 500
and 2,500 particles (preset fast), 144,000 with 20,000: eight epochs are the fewest. The test particles are
the same 1,650 for all; the network alone, and refined.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import MAP, RESULTS, command_line, machine, run, write_results

from cryoforum_plugin import formats

TEST = 1650
KINDS: dict[str, tuple[str, ...]] = {
    "particles alone": ("--set", "training.simulated=0"),
    "mixture": (),
    "reference alone": ("--simulate-from", "reference"),
}


def measure(counts: list[int], snr: float, preset: str, work: Path, output: Path) -> dict[str, Any]:
    """Run every training; the results so far are written after each."""
    most = max(counts)
    run(
        work, "simulate", MAP.resolve(), "-o", "sim", "--count", most + TEST, "--snr", snr, "--low-pass", 11,
        "--split", most / (most + TEST), TEST / (most + TEST), "--seed", 7, "--overwrite",
    )  # fmt: skip
    known = formats.read_particles(work / "sim" / "train.star", work)
    content: dict[str, Any] = {
        "command": command_line(), "machine": machine(), "snr": snr, "preset": preset, "results": {}
    }  # fmt: skip
    for count in counts:
        table = work / f"{count}.star"
        formats.write_particles(known[slice(count)], table, overwrite=True)
        for kind, options in KINDS.items():
            name = f"{count} {kind}"
            content["results"][name] = _one(work, table, name.replace(" ", "_"), preset, options)
            write_results(output, content, work)
    return content


def _one(work: Path, table: Path, name: str, preset: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Train, predict and evaluate once."""
    found: dict[str, Any] = {
        "train": run(work, "train", table, "-o", name, "--preset", preset, "--overwrite", *options)
    }
    for kind, more in (("network", ["--no-refine"]), ("refined", [])):
        out = f"{name}_{kind}"
        run(work, "predict", name, "sim/test.star", "-o", f"{out}.star", "--overwrite", *more)
        run(work, "evaluate", f"{out}.star", "sim/test.star", "--json", f"{out}.json", "--overwrite")
        found[kind] = json.loads((work / f"{out}.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2500, 20000])
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS / "simulation_counts.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work_dir or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        content = measure(options.counts, options.snr, options.preset, work, options.output)
    for name, found in content["results"].items():
        errors = " ".join(f"{kind} {found[kind]['median_rad']:.4f}" for kind in ("network", "refined"))
        print(f"{name}: {errors} rad, {found['train']['seconds']:.0f} s")


if __name__ == "__main__":
    main()

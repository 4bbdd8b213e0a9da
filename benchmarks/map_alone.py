"""Training from a map alone on the 70S ribosome: no refined particle, from a user's commands.

    python benchmarks/map_alone.py [--snr 0.1] [--map MAP] [--preset default] [--output FILE.json] [--work-dir DIR]

Particles are simulated as in `ribosome_snr.py` (5,000 projections at 128 px, low-passed to 11 A, uniform views,
shifts up to 3 px, defocus 1.0-2.5 um, white noise). The training sees the map as it is, not low-passed, and the
images and CTFs of the training part, whose poses it does not look at: it has to find out by itself how bright
and how sharp the map shows and how strong the noise is. The test is that of `ribosome_snr.py`; "refined" is
against the same map.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from common import COUNT, MAP, RESULTS, TRAINING, VALIDATION, command_line, machine, run, write_results


def measure(map_file: Path, snr: float, work: Path, preset: str, seed: int) -> dict[str, Any]:
    """Run the protocol in `work`; return the figures."""
    result: dict[str, Any] = {
        "protocol": {"map": map_file.name, "count": COUNT, "snr": snr, "seed": seed, "preset": preset},
        "machine": machine(),
    }
    kept = TRAINING + VALIDATION
    steps = result["steps"] = {}
    steps["simulate"] = run(
        work, "simulate", map_file.resolve(), "-o", "sim", "--count", COUNT, "--snr", snr, "--low-pass", 11,
        "--split", kept, round(1 - kept, 4), "--seed", seed,
    )  # fmt: skip
    steps["train"] = run(
        work, "train", "--simulate-from", map_file.resolve(), "--ctf-from", "sim/train.star", "-o", "model",
        "--preset", preset,
    )  # fmt: skip
    result["fit"] = fitted(work / "model" / "log.txt")
    result["calibration"] = json.loads((work / "model" / "calibration.json").read_text())["views"]
    kinds: dict[str, list[object]] = {
        f"views_{views}": ["--views", views, "--no-refine"] for views in (1, 2, 8)
    }
    kinds["refined"] = []
    for name, options in kinds.items():
        steps[f"predict_{name}"] = run(
            work, "predict", "model", "sim/test.star", "-o", f"{name}.star", *options
        )
        run(work, "evaluate", f"{name}.star", "sim/test.star", "--json", f"{name}.json")
        result[name] = json.loads((work / f"{name}.json").read_text())
    return result


def fitted(log: Path) -> dict[str, float]:
    """What the training found out about the images, from its log: compare with the protocol."""
    found = re.search(r"amplitude (\S+) and B-factor (\S+) A.* signal to noise (\S+) over", log.read_text())
    if found is None:
        raise SystemExit(f"{log} does not say how the map shows in the images")
    return dict(zip(("amplitude", "b_factor_A2", "snr"), map(float, found.groups()), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--map", type=Path, default=MAP)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS / "map_alone.json")
    parser.add_argument("--work-dir", type=Path, default=None)
    arguments = parser.parse_args()
    if not arguments.map.exists():
        raise SystemExit(f"no map {arguments.map}; give one with --map or set CRYOFORUM_SHARED_DATA")
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work_dir or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        result = measure(arguments.map, arguments.snr, work, arguments.preset, arguments.seed)
    content = {"command": command_line(), **result}
    print(write_results(arguments.output, content, work, arguments.map.parent))


if __name__ == "__main__":
    main()

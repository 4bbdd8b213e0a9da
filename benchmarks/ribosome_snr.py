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
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CRYOFORUM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
RESULTS = REPOSITORY / "benchmarks" / "results"
MAP = SHARED / "maps" / "ribosome70S_4v5a_C1_128px_3A.mrc"
COUNT, TRAINING, VALIDATION = 5000, 0.50, 0.17


def run(folder: Path, *arguments: object) -> dict[str, Any]:
    """Run one `cryoforum` command in `folder`; return its command line, wall seconds and peak memory in GB."""
    command = [sys.executable, "-m", "cryoforum_plugin.cli.main", *map(str, arguments)]
    print("$ cryoforum", shlex.join(map(str, arguments)), flush=True)
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        raise SystemExit(f"the command above failed with {os.waitstatus_to_exitcode(status)}")
    return {
        "command": "cryoforum " + shlex.join(map(str, arguments)),
        "seconds": round(seconds, 1),
        "peak_memory_GB": round(_maxrss_bytes(usage) / 1e9, 2),
    }


def _maxrss_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def portable(text: str, *folders: Path) -> str:
    """`text` without the paths of this machine: each of `folders` becomes its last name."""
    for folder in folders:
        for name in (str(folder.resolve()), str(folder)):
            text = text.replace(name, folder.name)
    return text


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    cpu = names[0] if names else platform.processor()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


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
    text = json.dumps({"command": shlex.join(["python", *sys.argv]), **result}, indent=2)
    text = portable(text, work, arguments.map.parent, arguments.output.parent)
    print(text)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

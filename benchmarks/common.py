"""What every benchmark shares: running commands, describing the machine, writing results."""

from __future__ import annotations

import csv
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CRYOFORUM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
RESULTS = REPOSITORY / "benchmarks" / "results"
MAP = SHARED / "maps" / "ribosome70S_4v5a_C1_128px_3A.mrc"
COUNT, TRAINING, VALIDATION = 5000, 0.50, 0.17  # the paper's particles, and its split with 0.33 for the test


class CommandFailed(SystemExit):
    """A `cryoforum` command ended with an error, which it has printed."""


def run(folder: Path, *arguments: object) -> dict[str, Any]:
    """Run one `cryoforum` command in `folder`; return its command line, wall seconds and peak memory in GB."""
    command = [sys.executable, "-m", "cryoforum_plugin.cli.main", *map(str, arguments)]
    print("$ cryoforum", shlex.join(map(str, arguments)), flush=True)
    seconds, usage = run_process(command, folder)
    return {
        "command": "cryoforum " + shlex.join(map(str, arguments)),
        "seconds": round(seconds, 1),
        "peak_memory_GB": round(maxrss_bytes(usage) / 1e9, 2),
    }


def run_process(command: list[str], folder: Path, **streams: Any) -> tuple[float, resource.struct_rusage]:
    """Run a command in `folder`; return its wall seconds and what it and its children used. Raises CommandFailed."""
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, **streams)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:  # the benchmark is being stopped
        process.terminate()
        raise
    if status:
        raise CommandFailed(f"the command above failed with {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - start, usage


def maxrss_bytes(usage: resource.struct_rusage) -> int:
    """Largest resident memory of a process that ended."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def portable(text: str, *folders: Path) -> str:
    """`text` without the paths of this machine: each of `folders` becomes its last name."""
    for folder in folders:
        name = folder.resolve().name
        text = text.replace(str(folder.resolve()), name)
        if name and folder.name == name:  # not "." or ".."
            text = text.replace(str(folder), name)
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


def command_line(module: str | None = None) -> str:
    """The command this process was started with; `module` where it was started with `python -m`."""
    start = ["python", *sys.argv[:1]] if module is None else ["python", "-m", module]
    return shlex.join([*start, *sys.argv[1:]])


def write_results(path: Path, content: dict[str, Any], *folders: Path) -> str:
    """Write `content` as JSON without this machine's paths, whole or not at all; return the text."""
    text = portable(json.dumps(content, indent=2), *folders, SHARED, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text + "\n")
    temporary.replace(path)
    return text


def images_per_epoch(model: Path) -> int:
    """Images that a model folder's training showed the network in an epoch, in whole batches."""
    from cryoforum_plugin.learning.epochs import epoch_images
    from cryoforum_plugin.settings import Settings, with_values

    config = json.loads((model / "config.json").read_text())
    settings = with_values(Settings(), config["settings"]).training
    step = settings.batch_size * (2 if settings.branches == "siamese" else 1)
    return max(1, epoch_images(config["particles"]["training"], settings) // step) * step


def trained_per_s(model: Path) -> float:
    """Images trained a second in every epoch but the first, by a model folder's metrics.csv: validation included."""
    with open(model / "metrics.csv", newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return (len(seconds) - 1) * images_per_epoch(model) / (seconds[-1] - seconds[0])

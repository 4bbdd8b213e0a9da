"""Time and memory of `cryoforum predict` from a thousand to a million particles.

    python benchmarks/growth.py MODEL_DIR PARTICLES.star [--counts 1000 10000 100000 1000000] [--views 1] [--output FILE.json]

PARTICLES.star (for instance DIR/sim/particles.star of `original_network.py --work-dir DIR`) is repeated under names of its
own for each image, so that a table of a million rows needs no stack of a million images. Memory is sampled ten times a
second: what the process holds when the first particles are done, how much that grows until the last are, and the most
it ever holds, with the table read before and written after. `--kill-after SECONDS` also kills the largest prediction once
and measures what starting again repeats.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import starfile
from common import RESULTS, command_line, machine, write_results


def write_table(source: Path, path: Path, count: int) -> None:
    """Write a table of `count` particles: those of `source`, over and over."""
    tables = starfile.read(source, always_dict=True)
    lines = starfile.to_string(tables).splitlines(keepends=True)
    rows = [line for line in lines if ".mrcs" in line]
    first = lines.index(rows[0])
    with open(path, "w") as file:
        file.writelines(lines[:first])
        written = 0
        while written < count:
            part = rows[: count - written]
            file.writelines(part)
            written += len(part)


def resident_GB(pid: int) -> float:
    """Memory that a process holds now, without file pages it shares."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024 / 1e9
    return 0.0


def watch(command: list[str], journal: Path, kill_after: float | None = None) -> dict[str, Any]:
    """Run a prediction; return its seconds, and its memory as chunks are done."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples: list[tuple[float, int, float]] = []
    while process.poll() is None:
        now = time.monotonic() - start
        if kill_after is not None and now > kill_after:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return {"killed_after_s": round(now, 1), "chunks_done": len(list(journal.glob("*.npz")))}
        chunks = len(list(journal.glob("*.npz"))) if journal.exists() else 0
        try:
            samples.append((now, chunks, resident_GB(process.pid)))
        except OSError:
            break
        time.sleep(0.1)
    if process.wait():
        raise SystemExit(f"failed: {' '.join(command)}")
    while_predicting = [(now, held) for now, chunks, held in samples if chunks]
    result = {
        "seconds": round(time.monotonic() - start, 1),
        "most_GB": round(max(held for _, _, held in samples), 3),
    }
    if while_predicting:
        most = max(chunks for _, chunks, _ in samples)
        busy = [held for _, chunks, held in samples if 0 < chunks < most]
        result |= {
            "first_particles_done_s": round(while_predicting[0][0], 1),
            "held_while_predicting_GB": [round(f(busy or [while_predicting[0][1]]), 3) for f in (min, max)],
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("particles", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--kill-after", type=float, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS / "growth.json")
    arguments = parser.parse_args()
    root = arguments.particles.resolve().parents[1]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        folder = Path(temporary)
        for count in arguments.counts:
            table, out = folder / f"{count}.star", folder / f"{count}_out.star"
            write_table(arguments.particles, table, count)
            command = [
                sys.executable, "-m", "cryoforum_plugin.cli.main", "predict", str(arguments.model.resolve()), str(table),
                "-o", str(out), "--no-refine", "--views", str(arguments.views), "--quiet", "--overwrite",
                "--data-root", str(root),
            ]  # fmt: skip
            journal = out.with_name(f".{out.name}.journal")
            row: dict[str, Any] = {"particles": count, "table_MB": round(table.stat().st_size / 1e6, 1)}
            if arguments.kill_after is not None and count == max(arguments.counts):
                row["killed"] = watch(command, journal, arguments.kill_after)
            row |= watch(command, journal)
            row["written_MB"] = round(out.stat().st_size / 1e6, 1)
            rows.append(row)
            print(row, flush=True)
            os.unlink(out)
    result = {"command": command_line(), "machine": machine(), "views": arguments.views, "rows": rows}
    print(write_results(arguments.output, result, root))


if __name__ == "__main__":
    main()

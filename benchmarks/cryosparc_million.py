"""Time, memory and requests of an external job in cryoSPARC with a million particles, without the network.

    python benchmarks/cryosparc_million.py [--particles 1000000] [--output FILE.json]

The server is the tests' own (`tests/fake_cryosparc`), a process of its own; the job runs in another one. All of
`cryoforum-cryosparc predict --keep 0.5` is done, except that the network's answers are random numbers, and that
the image stacks are empty files. Once with datasets that the client streams (status 201), once with such that it
reads whole (200): which of them a real server sends is not known.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

from common import REPOSITORY, RESULTS, command_line, machine, write_results

WORK, HOST_STEPS = "cryosparc_job.job.work", "cryoforum_plugin.host_job.steps"
END = "end the job (the server writes its files)"
PHASES = {  # what is timed, by where the job looks it up
    f"{WORK}.save_particles": "load the slots, write particles.cs",
    f"{WORK}.data_root": "look for the stacks",
    f"{WORK}.formats.read_particles": "read",
    f"{WORK}.prediction_identity": "checksums",
    f"{HOST_STEPS}.predict_on": "the network's stand-in",
    f"{HOST_STEPS}.write_particles": "write predicted.cs and the posterior",
    f"{WORK}.select": "select",
    f"{WORK}.outputs.save": "output",
    f"{WORK}.Work._pictures": "plots",
    f"{WORK}.Work._report": "report, and its figures in the log",
    "cryosparc_job.job.life.stop": END,
}
UNCERTAINTY = r"uid|components_mode_\d+/(component|value)"
OWN_COLUMNS = {
    "particles": UNCERTAINTY,
    "particles_selected": UNCERTAINTY,
    "particles_rejected": UNCERTAINTY,
    "particles_network_pose": rf"{UNCERTAINTY}|alignments3D/\w+",
}


class Stopwatch:
    """Wall and CPU seconds of each phase, and the largest memory up to its end."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}

    def timed(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        """Return `function`, timed under `label`, which the file or output it is called for completes."""

        def run(*arguments: Any, **named: Any) -> Any:
            detail = {"read": 0, "output": 1}.get(label)
            name = label if detail is None else f"{label} {Path(str(arguments[detail])).name}"
            wall_s, cpu_s = time.monotonic(), time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                self.add(name, time.monotonic() - wall_s, time.process_time() - cpu_s)

        return run

    def add(self, name: str, wall_s: float, cpu_s: float) -> None:
        """Note a phase."""
        phase = self.phases.setdefault(name, {"wall_s": 0.0, "cpu_s": 0.0})
        phase["wall_s"] = round(phase["wall_s"] + wall_s, 2)
        phase["cpu_s"] = round(phase["cpu_s"] + cpu_s, 2)
        phase["peak_memory_GB"] = peak_memory_GB()


def peak_memory_GB() -> float:
    """Largest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


def random_prediction(devices: Any, model: Any, particles: Any, *_: Any, **__: Any) -> Any:
    """Return what the network would, as random numbers."""
    import numpy as np

    from cryoforum_plugin.particles import Prediction

    rng, n = np.random.default_rng(0), len(particles)
    rotation = rng.normal(size=(n, 4))
    prediction = Prediction(
        confidence=rng.uniform(size=n),
        rotation=rotation / np.linalg.norm(rotation, axis=1, keepdims=True),
        shift_A=rng.normal(size=(n, 2)),
        expected_error_deg=rng.lognormal(1.0, 0.5, n),
        expected_shift_error_A=rng.lognormal(0.0, 0.5, n),
        credible_radius_90_deg=rng.lognormal(1.5, 0.5, n),
        lambda_max=-rng.lognormal(5.0, 0.5, n),
        trace=-rng.lognormal(6.0, 0.5, n),
        bingham=rng.normal(size=(n, 10)),
        outlier_score=rng.uniform(size=n),
    )
    return prediction, {"outliers": 0.0, "alarms": []}


def run_job(url: str, email: str | None, folder: Path) -> dict[str, Any]:
    """Run the job on P1, W1, J2 of a server; return its uid and what it took of this process."""
    from cryoforum_plugin.confidence.selection import Criteria
    from cryosparc_job.job.request import Request, Source
    from cryosparc_job.job.steps import run

    model = folder / "model"
    model.mkdir(parents=True)
    (model / "model.pt").touch()
    criteria = Criteria(keep_fraction=0.5, balance_halves=True)
    request = Request(Source("P1", "W1", "J2", url=url, email=email), model, device="cpu", criteria=criteria)
    stopwatch, imports_GB = Stopwatch(), peak_memory_GB()
    with ExitStack() as patches:
        patches.enter_context(patch(f"{HOST_STEPS}.predict_on", random_prediction))
        patches.enter_context(patch(f"{WORK}.load_model"))
        for name, label in PHASES.items():
            owner, attribute = resolve_name(name.rpartition(".")[0]), name.rpartition(".")[2]
            timed = stopwatch.timed(getattr(owner, attribute), label)
            patches.enter_context(patch.object(owner, attribute, timed))
        wall_s, cpu_s = time.monotonic(), time.process_time()
        uid = run(request)
        wall_s, cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
    known = {kind: sum(phase[kind] for phase in stopwatch.phases.values()) for kind in ("wall_s", "cpu_s")}
    stopwatch.add("the rest: connect, make the job, log", wall_s - known["wall_s"], cpu_s - known["cpu_s"])
    return {
        "job": uid,
        "wall_s": round(wall_s, 1),
        "wall_without_the_servers_files_s": round(wall_s - stopwatch.phases[END]["wall_s"], 1),
        "cpu_s": round(cpu_s, 1),
        "wall_minus_cpu_s": round(wall_s - cpu_s, 1),
        "peak_memory_GB": peak_memory_GB(),
        "after_imports_GB": imports_GB,
        "phases": stopwatch.phases,
    }


@contextmanager
def server(particles: int, stream_status: int, report: Path) -> Iterator[tuple[str, str, str]]:
    """Yield url, email and password of a server in a process of its own; at the end it writes `report`."""
    command = [sys.executable, "-m", "fake_cryosparc", "--particles", particles, "--no-images",
               "--stream-status", stream_status, "--report", report]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = re.match(r"(\S+) \((\S+) / (\S+)\)", process.stdout.readline())
        if said is None:
            raise SystemExit("the server did not start")
        yield said[1], said[2], said[3]
    finally:
        process.terminate()
        process.wait()


def measure(particles: int, stream_status: int) -> dict[str, Any]:
    """Run the job in a process of its own, against a new server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(particles, stream_status, folder / "server.json") as (url, email, password):
            login = {"CRYOSPARC_EMAIL": email, "CRYOSPARC_PASSWORD": password, "XDG_CONFIG_HOME": name}
            command = [sys.executable, __file__, "--run-job", url, "--output", str(folder / "job.json")]
            subprocess.run(command, env={**os.environ, **login}, check=True)
        job = json.loads((folder / "job.json").read_text())
        asked = json.loads((folder / "server.json").read_text())
    return {**job, **summary(asked)}


def summary(asked: dict[str, Any]) -> dict[str, Any]:
    """Return requests and uploads from a server's report; AssertionError if more than our slots was uploaded."""
    uploads = {}
    for upload in asked["uploads"]:
        foreign = [
            field for field in upload["fields"] if not re.fullmatch(OWN_COLUMNS[upload["output"]], field)
        ]
        assert not foreign, f"{upload['output']}: not ours: {foreign}"
        assert upload["output"] not in uploads, f"{upload['output']} came twice"
        uploads[upload["output"]] = {
            "rows": upload["rows"],
            "MB": round(upload["num_bytes"] / 1e6, 1),
            "columns": upload["fields"],
        }
    assert uploads.keys() == OWN_COLUMNS.keys(), f"uploaded: {list(uploads)}"
    return {
        "requests": asked["requests"],
        "requests_by_operation": asked["operations"],
        "downloaded_MB": round(asked["bytes_downloaded"] / 1e6, 1),
        "uploaded_MB": round(sum(upload["MB"] for upload in uploads.values()), 1),
        "uploads": uploads,
        "server_cpu_s": round(asked["cpu_s"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--particles", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, default=RESULTS / "cryosparc_million.json")
    parser.add_argument("--run-job", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_job:
        took = run_job(arguments.run_job, None, arguments.output.parent)
        arguments.output.write_text(json.dumps(took))
        return
    result: dict[str, Any] = {
        "command": command_line(),
        "machine": machine(),
        "particles": arguments.particles,
        "not_real": "predict_on (random numbers), load_model (nothing), image stacks (empty files), the server",
    }
    for status, name in ((201, "streamed_201"), (200, "whole_200")):
        load = round(os.getloadavg()[0], 1)  # of other programs too
        result[name] = {"load_average_before": load, **measure(arguments.particles, status)}
    print(write_results(arguments.output, result))


if __name__ == "__main__":
    main()

"""`cryoforum train` in two processes: the model of one process, and clear ends when something is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chain import TINY, cryoforum, simulate, succeed
from scipy.spatial.transform import Rotation

from cryoforum_plugin import formats

OPTIONS = (*TINY, "--epochs", 2, "--device", "cpu", "--precision", "32", "--quiet", "--seed", 3)
LONGEST_S = 20.0  # from a loss to the end of all, on a busy machine


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated particles, and a model of one process."""
    folder = tmp_path_factory.mktemp("processes")
    simulate(folder, 120)
    succeed("train", folder / "sim" / "train.star", "-o", folder / "one", *OPTIONS)
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cryoforum_plugin.cli.main", *map(str, arguments)]


def children(process: subprocess.Popen[str]) -> list[int]:
    """Processes that `process` started, in their order."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def metrics(model: Path) -> np.ndarray:
    return np.genfromtxt(model / "metrics.csv", delimiter=",", names=True)


def rotations(model: Path, data: Path) -> Rotation:
    output = data / f"{model.name}.star"
    succeed("predict", model, data / "sim" / "test.star", "-o", output, "--no-refine", "--quiet")
    return Rotation.from_quat(formats.read_particles(output).require_rotation())


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes under /proc")
def test_a_killed_run_ends_with_one_line_and_resumes_to_the_model_of_one_process(data: Path) -> None:
    model = data / "two"
    arguments = ("train", data / "sim" / "train.star", "-o", model, *OPTIONS, "--devices", 2)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    training = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, env=environment)
    try:
        limit_s = time.monotonic() + 120
        while not (model / "checkpoint" / "metrics.csv").exists():  # after the first of two epochs
            assert training.poll() is None
            assert time.monotonic() < limit_s
            time.sleep(0.02)
        processes = children(training)
        assert len(processes) == 2
        os.kill(processes[1], signal.SIGKILL)
        stderr = training.communicate(timeout=LONGEST_S)[1]
    finally:
        training.kill()
        training.wait()
    assert training.returncode == 1
    assert re.fullmatch(
        r"cryoforum: error: process 2 of 2 on \S+ was killed \(SIGKILL\), .*; run train again with --resume\n",
        stderr,
    )
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
    assert sorted(path.name for path in model.iterdir()) == ["cache", "checkpoint"]
    assert sorted(path.name for path in (model / "checkpoint").iterdir()) == [
        "identity.json", "last.pt", "log.txt", "metrics.csv",
    ]  # fmt: skip

    succeed(*arguments, "--resume")
    one, two = metrics(data / "one"), metrics(model)
    for name in ("train_loss", "validation_loss"):
        assert two[name] == pytest.approx(one[name], abs=0.02)
    assert two["validation_median_deg"] == pytest.approx(one["validation_median_deg"], rel=0.05)
    apart_deg = np.degrees((rotations(data / "one", data) * rotations(model, data).inv()).magnitude())
    assert np.median(apart_deg) < 1.0


def test_what_every_process_refuses_is_said_once(data: Path, tmp_path: Path) -> None:
    particles = formats.read_particles(data / "sim" / "train.star")
    alike = np.tile(particles.require_rotation()[:1], (len(particles), 1))
    formats.write_particles(particles.with_poses(alike, particles.shift_A), tmp_path / "alike.star")
    refused = cryoforum("train", tmp_path / "alike.star", "-o", tmp_path / "m", *OPTIONS, "--devices", 2)
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert "the same viewing direction" in refused.stderr
    assert not (tmp_path / "m").exists()


def test_devices_that_are_not_there_are_refused_before_anything_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    arguments = (
        "train",
        data / "sim" / "train.star",
        "-o",
        tmp_path / "m",
        "--device",
        "cuda",
        "--devices",
        4,
    )
    refused = cryoforum(*arguments)
    assert refused.exit_code == 1
    assert re.fullmatch(r"cryoforum: error: --devices 4: torch sees 1 CUDA device here; .*\n", refused.stderr)
    assert not (tmp_path / "m").exists()

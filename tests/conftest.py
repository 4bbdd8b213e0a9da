"""What every test shares: few threads, a fixed seed, the real RELION and the shared data where present."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
import torch

from cryoforum_plugin.geometry import super_fibonacci_quaternions
from cryoforum_plugin.particles import ParticleSet, Prediction

REPOSITORY = Path(__file__).resolve().parents[1]
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


@dataclass(frozen=True)
class Relion:
    """The RELION programs on PATH."""

    folder: Path

    def run(self, program: str, *arguments: object, cwd: Path | None = None, timeout_s: float = 300) -> str:
        """Run one program; return its stdout and stderr together; fail the test when it fails."""
        done = subprocess.run(
            [program, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **OPEN_MPI},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            pytest.fail(f"{program} ended with {done.returncode}:\n{done.stdout[-4000:]}")
        return done.stdout


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(20240612)


@pytest.fixture(scope="session")
def relion() -> Relion:
    """Return the real RELION; skip without it, or fail when CRYOFORUM_REQUIRE_RELION is set."""
    found = shutil.which("relion_refine")
    if found is None:
        if os.environ.get("CRYOFORUM_REQUIRE_RELION", "") not in ("", "0"):
            pytest.fail("RELION is not on PATH although CRYOFORUM_REQUIRE_RELION is set")
        pytest.skip("RELION is not on PATH")
    return Relion(Path(found).parent)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of large reference data (CRYOFORUM_SHARED_DATA); skip without it."""
    folder = Path(os.environ.get("CRYOFORUM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("reference data absent (set CRYOFORUM_SHARED_DATA)")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    """Return a seeded CPU generator."""
    return torch.Generator().manual_seed(7)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the test inside an empty project folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make_particles() -> Callable[..., ParticleSet]:
    """Return a builder of particle sets without images: evenly spread poses, alternating half sets."""
    return build_particles


def build_particles(n: int, prediction: Prediction | None = None, **changes: Any) -> ParticleSet:
    """Build n particles of one stack; `changes` replaces fields."""
    rows = np.arange(n)
    values: dict[str, Any] = {
        "source": Path("particles.star"),
        "stacks": (Path("stack.mrcs"),),
        "stack_index": np.zeros(n, dtype=np.int64),
        "slice_index": rows,
        "pixel_size_A": np.full(n, 3.0),
        "rotation": super_fibonacci_quaternions(n).numpy(),
        "shift_A": np.zeros((n, 2)),
        "ctf": None,
        "contrast_sign": np.ones(n),
        "optics_group": np.ones(n, dtype=np.int64),
        "half_set": 1 + rows % 2,
        "micrograph": np.full(n, -1),
        "origin": rows,
        "uid": rows.astype(np.uint64),
        "prediction": prediction,
        "host": rows,
    }
    return ParticleSet(**(values | changes))


@pytest.fixture
def write_star(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of RELION 3.1 files in `tmp_path` with the given columns."""

    def write(name: str, columns: dict[str, Sequence[Any]]) -> Path:
        optics = {
            "rlnOpticsGroupName": "opticsGroup1",
            "rlnOpticsGroup": 1,
            "rlnVoltage": 300.0,
            "rlnSphericalAberration": 2.7,
            "rlnAmplitudeContrast": 0.1,
            "rlnImagePixelSize": 3.0,
            "rlnImageSize": 32,
            "rlnImageDimensionality": 2,
        }
        blocks = (("optics", {key: [value] for key, value in optics.items()}), ("particles", columns))
        text = "\n# version 30001\n"
        for block, table in blocks:
            text += f"\ndata_{block}\n\nloop_\n"
            text += "".join(f"_{label} #{i}\n" for i, label in enumerate(table, start=1))
            text += "".join(" ".join(map(str, row)) + "\n" for row in zip(*table.values(), strict=True))
        path = tmp_path / name
        path.write_text(text + "\n")
        return path

    return write


@pytest.fixture
def predicted_columns() -> dict[str, list[Any]]:
    """Return the columns of 20 predicted particles, the most certain first."""
    n = 20
    return {
        "rlnImageName": [f"{i + 1:06d}@Extract/stack.mrcs" for i in range(n)],
        "rlnAngleRot": [f"{17 * i % 360 - 180}.250000" for i in range(n)],
        "rlnAngleTilt": [f"{9 * i}.50" for i in range(n)],
        "rlnAnglePsi": [f"{(31 * i) % 360 - 180}" for i in range(n)],
        "rlnOriginXAngst": ["1.50"] * n,
        "rlnOriginYAngst": ["-2.00"] * n,
        "rlnOpticsGroup": [1] * n,
        "rlnRandomSubset": [1 + i % 2 for i in range(n)],
        "rlnParticleFigureOfMerit": [f"{1 - i / 20:.4f}" for i in range(n)],
        "rlnAccuracyRotations": [f"{1 + i}.00" for i in range(n)],
        "cryoforumLambdaMax": [f"{-500 + i}.0" for i in range(n)],
        "cryoforumTrace": [f"{-1500 + i}.0" for i in range(n)],
    }

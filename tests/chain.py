"""A small simulated data set and a model trained on it for seconds, shared by the tests of the chain."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import mrcfile
import pytest
from blobs import blob_positions, blob_volume
from click.testing import CliRunner, Result

from cryoforum_plugin.cli.main import main
from cryoforum_plugin.network.encoder import Encoder

TINY = (
    "--epochs",
    "3",
    "--set",
    "training.learning_rate=1e-2",
    "--set",
    "network.channels=8",
    "--set",
    "network.features=16",
    "--set",
    "network.hidden=32",
)


def cryoforum(*arguments: object) -> Result:
    """Run a `cryoforum` command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    """Run a `cryoforum` command that must succeed."""
    result = cryoforum("--debug", *arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result


@contextmanager
def quick_networks() -> Iterator[None]:
    """Polar images as fine as 32 px need, calibration for 1 and 2 views, nothing to refine against: half the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "RADII", 16)
        patch.setattr(Encoder, "ANGLES", 64)
        patch.setattr("cryoforum_plugin.training.calibrate.VIEW_COUNTS", (1, 2))
        patch.setattr("cryoforum_plugin.training.train.refinement_references", lambda *arguments: {})
        yield


def load_example(name: str) -> ModuleType:
    """Import a script of docs/examples."""
    path = Path(__file__).resolve().parents[1] / "docs" / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_blob_map(path: Path, size: int = 32) -> Path:
    """Write a map of asymmetric blobs, 5 A/px."""
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(blob_volume(blob_positions(12, 0.28 * size), size).numpy())
        file.voxel_size = 5.0
    return path


def simulate(folder: Path, count: int = 400, *options: object) -> Path:
    """Simulate `count` particles at SNR 1 into folder/sim with train.star and test.star; return that folder."""
    write_blob_map(folder / "map.mrc")
    succeed(
        "simulate", folder / "map.mrc", "-o", folder / "sim", "--count", count, "--snr", 1, "--quiet", "--split", 0.75, 0.25, *options
    )  # fmt: skip
    return folder / "sim"

"""Runs of the cryoSPARC job on simulated images: particles in the local server, a model trained in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from blobs import blob_positions, blob_volume
from chain import TINY

from cryoforum_plugin import formats
from cryoforum_plugin.launch import Devices
from cryoforum_plugin.launch.devices import make_fabric
from cryoforum_plugin.learning import loop
from cryoforum_plugin.settings import Settings, assemble, parse_assignments
from cryoforum_plugin.simulation.draw import SimulationSettings, draw_particles
from cryoforum_plugin.simulation.simulate import Simulator
from cryoforum_plugin.simulation.write import write_simulation
from cryoforum_plugin.training.train import train
from cryosparc_job.job.request import Source

COUNT = 200


def tiny_settings() -> Settings:
    """Return settings of a training of seconds."""
    return assemble(
        "default", options={"training.epochs": 1}, assignments=parse_assignments(v for v in TINY if "=" in v)
    )


@contextmanager
def quick_training() -> Iterator[None]:
    """Train with one thread, as several only wait for each other, and show each particle once an epoch, not ten times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with patch.object(loop, "epoch_images", lambda particles, settings: particles):
        yield
    torch.set_num_threads(before)


def train_tiny_model(folder: Path) -> Path:
    """Return the folder of a model that was trained on simulated particles in `folder`."""
    table = simulate_particles(folder)
    particles, fabric = formats.read_particles(table, folder), make_fabric(Devices("cpu"), "32-true")
    train(particles, [table], folder / "model", tiny_settings(), fabric, "32-true", quiet=True)
    return folder / "model"


def simulate_particles(folder: Path) -> Path:
    """Write images of a few blobs with known poses to `folder`/J9; return the table, paths from `folder`."""
    settings = SimulationSettings(count=COUNT, snr=1.0)
    simulator = Simulator(blob_volume(blob_positions()), 5.0, settings)
    write_simulation(simulator, draw_particles(settings, 5.0, 32), folder / "J9")
    particles = formats.read_particles(folder / "J9" / "particles.star")
    formats.write_particles(particles, folder / "J9" / "particles.cs", data_root=folder)
    return folder / "J9" / "particles.cs"


def add_job(
    server: Any,
    *without: str,
    kind: str = "nonuniform_refine_new",
    volumes: bool = False,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Source:
    """Add a finished job of simulated particles, less the slots `without`, perhaps with a map and a mask.

    change : alters the columns first.
    """
    from cryosparc.dataset import Dataset
    from fake_cryosparc.synthetic import synthetic_volume

    folder = Path(server.state.projects["P1"]["project_dir"])
    path = folder / "J9" / "particles.cs"
    table = np.load(path if path.exists() else simulate_particles(folder))
    columns: dict[str, Any] = {
        name: table[name] for name in table.dtype.names if name.partition("/")[0] not in without
    }
    if "alignments3D" not in without:  # what a refinement's table holds besides, and must come back
        columns["alignments3D/error"] = np.arange(len(table), dtype="f4")
    if change is not None:
        change(columns)
    data = {"particles": Dataset(columns)}
    if volumes:
        data["volume"] = synthetic_volume(folder, name="J9/map.mrc")
        data["mask"] = synthetic_volume(folder, name="J9/mask.mrc", slot="mask")
    job = server.state.add_finished_job("P1", "W1", kind, data)
    return Source("P1", "W1", job["uid"], url=server.url)

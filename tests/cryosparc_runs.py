"""Runs of the cryoSPARC job on simulated images: particles in the local server, a model trained in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from blobs import blob_positions, blob_volume
from chain import TINY

from cryoforum_plugin import formats
from cryoforum_plugin.settings import Settings, assemble, parse_assignments
from cryoforum_plugin.simulation.draw import SimulationSettings, draw_particles
from cryoforum_plugin.simulation.simulate import Simulator
from cryoforum_plugin.simulation.write import write_simulation
from cryosparc_job.job.request import Source

COUNT = 200


def tiny_settings() -> Settings:
    """Return settings of a training of seconds."""
    return assemble(
        "default", options={"training.epochs": 2}, assignments=parse_assignments(v for v in TINY if "=" in v)
    )


def simulate_particles(folder: Path) -> Path:
    """Write images of a few blobs with known poses to `folder`/J9; return the table, paths from `folder`."""
    settings = SimulationSettings(count=COUNT, snr=1.0)
    simulator = Simulator(blob_volume(blob_positions()), 5.0, settings)
    write_simulation(simulator, draw_particles(settings, 5.0, 32), folder / "J9")
    particles = formats.read_particles(folder / "J9" / "particles.star")
    formats.write_particles(particles, folder / "J9" / "particles.cs", data_root=folder)
    return folder / "J9" / "particles.cs"


def add_job(server: Any, *without: str, kind: str = "nonuniform_refine_new", volumes: bool = False) -> Source:
    """Add a finished job of simulated particles, less the slots `without`, perhaps with a map and a mask."""
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
    data = {"particles": Dataset(columns)}
    if volumes:
        data["volume"] = synthetic_volume(folder, name="J9/map.mrc")
        data["mask"] = synthetic_volume(folder, name="J9/mask.mrc", slot="mask")
    job = server.state.add_finished_job("P1", "W1", kind, data)
    return Source("P1", "W1", job["uid"], url=server.url)

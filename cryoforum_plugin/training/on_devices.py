"""`train` on one device, or in a process for each of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryoforum_plugin.launch import Devices, Place
from cryoforum_plugin.launch.devices import check_devices, make_fabric
from cryoforum_plugin.launch.run import run_in_processes
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.settings import Settings
from cryoforum_plugin.training.train import train

AGAIN = "run train again with --resume"


def train_on(
    devices: Devices,
    particles: ParticleSet,
    inputs: Sequence[Path],
    directory: Path,
    settings: Settings,
    precision: Precision,
    *,
    again: str = AGAIN,
    **options: Any,
) -> dict[str, Any] | None:
    """Train as `train` does, on one device or on all of `devices`; None on other machines than the first.

    again : what to do when a process is lost. options : as `train` takes them. Raises what `train` raises, SettingsError
    where a device is not there, ProcessError where a process was lost.
    """
    check_devices(devices)
    arguments: dict[str, Any] = {
        "devices": devices,
        "particles": replace(particles, host=None),
        "inputs": list(inputs),
        "directory": directory,
        "settings": settings,
        "precision": precision,
    }
    calibration: dict[str, Any] | None = run_in_processes(
        f"{__name__}:train_here", arguments | options, devices, again
    )
    return calibration


def train_here(place: Place, *, devices: Devices, precision: Precision, **arguments: Any) -> dict[str, Any]:
    """Train in the process at `place`, with the others."""
    fabric = make_fabric(devices, precision, place)
    return train(fabric=fabric, precision=precision, **arguments)

"""Prediction on one device, or shared by a process on each of several."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryoforum_plugin.confidence.likeness import Unlikeness
from cryoforum_plugin.launch import Devices, Place
from cryoforum_plugin.launch.devices import check_devices, make_fabric
from cryoforum_plugin.launch.run import run_in_processes
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model, load_model
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.prediction.journal import Journal, opened
from cryoforum_plugin.prediction.run import (
    PredictOptions,
    collect,
    journal_identity,
    predict_chunks,
    predict_particles,
    with_refinement_decided,
)

AGAIN = "start it again as it was: it goes on where it stopped"


def predict_on(
    devices: Devices,
    model: Model,
    particles: ParticleSet,
    precision: Precision,
    options: PredictOptions,
    *,
    journal: Path,
    identity: Mapping[str, Any],
    again: str = AGAIN,
) -> tuple[Prediction, Unlikeness] | None:
    """Predict as `predict_particles` does, on one device or on all of `devices`; None on other machines than the first.

    model : as it was read from its folder. journal : a folder that all machines see. again : what to do when a process
    is lost. Raises what `predict_particles` raises, SettingsError where a device is not there, ProcessError where a
    process was lost.
    """
    device = check_devices(devices)
    if devices.world == 1:
        return predict_particles(
            model, particles, device, precision, options, journal=journal, identity=identity
        )
    options = with_refinement_decided(model, particles, options)
    known = journal_identity(particles, precision, identity)
    arguments = {
        "devices": devices,
        "model_dir": model.directory,
        "particles": replace(particles, host=None),
        "precision": precision,
        "options": options,
        "journal": journal,
        "identity": known,
    }
    done = Journal(journal, known)
    try:
        first = run_in_processes(f"{__name__}:predict_here", arguments, devices, again)
    finally:
        done.drop_if_empty()
    return collect(model, particles, precision, options, done, identity) if first else None


def predict_here(
    place: Place,
    *,
    devices: Devices,
    model_dir: Path,
    particles: ParticleSet,
    precision: Precision,
    options: PredictOptions,
    journal: Path,
    identity: dict[str, Any],
) -> bool:
    """Predict this process's share of the chunks into the journal; return when all have done theirs."""
    fabric = make_fabric(devices, precision, place)
    done, share = Journal(journal, identity), (place.rank, place.world)
    with opened(done) if place.rank == 0 else nullcontext():
        fabric.barrier()
        model = load_model(model_dir, fabric.device)
        predict_chunks(model, particles, fabric.device, precision, options, done, share)
        fabric.barrier()
    return True

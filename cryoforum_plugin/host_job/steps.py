"""Training and prediction as steps of a job that may be run again: what is finished is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cryoforum_plugin.checksum import checksum
from cryoforum_plugin.errors import HostError, ImageStackError, ParticleFileError, SettingsError
from cryoforum_plugin.formats import write_particles
from cryoforum_plugin.host_job.record import JobRecord, same
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.launch import Devices
from cryoforum_plugin.launch.devices import check_devices
from cryoforum_plugin.network.device import choose_device, choose_precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.particles.description import describe
from cryoforum_plugin.prediction.journal import journal_of, remove_journal
from cryoforum_plugin.prediction.members import ready
from cryoforum_plugin.prediction.on_devices import predict_on
from cryoforum_plugin.prediction.run import PredictOptions
from cryoforum_plugin.progress import progress
from cryoforum_plugin.reconstruction.reconstruct import Reconstruction, ReconstructionSettings, reconstruct
from cryoforum_plugin.settings import Settings, flatten
from cryoforum_plugin.training.on_devices import train_on

LOG = logging.getLogger("cryoforum")
AGAIN = "run the job again, which goes on where it stopped"
ONCE = "a job starts its processes on other machines by itself; start it once, in a SLURM job of --num-nodes machines"
USELESS_DEG = 20.0  # beyond the reach of any local search


def _told(data: dict[str, Any]) -> dict[str, Any]:
    """Log what `describe` found; return it."""
    LOG.info("%s", ", ".join(f"{name} {value}" for name, value in data.items()))
    return data


def train_model(
    record: JobRecord,
    directory: Path,
    table: Path,
    read: Callable[[], ParticleSet],
    settings: Settings,
    devices: Devices,
    *,
    precision: str = "auto",
    name: str = "",
    start_anew: str = "start a new job",
    init_from: Path | None = None,
    overwrite: bool = False,
    cache_dir: Path | None = None,
) -> None:
    """Train on the particles that `read` gives of `table`, go on with that, or keep it when it is finished.

    name : of the particles in the record; default `table`. start_anew : advice when an unfinished training
    was begun with other settings. Raises HostError for that, and what `train` raises.
    """
    identity: dict[str, Any] = {
        "particles": checksum(table),
        "settings": flatten(settings),
        "init_from": None if init_from is None else checksum(init_from / "model.pt"),
    }
    model = directory / "model.pt"
    if not overwrite:
        made = {"model": checksum(model)} if model.exists() else {}
        if record.finished("train", identity | made, model):
            LOG.info("training: finished in an earlier run, kept")
            return
        _refuse_changes(record, directory, identity, start_anew)
    device = check_devices(devices)
    arithmetic = choose_precision(precision, device)
    particles = read()
    data = _told(describe(name or str(table), particles))
    record.note("train", {**data, "identity": identity})
    LOG.info("training on %s%s", f"{devices.world} x " if devices.world > 1 else "", device)
    resume = (directory / "checkpoint").is_dir() and not overwrite
    calibration = train_on(
        devices, particles, [table], directory, settings, arithmetic, again=AGAIN,
        init_from=init_from, resume=resume, overwrite=overwrite, cache_dir=cache_dir,
    )  # fmt: skip
    if calibration is None:
        raise HostError(ONCE)
    errors = {
        f"validation median, {views} views (deg)": round(values["validation_median_deg"], 3)
        for views, values in calibration["views"].items()
    }
    if "refined" in calibration:
        errors["validation median, refined (deg)"] = round(calibration["refined"]["validation_median_deg"], 3)
    best_deg = min(errors.values())
    if best_deg > USELESS_DEG:
        LOG.warning("the model is %.0f deg off (median of the validation particles): train longer, or on more "
                    "particles, before anything is chosen by it", best_deg)  # fmt: skip
    identity["model"] = checksum(model)
    record.note("train", {**data, **errors, "finished": True, "identity": identity})


def _refuse_changes(record: JobRecord, directory: Path, identity: dict[str, Any], start_anew: str) -> None:
    """Refuse to go on with a training that was begun otherwise."""
    before = {**record.values.get("train", {}).get("identity", identity)}
    before.pop("model", None)
    if same(before, identity) or not (directory / "checkpoint").exists():
        return
    old, new = before["settings"], identity["settings"]
    changed = [f"{key} {value} -> {new.get(key)}" for key, value in old.items() if new.get(key) != value]
    what = "particles" if before["particles"] != identity["particles"] else "weights to start from"
    what = f"settings ({', '.join(changed)})" if changed else what
    raise HostError(
        f"the training was begun with other {what}; set them back to continue it, or {start_anew}"
    )


def predict_table(
    record: JobRecord,
    model: Model,
    identity: dict[str, Any],
    particles: ParticleSet,
    output: Path,
    options: PredictOptions,
    devices: Devices,
    name: str,
    precision: str = "auto",
) -> None:
    """Predict `particles` into the table `output`, unless an earlier run has done so.

    identity : from `prediction_identity`. name : of the particles in the record.
    """
    if record.finished("predict", identity, output):
        LOG.info("predicting: finished in an earlier run, kept")
        return
    particles = ready(model, particles)
    data = _told(describe(name, particles)) | {"model": str(model.directory)}
    record.note("predict", {**data, "identity": identity})  # from here on what `output` holds is not known
    device = check_devices(devices)
    LOG.info("predicting on %s%s", f"{devices.world} x " if devices.world > 1 else "", device)
    arithmetic = choose_precision(precision, device)
    journal = journal_of(output)
    found = predict_on(
        devices, model, particles, arithmetic, options, journal=journal, identity=identity, again=AGAIN
    )
    if found is None:
        raise HostError(ONCE)
    prediction, unlike = found
    write_particles(particles, output, prediction, overwrite=True)
    remove_journal(journal)
    LOG.info("predicting: %s", _summary(prediction))
    unusual = {"outliers": round(unlike["outliers"], 4), "unlike": len(unlike["alarms"])}
    record.note("predict", {**data, **unusual, "finished": True, "identity": identity})


def _summary(prediction: Prediction) -> str:
    """How good the prediction thinks it is; rows that could not be predicted hold nan."""
    expected_deg = prediction.expected_error_deg
    assert expected_deg is not None
    confident = 100 * float((np.nan_to_num(prediction.confidence) > 0.5).mean())
    unusable = int(np.isnan(prediction.confidence).sum())
    return (
        f"median expected error {float(np.nanmedian(expected_deg)):.2f} deg, {confident:.0f} % with confidence above "
        f"0.5, {unusable} images unusable"
    )


def reconstruct_sets(
    sets: dict[str, ParticleSet],
    settings: ReconstructionSettings,
    device_name: str,
    required: str = "",
    mask: Any = None,
) -> dict[str, Reconstruction]:
    """Half maps and FSC of every set that can be reconstructed, by its name.

    required : the set whose failure is an error; others are left out with a warning.
    """
    results, device = {}, choose_device(device_name)
    for name, particles in sets.items():
        with progress(f"reconstructing {name}", len(particles)) as advance:
            try:
                result = reconstruct(
                    particles, StackReader(particles.stacks), settings, device, lambda n: advance(n, ""), mask
                )  # fmt: skip
            except (ParticleFileError, ImageStackError, SettingsError) as error:
                if name == required:
                    raise
                LOG.warning("%s particles are not reconstructed: %s", name, error)
                continue
        LOG.info("reconstructing: %s: %.2f A at FSC 0.143, %.2f A in the worst direction",
                 name, result.resolution_0143_A, result.cones.worst_A)  # fmt: skip
        for text in result.notes:
            LOG.warning("%s", text)
        results[name] = result
    return results

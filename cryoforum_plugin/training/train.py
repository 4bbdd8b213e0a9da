"""`train`: particles in, model directory out."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from cryoforum_plugin import __version__
from cryoforum_plugin.atomic import atomic_file, check_output
from cryoforum_plugin.errors import ModelError
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model, build_network, save_model
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.progress import progress
from cryoforum_plugin.report import write_report
from cryoforum_plugin.settings import Settings, flatten
from cryoforum_plugin.training.batches import BatchMaker
from cryoforum_plugin.training.calibrate import calibrate
from cryoforum_plugin.training.loop import Trainer, ValidationData, default_epochs
from cryoforum_plugin.training.preparation import Prepared, prepare

LOG = logging.getLogger("cryoforum")


@contextmanager
def _held_log() -> Iterator[MemoryHandler]:
    """Collect log messages until `_open_log` gives them a file."""
    handler = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    LOG.addHandler(handler)
    level = LOG.level
    LOG.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        target = handler.target
        handler.close()
        if target is not None:
            target.close()


def _open_log(handler: MemoryHandler, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(directory / "log.txt")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setTarget(file)
    handler.flush()
    handler.flushLevel = logging.INFO


def _fingerprint(inputs: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each input table, by file name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs}


def _prepare_directory(directory: Path, identity: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Empty or create the model directory, or check that what lies there can be resumed."""
    identity_file = directory / "checkpoint" / "identity.json"
    if resume and identity_file.exists():
        if json.loads(identity_file.read_text()) != identity:
            raise ModelError(
                f"{directory} was started with other particles or settings; resume with the same command, "
                "or train again with --overwrite"
            )
        return
    if overwrite and directory.exists():
        shutil.rmtree(directory)
    with atomic_file(identity_file, overwrite=True) as temporary:
        temporary.write_text(json.dumps(identity, indent=2))


def train(
    particles: ParticleSet,
    inputs: Sequence[Path],
    directory: Path,
    settings: Settings,
    fabric: Fabric,
    precision: Precision,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train on refined particles and write a model directory.

    inputs : the tables `particles` came from. Returns the validation figures of calibration.json.
    Raises a CryoForumError, before anything is written, for input that cannot be trained on.
    """
    finished = directory / "model.pt"
    if resume and finished.exists():
        LOG.warning("%s is finished already; nothing to resume", directory)
        result: dict[str, Any] = json.loads((directory / "calibration.json").read_text())
        return result
    if fabric.is_global_zero:
        check_output(directory, overwrite or resume)
    quiet = quiet or not fabric.is_global_zero
    identity = {"settings": flatten(settings), "inputs": _fingerprint(inputs)}
    torch.manual_seed(settings.training.seed)
    with _held_log() as handler, tempfile.TemporaryDirectory(prefix="cryoforum-") as cache:
        prepared = prepare(particles, settings, Path(cache), fabric.device, quiet)
        if fabric.is_global_zero:
            _prepare_directory(directory, identity, resume, overwrite)
            _open_log(handler, directory)
        fabric.barrier()
        model = _fit(prepared, settings, directory, fabric, resume, quiet)
        if not fabric.is_global_zero:
            return {}
        model = calibrate(model, prepared, precision, quiet)
        _write_reference(prepared, directory)
        save_model(directory, model, _provenance(prepared, identity))
        LOG.info("finished: %s", json.dumps(model.calibration["views"]))
    write_report(directory, directory / "report.html")
    shutil.rmtree(directory / "checkpoint")
    return model.calibration


def _fit(
    prepared: Prepared, settings: Settings, directory: Path, fabric: Fabric, resume: bool, quiet: bool
) -> Model:
    network = build_network(settings, prepared.pipeline.box.size_px)
    rotation = torch.from_numpy(prepared.particles.require_rotation()[prepared.validation_rows]).float()
    group = torch.from_numpy(symmetry_group(settings.symmetry)).float()
    epochs = settings.training.epochs or default_epochs(
        len(prepared.training_rows), settings.training.samples
    )
    trainer = Trainer(
        fabric,
        network,
        BatchMaker(prepared.training, settings.training, torch.Generator()),
        ValidationData(prepared.validation_images, rotation.to(fabric.device)),
        group.to(fabric.device),
        settings.training,
        epochs,
        directory / "checkpoint",
    )
    if resume and trainer.resume():
        LOG.info("resumed after epoch %d", trainer.progress.epoch)
    with progress("training", epochs * trainer.steps_per_epoch, quiet) as advance:
        advance(trainer.progress.epoch * trainer.steps_per_epoch, "")
        weights = trainer.run(advance)
    network.load_state_dict(weights)
    return Model(network.to(fabric.device).eval(), settings, prepared.pipeline.box, {}, {})


def _write_reference(prepared: Prepared, directory: Path) -> None:
    """Write the reference map and the FSC between its halves beside the model."""
    import mrcfile

    reference = prepared.reference
    with (
        atomic_file(directory / "reference.mrc", overwrite=True) as temporary,
        mrcfile.new(temporary, overwrite=True) as file,
    ):
        file.set_data(reference.volume.cpu().numpy())
        file.voxel_size = reference.pixel_size_A


def _provenance(prepared: Prepared, identity: dict[str, Any]) -> dict[str, Any]:
    return {
        "versions": {
            "cryoforum": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "inputs": identity["inputs"],
        "particles": {"training": len(prepared.training_rows), "validation": len(prepared.validation_rows)},
        "pixel_size_A": float(prepared.particles.pixel_size_A.mean()),
        "reference_resolution_A": prepared.reference.resolution_A,
    }

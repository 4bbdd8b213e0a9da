"""`train`: particles in, model directory out."""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from cryoforum_plugin import __version__
from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.checksum import checksum
from cryoforum_plugin.errors import ModelError, SettingsError
from cryoforum_plugin.images.cache import remove_cache
from cryoforum_plugin.images.identity import image_keys
from cryoforum_plugin.learning.batches import BatchMaker
from cryoforum_plugin.learning.epochs import default_epochs, shared_batch_size
from cryoforum_plugin.learning.loop import Trainer
from cryoforum_plugin.learning.validation import ValidationData
from cryoforum_plugin.maps.given import ShownMap, calibration_source, simulated_from
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model, build_network, load_model, save_members, save_model
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.progress import progress
from cryoforum_plugin.reconstruction.write import write_map
from cryoforum_plugin.refinement.reference_file import write_references
from cryoforum_plugin.settings import Settings, flatten
from cryoforum_plugin.simulation.from_map import make_particles
from cryoforum_plugin.training.calibrate import calibrate
from cryoforum_plugin.training.folder import (
    CACHE,
    check_model_directory,
    check_resumed,
    start_run,
    undone_if_refused,
)
from cryoforum_plugin.training.joining import join_members, remove_members
from cryoforum_plugin.training.known_poses import KnownPoses
from cryoforum_plugin.training.log import held_log, open_log
from cryoforum_plugin.training.members import Member, plan_members
from cryoforum_plugin.training.preparation import Prepared, prepare
from cryoforum_plugin.training.references import refinement_references
from cryoforum_plugin.training.suspects import write_suspects

LOG = logging.getLogger("cryoforum")
CPU = torch.device("cpu")


def train(
    particles: ParticleSet,
    inputs: Sequence[Path],
    directory: Path,
    settings: Settings,
    fabric: Fabric,
    precision: Precision,
    *,
    init_from: Path | None = None,
    shown: ShownMap | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """Train on refined particles and write a model directory.

    inputs : the tables `particles` came from. init_from : model directory to start the weights from. shown : map
    that simulated images show instead of the rebuilt reference; a map alone needs no refined particles, and
    only the images and CTFs of `particles` are looked at. cache_dir : folder that keeps the preprocessed images for
    other trainings; None = in `directory`, until the model is finished. Returns the validation figures of calibration.json (empty in
    other processes than the first). Raises a CryoForumError, before anything is written, for input that
    cannot be trained on.
    """
    _check_freezing(settings, init_from)
    if shown is not None and settings.training.simulated == 0:
        raise SettingsError(f"training.simulated is 0: no image would show {shown.source}; raise it")
    identity = {
        "settings": flatten(settings),
        "inputs": [checksum(path) for path in inputs],
        "init_from": None if init_from is None else checksum(init_from / "model.pt"),
        "simulate_from": None if shown is None else shown.identity(),
        "batch_size": shared_batch_size(settings.training.batch_size, fabric.world_size),
        "precision": precision,
        "version": __version__,
    }
    if fabric.is_global_zero:
        check_model_directory(directory, resume, overwrite)
    fabric.barrier()  # before any process puts images there
    members, note = plan_members(particles, settings.training, map_alone=shown is not None and shown.alone)
    quiet = quiet or not fabric.is_global_zero
    run = _Run(fabric, precision, settings, identity, inputs, shown, note, quiet, cache_dir)
    if members[0].name == "":
        calibration = run.train(members[0], particles, directory, init_from, resume)
    else:
        calibration = _train_members(run, members, particles, directory, init_from, resume)
    if fabric.is_global_zero:
        remove_members(directory, [member.name for member in members])
    return calibration


@dataclass(frozen=True)
class _Run:
    """What all models of a training have in common. note : which models there are and why."""

    fabric: Fabric
    precision: Precision
    settings: Settings
    identity: dict[str, Any]
    inputs: Sequence[Path]
    shown: ShownMap | None
    note: str
    quiet: bool
    cache_dir: Path | None

    def train(
        self,
        member: Member,
        particles: ParticleSet,
        directory: Path,
        init_from: Path | None,
        resume: bool,
        begin: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Train the model of `member` into `directory`; return its calibration, {} in all but the first process.

        begin : called once the particles are checked, before anything is written.
        """
        fabric, settings, shown, particles = self.fabric, self.settings, self.shown, particles[member.rows]
        identity = self.identity | {"member": member.name}
        torch.manual_seed(settings.training.seed)
        if resume:
            check_resumed(directory, identity)
        cache = directory / CACHE
        with held_log() as handler, tempfile.TemporaryDirectory(prefix="cryoforum-") as made_in:
            LOG.info("%s", self.note)
            initial = None if init_from is None else _initial(init_from, settings)
            if shown is not None and shown.alone:
                made = make_particles(particles, shown, settings, Path(made_in), fabric.device, self.quiet)
                particles, settings, shown = made.particles, made.settings, made.shown
                used = Path(made_in)  # nobody else can use images of these
            else:
                used = cache if self.cache_dir is None else self.cache_dir
            with undone_if_refused(cache):
                prepared = prepare(particles, settings, used, fabric.device, self.quiet, shown)
            if fabric.is_global_zero:
                begin()
                start_run(directory, identity, resume)
                open_log(handler, directory / "checkpoint" / "log.txt")
            fabric.barrier()
            model = _fit(prepared, directory, fabric, initial, resume, self.quiet)
            if not fabric.is_global_zero:
                if not (directory / "checkpoint").is_dir():  # a machine that does not share the folder
                    remove_cache(cache)
                return {}
            seen = [_seen(prepared, shown), *([] if initial is None else [initial.seen])]
            model = replace(model, half_set=member.half_set, seen=torch.cat(seen).unique())
            references = refinement_references(prepared, shown, self.quiet)
            known = KnownPoses(prepared.pipeline, prepared.validation_rows, prepared.training_rows)
            model = calibrate(model, known, references, self.precision, self.quiet)
            calibrated_on = calibration_source(shown)
            model = replace(model, calibration={**model.calibration, "calibrated_on": calibrated_on})
            LOG.info("calibrated on %s", calibrated_on)
            with atomic_file(directory / "reference.mrc", overwrite=True) as temporary:
                write_map(temporary, prepared.reference.volume, prepared.reference.pixel_size_A)
            write_references(directory, references)
            _log_errors(model)
            write_suspects(directory, model, prepared, member.rows, self.precision, self.quiet)
            for name in ("metrics.csv", "log.txt"):
                with atomic_file(directory / name, overwrite=True) as temporary:
                    shutil.copyfile(directory / "checkpoint" / name, temporary)
            provenance = _provenance(prepared, identity, self.inputs, fabric.world_size)
            save_model(directory, model, provenance | simulated_from(shown, self.inputs))
            remove_cache(cache)
        return model.calibration


def _train_members(
    run: _Run,
    members: list[Member],
    particles: ParticleSet,
    directory: Path,
    init_from: Path | None,
    resume: bool,
) -> dict[str, Any]:
    """Train a model for each half set and fold into a folder each, then what stands for all of them."""
    starts = [None if init_from is None else _start_of(init_from, member) for member in members]
    identity = run.identity | {"members": [member.name for member in members]}
    calibrations: dict[str, dict[str, Any]] = {}
    for member, start in zip(members, starts, strict=True):
        folder = directory / member.name
        going_on = resume and (folder / "checkpoint").is_dir()
        begin = (lambda: None) if calibrations else (lambda: start_run(directory, identity, resume))
        calibrations[member.name] = run.train(member, particles, folder, start, going_on, begin)
    if not run.fabric.is_global_zero:
        return {}
    calibration = join_members(directory, calibrations)
    provenance = {"settings": flatten(run.settings)} | _origin(
        run.identity, run.inputs, run.fabric.world_size
    )
    save_members(
        directory, list(calibrations), calibration, provenance | simulated_from(run.shown, run.inputs)
    )
    return calibration


def _seen(prepared: Prepared, shown: ShownMap | None) -> torch.Tensor:
    """Keys of the particles that the model learned from; images made from a map alone are nobody's."""
    if shown is not None and shown.alone:
        return torch.zeros(0, dtype=torch.int64)
    return image_keys(prepared.particles, prepared.pipeline.reader)[prepared.training_rows]


def _log_errors(model: Model) -> None:
    found = {f"{views} views": figures for views, figures in model.calibration["views"].items()}
    if "refined" in model.calibration:
        found["refinement"] = model.calibration["refined"]
    for name, figures in found.items():
        LOG.info("validation error with %s: median %.2f deg, mean %.2f deg",
                 name, figures["validation_median_deg"], figures["validation_mean_deg"])  # fmt: skip


def _check_freezing(settings: Settings, init_from: Path | None) -> None:
    """Refuse to freeze random weights."""
    if settings.training.freeze != "none" and init_from is None:
        raise SettingsError(
            f"training.freeze {settings.training.freeze} needs trained weights; give --init-from MODEL_DIR"
        )


def _start_of(init_from: Path, member: Member) -> Path:
    """Folder of the weights to start a member from: those that know its half set only.

    Raises ModelError where there are only such of the other half set.
    """
    model = load_model(init_from, CPU)
    for known in model.members:
        assert known.directory is not None
        if known.directory.name == member.name or (member.half_set and known.half_set == member.half_set):
            return known.directory
    if model.half_set not in (0, member.half_set):
        raise ModelError(
            f"{init_from} learned from the other half set than {member.name}: the half maps would not be independent; "
            "start from a model of both, or of the same half sets"
        )
    return init_from


def _initial(init_from: Path, settings: Settings) -> Model:
    """Read the model to start from. Raises ModelError when its network is built otherwise."""
    model = load_model(init_from, CPU)
    other = model.settings.network
    for name, value in asdict(settings.network).items():
        if name != "dropout" and value != getattr(other, name):  # dropout has no weights
            raise ModelError(
                f"{init_from} has network.{name} {getattr(other, name)}, not {value}; a network can only start "
                "from one that is built the same: leave that setting out"
            )
    for name in ("ctf", "preprocessing", "margin"):
        before, now = getattr(model.settings.images, name), getattr(settings.images, name)
        if before != now:
            LOG.warning("%s was trained with images.%s %s, this run has %s", init_from, name, before, now)
    return model


def _fit(
    prepared: Prepared,
    directory: Path,
    fabric: Fabric,
    initial: Model | None,
    resume: bool,
    quiet: bool,
) -> Model:
    settings = prepared.settings
    network = build_network(settings, prepared.pipeline.box.size_px)
    if initial is not None:
        network.load_state_dict(initial.network.state_dict())
    rotation = torch.from_numpy(prepared.particles.require_rotation()[prepared.validation_rows]).float()
    epochs = settings.training.epochs or default_epochs(len(prepared.training_rows), settings.training)
    settings = replace(settings, training=replace(settings.training, epochs=epochs))
    trainer = Trainer(
        fabric,
        network,
        BatchMaker(prepared.training, settings.training, torch.Generator()),
        ValidationData(prepared.validation_images, rotation.to(fabric.device)),
        settings,
        epochs,
        directory / "checkpoint",
    )
    if resume and trainer.resume():
        LOG.info("resumed after epoch %d", trainer.epoch)
    with progress("training", (epochs - trainer.epoch) * trainer.steps_per_epoch, quiet) as advance:
        weights = trainer.run(advance)
    network.load_state_dict(weights)
    found: dict[str, Any] = {"wrong_labels": trainer.wrong_labels}
    return Model(network.to(fabric.device).eval(), settings, prepared.pipeline.box, found, {})


def _origin(identity: dict[str, Any], inputs: Sequence[Path], processes: int) -> dict[str, Any]:
    """What a training was made of and with."""
    return {
        "versions": {
            "cryoforum": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "inputs": [{"name": str(p), "sha256": s} for p, s in zip(inputs, identity["inputs"], strict=True)],
        "init_from": identity["init_from"],
        "processes": processes,
        "precision": identity["precision"],
    }


def _provenance(
    prepared: Prepared, identity: dict[str, Any], inputs: Sequence[Path], processes: int
) -> dict[str, Any]:
    return _origin(identity, inputs, processes) | {
        "particles": {"training": len(prepared.training_rows), "validation": len(prepared.validation_rows)},
        "pixel_size_A": float(prepared.particles.pixel_size_A.mean()),
        "reference_resolution_A": prepared.reference.resolution_A,
    }

"""What a job can be told: RELION's own arguments, and the parameters of the Params tab."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import rich_click as click

from cryoforum_plugin.settings import DEFAULT_VIEWS, PRESETS

JOBS = ("train", "predict", "select", "pipeline")
HOST = {  # RELION's own arguments: what to call them in a message
    "o": "the job folder",
    "in_parts": "'Input particles' on the Input tab",
    "in_3dref": "'Input 3D reference' on the Input tab",
    "in_mask": "'Input 3D mask' on the Input tab",
    "j": "'Number of threads' on the Running tab",
}
_PATH = click.Path(path_type=Path)
_TRAINING, _PREDICTING = ("train", "pipeline"), ("predict", "pipeline")
_LEARNED = ("train", "predict", "pipeline")
_SELECTING = ("predict", "select", "pipeline")
_CRITERIA = ("min_confidence", "max_error", "keep", "max_outlier", "target")
_ONLY_FOR = {  # jobs that use a parameter, where not all do
    "train_particles": ("pipeline",), "model": ("predict",), "in_3dref": ("predict",), "in_mask": _SELECTING,
    "preset": _TRAINING, "epochs": _TRAINING, "seed": _TRAINING, "cache_dir": _TRAINING, "set": _TRAINING,
    "views": _PREDICTING, "contrast": ("train", "predict", "pipeline"), "min_confidence": _SELECTING, "max_error": _SELECTING,
    "devices": _LEARNED, "num_nodes": _LEARNED,
    "keep": _SELECTING, "max_outlier": _SELECTING, "target": _SELECTING, "auto": _SELECTING, "images": _SELECTING,
    "balance_views": _SELECTING, "reconstruct": _SELECTING, "refine": _PREDICTING,
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run of the External job, field by field as in HOST_ARGUMENTS and FREE_PARAMETERS.

    None stands for what was not given. others : RELION arguments that this program does not know.
    """

    job: str
    o: Path
    in_parts: Path
    in_3dref: Path | None = None
    in_mask: Path | None = None
    j: int = 1
    train_particles: Path | None = None
    model: Path | None = None
    symmetry: str | None = None
    preset: str = "default"
    epochs: int | None = None
    min_confidence: float | None = None
    max_error: float | None = None
    keep: float | None = None
    max_outlier: float | None = None
    target: str | None = None
    auto: bool = False
    images: bool = True
    balance_views: bool = False
    views: int = DEFAULT_VIEWS
    reconstruct: bool | None = None
    refine: bool | None = None
    contrast: str | None = None
    device: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    seed: int | None = None
    cache_dir: Path | None = None
    config: Path | None = None
    set: str = ""
    others: tuple[str, ...] = ()

    @property
    def reconstructs(self) -> bool:
        """Whether half maps are made: in a pipeline unless told otherwise."""
        return self.job == "pipeline" if self.reconstruct is None else self.reconstruct

    def unused(self) -> list[str]:
        """Names of the parameters that were given, but that this type of job does not use."""
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        unused = [name for name in given if self.job not in _ONLY_FOR.get(name, JOBS) and name != "others"]
        if self.in_mask is not None and not self.reconstructs and "in_mask" not in unused:
            unused.append("in_mask")
        chooses = any(getattr(self, name) is not None for name in _CRITERIA) or self.auto
        if self.job == "predict" and not chooses:  # a pipeline then takes auto, a select job refuses
            unused += [name for name in ("images", "balance_views") if name in given]
        return [*unused, *self.others]


def _option(name: str, kind: Any, text: str, default: bool = False) -> click.Option:
    """An option without a default of its own: `Job` has them."""
    more: dict[str, Any] = {"is_flag": False, "metavar": "yes|no"} if kind is bool else {}
    shown = {field.name: field.default for field in fields(Job)}[name] if default else None
    text += f"  [default: {shown}]" if default else ""
    return click.RichOption([f"--{name}"], type=kind, help=text, **more)


HOST_ARGUMENTS = (
    _option("o", _PATH, "Job folder, External/jobNNN/."),
    _option("in_parts", _PATH, "Particles to work on ('Input particles')."),
    _option(
        "in_3dref",
        _PATH,
        "reference.mrc of a train job: takes that job's model; with --model, a map to refine against "
        "('Input 3D reference').",
    ),
    _option("in_mask", _PATH, "Mask for the FSC of the half maps ('Input 3D mask')."),
    _option("j", click.IntRange(1), "Threads ('Number of threads').", default=True),
)
FREE_PARAMETERS = (
    _option("job", click.Choice(JOBS), "What to do."),
    _option("train_particles", _PATH, "pipeline: refined particles to learn from."),
    _option("model", _PATH, "predict: folder of a train job, or of any model."),
    _option("symmetry", str, "Point group  [default: C1, or the model's]."),
    _option("preset", click.Choice(list(PRESETS)), "Training preset.", default=True),
    _option("epochs", click.IntRange(1), "Training epochs  [default: by the number of particles]."),
    _option("min_confidence", click.FloatRange(0, 1), "Keep particles of at least this confidence."),
    _option("max_error", click.FloatRange(0, 180), "Keep particles of at most this expected error in degrees."),
    _option("keep", click.FloatRange(0, 1, min_open=True), "Keep this fraction, the most confident."),
    _option("max_outlier", click.FloatRange(0, 1), "Keep particles of at most this outlier score."),
    _option("target", str, "5%:10 keeps as many as there can be with at most 5 % expected to be more than 10 degrees off."),
    _option("auto", bool, "Keep the set with the clearest half maps  [default: in a pipeline without a criterion]."),
    _option("images", bool, "Whether auto may look at the images, or goes by the confidences alone  [default: yes]."),
    _option("balance_views", bool, "Add the best of rare views until as large a part of each view is kept."),
    _option("views", click.Choice(["1", "2", "4", "8"]), "In-plane views of each image.", default=True),
    _option("reconstruct", bool, "Half maps, and the FSC of all, selected and rejected particles  "
            "[default: in a pipeline]."),
    _option("refine", bool, "Refine predicted poses  [default: where the model has a reference]."),
    _option("contrast", click.Choice(["check", "invert", "ignore"]), "Protein bright (check) or dark (invert)."),
    _option("device", str, "auto, cpu, cuda or cuda:N.", default=True),
    _option("devices", click.IntRange(1), "Devices of each machine that share the work.", default=True),
    _option("num_nodes", click.IntRange(1), "Machines of the SLURM job that share the work.", default=True),
    _option("seed", click.IntRange(0, 2**31 - 1), "Seed of all random choices."),
    _option("cache_dir", _PATH, "Folder that keeps the preprocessed images for other trainings  [default: none is kept]."),
    _option("config", _PATH, "TOML or JSON file of settings; its table [job] holds parameters of this list."),
    _option("set", str, "Any other training settings, as section.key=value separated by spaces."),
)  # fmt: skip

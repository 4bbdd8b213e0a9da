"""What RELION passes on the command line, and what users add on the Params tab."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import rich_click as click

from cryoforum_plugin.errors import HostError
from cryoforum_plugin.settings import DEFAULT_VIEWS, PRESETS, read_config

JOBS = ("train", "predict", "select", "pipeline")
_PATH = click.Path(path_type=Path)

HOST = {  # RELION's own arguments: what to call them in a message
    "o": "the job folder",
    "in_parts": "'Input particles' on the Input tab",
    "in_3dref": "'Input 3D reference' on the Input tab",
    "in_mask": "'Input 3D mask' on the Input tab",
    "j": "'Number of threads' on the Running tab",
}
_IGNORED = ("in_movies", "in_mics", "in_coords")


@dataclass(frozen=True)
class Job:
    """One run of the External job; None stands for what was not given.

    folder : where everything is written. particles : the set to work on. reference : 3D map, or the reference
    of a model. The rest are the free parameters, as in `PARAMETERS`.
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
    auto: bool = False
    views: int = DEFAULT_VIEWS
    reconstruct: bool | None = None
    refine: bool = False
    contrast: str | None = None
    device: str = "auto"
    seed: int | None = None
    config: Path | None = None
    set: str = ""


def _option(name: str, kind: Any, text: str, **more: Any) -> click.Option:
    if kind is bool:
        more |= {"is_flag": False, "metavar": "yes|no"}
    return click.RichOption([f"--{name}"], type=kind, help=text, **more)


HOST_ARGUMENTS = (
    _option("o", _PATH, "Job folder, External/jobNNN/."),
    _option("in_parts", _PATH, "Particles to work on ('Input particles')."),
    _option(
        "in_3dref", _PATH, "reference.mrc of a train job: takes that job's model ('Input 3D reference')."
    ),
    _option("in_mask", _PATH, "Mask for the FSC of the half maps ('Input 3D mask')."),
    _option("j", click.IntRange(1), "Threads ('Number of threads').", default=1, show_default=True),
)
FREE_PARAMETERS = (
    _option("job", click.Choice(JOBS), "What to do."),
    _option("train_particles", _PATH, "pipeline: refined particles to learn from."),
    _option("model", _PATH, "predict: folder of a train job, or of any model."),
    _option("symmetry", str, "Point group  [default: C1, or the model's]."),
    _option("preset", click.Choice(list(PRESETS)), "Training preset.", default="default", show_default=True),
    _option("epochs", click.IntRange(1), "Training epochs  [default: by the number of particles]."),
    _option("min_confidence", click.FloatRange(0, 1), "Keep particles of at least this confidence."),
    _option("max_error", click.FloatRange(0, 180), "Keep particles of at most this expected error in degrees."),
    _option("keep", click.FloatRange(0, 1, min_open=True), "Keep this fraction, the most confident."),
    _option("auto", bool, "Choose the threshold automatically  [default: in a pipeline without a criterion].",
            default=False),
    _option("views", click.Choice(["1", "2", "4", "8"]), "In-plane views of each image.",
            default=str(DEFAULT_VIEWS), show_default=True),
    _option("reconstruct", bool, "Half maps, and the FSC of all, selected and rejected particles  "
            "[default: in a pipeline]."),
    _option("refine", bool, "Refine predicted poses; not in this version.", default=False),
    _option("contrast", click.Choice(["check", "invert", "ignore"]), "Protein bright (check) or dark (invert)."),
    _option("device", str, "auto, cpu, cuda or cuda:N.", default="auto", show_default=True),
    _option("seed", click.IntRange(0, 2**31 - 1), "Seed of all random choices."),
    _option("config", _PATH, "TOML or JSON file of settings; its table [job] holds parameters of this list."),
    _option("set", str, "Any other training settings, as section.key=value separated by spaces.", default=""),
)  # fmt: skip
_TRAINING, _PREDICTING = ("train", "pipeline"), ("predict", "pipeline")
_SELECTING = ("predict", "select", "pipeline")
_ONLY_FOR = {  # jobs that use a parameter, where not all do
    "train_particles": ("pipeline",), "model": ("predict",), "in_3dref": ("predict",), "in_mask": _SELECTING,
    "preset": _TRAINING, "epochs": _TRAINING, "seed": _TRAINING, "set": _TRAINING, "views": _PREDICTING,
    "contrast": ("train", "predict", "pipeline"), "min_confidence": _SELECTING, "max_error": _SELECTING,
    "keep": _SELECTING, "auto": _SELECTING, "reconstruct": _SELECTING,
}  # fmt: skip
_COMMAND = click.Command("cryoforum-relion", params=[*HOST_ARGUMENTS, *FREE_PARAMETERS])
_NAMES = {str(option.name) for option in _COMMAND.params}
_FLAGS = {str(option.name) for option in FREE_PARAMETERS if option.type is click.BOOL}


def job_folder(arguments: Sequence[str]) -> Path | None:
    """Value of --o, None where it is not given."""
    values = [value for name, value in _pairs(arguments) if name == "o"]
    return Path(values[-1]) if values and values[-1] else None


def parse_job(arguments: Sequence[str]) -> Job:
    """Check the command line that RELION built. Raises HostError with what to change in its GUI.

    RELION's shell splits values at blanks and drops empty ones: what stands between two labels is one value.
    """
    given = _known(_pairs(arguments))
    if "config" in given:
        table = read_config(Path(given["config"]))
        in_file = {k.removeprefix("job."): str(v) for k, v in table.items() if k.startswith("job.")}
        given = _known(list(in_file.items())) | given
    values = _checked(given)
    for name in ("job", "in_parts"):
        if values.get(name) is None:
            raise HostError(_MISSING[name])
    values["views"] = int(values["views"])
    job = Job(**{field.name: values[field.name] for field in fields(Job) if values[field.name] is not None})
    _check_demands(job)
    return job


def unused(job: Job) -> list[str]:
    """Names of the parameters that were given, but that this type of job does not use."""
    given = [field.name for field in fields(Job) if getattr(job, field.name) != field.default]
    return [name for name in given if job.job not in _ONLY_FOR.get(name, JOBS)]


_MISSING = {
    "job": f"no parameter 'job': on the Params tab give the label job and one of the values {', '.join(JOBS)}",
    "in_parts": f"no particles: choose a particle STAR file under {HOST['in_parts']}",
}


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Labels with everything that follows each, joined by blanks. Raises HostError for a value without label."""
    pairs: list[tuple[str, list[str]]] = []
    for token in arguments:
        if token.startswith("--"):
            label, equals, value = token.lstrip("-").partition("=")
            pairs.append((label.replace("-", "_"), [value] if equals else []))
        elif not pairs:
            raise HostError(f"value {token!r} stands before any label; give it a label on the Params tab")
        else:
            pairs[-1][1].append(token)
    return [(label, " ".join(values).strip()) for label, values in pairs]


def _known(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Values by name, without empty ones and RELION's other arguments. Raises HostError for unknown labels."""
    values: dict[str, str] = {}
    for label, value in pairs:
        name = label.lower()
        if name in _IGNORED and value:
            raise HostError(
                f"--{label} {value} is not used: cryoforum works on particles, {HOST['in_parts']}"
            )
        if name.startswith(("in_", "pipeline_control")) and name not in _NAMES:
            continue
        if name not in _NAMES:
            raise HostError(f"unknown parameter {label!r} on the Params tab{_closest(name)}")
        if name in values and name not in HOST:
            raise HostError(f"parameter {label!r} is given twice; remove one of them from the Params tab")
        if value or name in _FLAGS:
            values[name] = value or "yes"
    return values


def _closest(name: str) -> str:
    near = difflib.get_close_matches(name, [str(option.name) for option in FREE_PARAMETERS], 1)
    known = ", ".join(str(option.name) for option in FREE_PARAMETERS)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {known}"


def _checked(given: dict[str, str]) -> dict[str, Any]:
    """Values of all parameters, in their types. Raises HostError for one that does not fit."""
    try:
        return _COMMAND.make_context(_COMMAND.name, [f"--{k}={v}" for k, v in given.items()]).params
    except click.BadParameter as error:
        name = str(error.param.name) if error.param is not None else "?"
        where = HOST.get(name, f"parameter {name!r} on the Params tab")
        raise HostError(f"{where}: {error.message}") from error


def _check_demands(job: Job) -> None:
    """Refuse what the job type cannot do without."""
    if job.refine:
        raise HostError("parameter 'refine': this version does not refine predicted poses; remove it")
    if job.job == "train" and job.train_particles is not None:
        raise HostError(
            f"a train job learns from {HOST['in_parts']}: remove parameter 'train_particles', or choose job pipeline"
        )
    if job.job == "pipeline" and job.train_particles is None:
        raise HostError(
            "a pipeline job learns from one STAR file and predicts another: give the refined particles to learn "
            "from as parameter 'train_particles' on the Params tab"
        )
    if job.job == "predict" and job.model is None and job.in_3dref is None:
        raise HostError(
            "no model: give the folder of a train job as parameter 'model' on the Params tab, or its "
            f"model/reference.mrc under {HOST['in_3dref']}"
        )
    criteria = (job.min_confidence, job.max_error, job.keep)
    if job.job == "select" and not job.auto and all(value is None for value in criteria):
        raise HostError(
            "nothing to select by: give min_confidence, max_error, keep or auto as a parameter on the Params tab"
        )

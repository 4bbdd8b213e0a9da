"""From the command line that RELION built to a `Job`, or to one line that says what to change in its GUI.

RELION's shell splits values at blanks and drops empty ones, so what stands between two labels is one value.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import rich_click as click

from cryoforum_plugin.confidence.target import parse_target
from cryoforum_plugin.errors import CryoForumError, HostError
from cryoforum_plugin.settings import read_config
from relion_external.job.parameters import FREE_PARAMETERS, HOST, HOST_ARGUMENTS, JOBS, Job

_COMMAND = click.Command("cryoforum-relion", params=[*HOST_ARGUMENTS, *FREE_PARAMETERS])
_NAMES = {str(option.name) for option in _COMMAND.params}
_FREE = [str(option.name) for option in FREE_PARAMETERS]
_FLAGS = {str(option.name) for option in FREE_PARAMETERS if option.type is click.BOOL}
_OTHER_INPUTS = ("in_movies", "in_mics", "in_coords")
_MISSING = {
    "job": f"no parameter 'job': on the Params tab give the label job and one of the values {', '.join(JOBS)}",
    "in_parts": f"no particles: choose a particle STAR file under {HOST['in_parts']}",
}


def parameter(name: str) -> str:
    """What to call an argument or parameter in a message."""
    return HOST.get(name, f"parameter {name!r} on the Params tab")


def job_folder(arguments: Sequence[str]) -> Path | None:
    """Value of --o, None where it is not given; whatever else is wrong with the arguments."""
    values = [value for label, value in _pairs(arguments) if label == "o" and value]
    return Path(values[-1]) if values else None


def parse_job(arguments: Sequence[str]) -> Job:
    """Check the command line. Raises HostError with what to change in the GUI."""
    given, others = _known(_pairs(arguments))
    if "config" in given:
        try:
            in_file = read_config(Path(given["config"]))
        except CryoForumError as error:
            raise HostError(f"{parameter('config')}: {error}") from error
        table = {key.removeprefix("job."): str(v) for key, v in in_file.items() if key.startswith("job.")}
        table |= {"preset": str(in_file["preset"])} if "preset" in in_file else {}
        given = _known(list(table.items()))[0] | given
    values = _checked(given)
    for name in ("job", "in_parts"):
        if values.get(name) is None:
            raise HostError(_MISSING[name])
    known = {f.name: values[f.name] for f in fields(Job) if values.get(f.name) is not None}
    known |= {"views": int(known["views"])} if "views" in known else {}
    job = Job(**known, others=tuple(others))
    _check_demands(job)
    return job


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Labels with everything that follows each, joined by blanks; label "" for what stands before the first."""
    pairs: list[tuple[str, list[str]]] = []
    for token in arguments:
        if token.startswith("--"):
            label, equals, value = token.lstrip("-").partition("=")
            pairs.append((label.replace("-", "_"), [value] if equals else []))
        elif not pairs:
            pairs.append(("", [token]))
        else:
            pairs[-1][1].append(token)
    return [(label, " ".join(values).strip()) for label, values in pairs]


def _known(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Values by name, without empty ones, and RELION's arguments that mean nothing here.

    Raises HostError for unknown labels, and for inputs that are not particles.
    """
    values: dict[str, str] = {}
    others: list[str] = []
    for label, value in pairs:
        name = label.lower()
        if not label:
            raise HostError(
                f"{value!r} stands before any label: 'External executable' is the program alone, and every value on "
                "the Params tab needs a label"
            )
        if name in _OTHER_INPUTS and value:
            raise HostError(
                f"--{label} {value} is not used: cryoforum works on particles, {HOST['in_parts']}"
            )
        if name in _OTHER_INPUTS or name.startswith("pipeline_control"):
            continue
        if name.startswith("in_") and name not in _NAMES:  # of a newer RELION
            others.append(f"--{label}")
        elif name not in _NAMES:
            raise HostError(f"unknown parameter {label!r} on the Params tab{_closest(name)}")
        elif name in values and name not in HOST:
            raise HostError(f"parameter {label!r} is given twice; remove one of them from the Params tab")
        elif value or name in _FLAGS:
            values[name] = value or "yes"
    return values, others


def _closest(name: str) -> str:
    near = difflib.get_close_matches(name, _FREE, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(_FREE)}"


def _checked(given: dict[str, str]) -> dict[str, Any]:
    """Values of all parameters, in their types. Raises HostError for one that does not fit."""
    try:
        values = _COMMAND.make_context(_COMMAND.name, [f"--{k}={v}" for k, v in given.items()]).params
    except click.BadParameter as error:
        name = str(error.param.name) if error.param is not None else "?"
        raise HostError(f"{parameter(name)}: {error.message}") from error
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise HostError(f"{parameter(name)}: {value} is not a number")
    return values


def _check_demands(job: Job) -> None:
    """Refuse what the job type cannot do without."""
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
    if job.target is not None:
        try:
            parse_target(job.target)
        except CryoForumError as error:
            raise HostError(f"{parameter('target')}: {error}") from error
    criteria = (job.min_confidence, job.max_error, job.keep, job.max_outlier, job.target)
    if job.job == "select" and not job.auto and all(value is None for value in criteria):
        raise HostError(
            "nothing to select by: give min_confidence, max_error, keep, max_outlier, target or auto as a parameter on the Params "
            "tab"
        )

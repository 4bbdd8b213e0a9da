"""What a model directory or run folder holds that a report can show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryoforum_plugin.errors import CryoForumError, ModelError
from cryoforum_plugin.host_job.record import read_record
from cryoforum_plugin.particles import FloatArray, ParticleSet
from cryoforum_plugin.report.files import (
    Rows,
    Suspects,
    flatten,
    read_fsc,
    read_json,
    read_metrics,
    read_suspects,
)
from cryoforum_plugin.settings import DEFAULT_VIEWS

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """Everything found; what is absent is empty.

    job : what a host's job was asked to do and did (job.json). metrics : columns of metrics.csv `(epochs,)`,
    nan where a cell is empty. tables : predicted particles by file name. fsc : name -> (resolution_A, fsc),
    each `(shells,)`. model : folder of the model that predicted, None where it is not known. symmetry, diameter_A :
    point group and size of its particle. reliability : how errors and uncertainties agree where poses are known, by what was compared.
    evaluation : figures of evaluation.json. selection : content of selection.json.
    """

    directory: Path
    job: Rows
    settings: Rows
    metrics: dict[str, FloatArray]
    calibration: Rows
    tables: dict[str, ParticleSet]
    fsc: dict[str, tuple[FloatArray, FloatArray]]
    warnings: list[str]
    suspects: Suspects | None = None
    model: Path | None = None
    symmetry: str = "C1"
    diameter_A: float | None = None
    reliability: dict[str, Figures] = field(default_factory=dict)
    evaluation: Rows = field(default_factory=list)
    selection: dict[str, Any] = field(default_factory=dict)


def collect_run(
    directory: Path, tables: Mapping[str, ParticleSet] | None = None, data_root: Path | None = None
) -> Run:
    """Read what `directory` holds; the model may lie in it or in its `model` folder.

    tables : the predicted particles, by name, where they need not be read again. data_root : where their image paths
    start from.
    Raises ModelError when it is no folder or holds nothing that a report could show.
    """
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a folder; give a model directory or the folder of a run")
    model = directory if (directory / "config.json").exists() else directory / "model"
    job = read_json(directory / "job.json")
    unread: list[str] = []
    if tables is None:
        found, unread = _read_tables(directory, job.get("tables", {}), data_root)
    else:
        found = dict(tables)
    used = next(_model_folders(model, job, found), None)
    calibration = {} if used is None else read_json(used / "calibration.json")
    settings = {} if used is None else read_json(used / "config.json").get("settings", {})
    evaluation = read_json(directory / "evaluation.json")
    run = Run(
        directory=directory,
        job=_readable(job),
        settings=flatten(read_json(model / "config.json")),
        metrics=read_metrics(model / "metrics.csv"),
        calibration=_without(read_json(model / "calibration.json"), "reliability", "likeness"),
        tables=found,
        fsc={_fsc_name(path, directory): read_fsc(path) for path in sorted(directory.rglob("fsc.csv"))},
        warnings=[
            *unread,
            *_alarms(read_json(directory / "prediction.json")),
            *_read_warnings(job, dict.fromkeys([directory / "log.txt", model / "log.txt"])),
        ],
        suspects=read_suspects(model / "suspect_labels.csv"),
        model=used,
        symmetry=str(job.get("symmetry") or settings.get("symmetry") or "C1"),
        diameter_A=settings.get("images.diameter_A"),
        reliability=_reliability(calibration, evaluation),
        evaluation=_without(evaluation, "reliability"),
        selection=read_json(directory / "selection.json"),
    )
    if not (run.settings or run.metrics or run.tables or run.fsc):
        raise ModelError(
            f"{directory}: nothing to report: no config.json, metrics.csv, predicted .star or .cs, or fsc.csv"
            + "".join(f"; {text}" for text in unread)
        )
    return run


def _readable(job: dict[str, Any]) -> Rows:
    """Rows of job.json without what serves the program: file lists, checksums."""
    shown = {name: part for name, part in job.items() if name not in ("tables", "outputs")}
    internal = ("identity", "finished", "warnings")
    return [(name, value) for name, value in flatten(shown) if not set(name.split(".")) & set(internal)]


def _without(content: Figures, *names: str) -> Rows:
    """Rows of everything but parts that are drawn, or serve the program."""
    return flatten({key: value for key, value in content.items() if key not in names})


def _model_folders(model: Path, job: Figures, tables: Mapping[str, ParticleSet]) -> Iterator[Path]:
    """Folders of the model that predicted: that of the run, of the job, or of the job that made a table."""
    records = [job, *(read_record(table.source.parent) for table in tables.values())]
    steps = [record.get("predict") for record in records]
    named = [step.get("model") for step in steps if isinstance(step, dict)]
    for folder in (model, *(Path(name) for name in named if isinstance(name, str))):
        if (folder / "config.json").exists():
            yield folder


def _reliability(calibration: Figures, evaluation: Figures) -> dict[str, Figures]:
    """What is known of the validation particles, predicted as by default and refined, and of an evaluation."""
    held_out = calibration.get("reliability") or {}
    names = {
        "evaluation.json": evaluation.get("reliability"),
        "validation, refined": held_out.get("refined"),
        f"validation, {DEFAULT_VIEWS} views": held_out.get(str(DEFAULT_VIEWS)),
    }
    return {name: figures for name, figures in names.items() if isinstance(figures, dict)}


def _alarms(prediction: Figures) -> list[str]:
    """What `predict --json` found unlike the particles of the model's calibration."""
    unlike = prediction.get("unlikeness")
    found = unlike.get("alarms", []) if isinstance(unlike, dict) else []
    return [f"predicted particles are unlike those the model was calibrated on: {text}" for text in found]


def _fsc_name(path: Path, directory: Path) -> str:
    name = path.parent.relative_to(directory).as_posix().removeprefix("fsc/")
    return "half maps" if name == "." else name


def _read_tables(
    directory: Path, more: Mapping[str, str], data_root: Path | None
) -> tuple[dict[str, ParticleSet], list[str]]:
    """Tables with predictions in the folder itself, by file name, and `more` that a job worked on, by its part.

    Also returns what was wrong with tables that could not be read.
    """
    from cryoforum_plugin.formats import read_particles

    own = sorted([*directory.glob("*.star"), *directory.glob("*.cs")])
    paths = {path.name: path for path in own}
    known = {path.resolve() for path in own}
    paths |= {part: Path(path) for part, path in more.items() if Path(path).resolve() not in known}
    tables: dict[str, ParticleSet] = {}
    unread: list[str] = []
    for name, path in paths.items():
        try:
            particles = read_particles(path, data_root)
        except CryoForumError as error:
            if _predicted(path):
                unread.append(f"not shown: {error}")
            continue
        if particles.prediction is not None and len(particles):
            tables[name] = particles
    return tables, unread


def _predicted(path: Path) -> bool:
    """Whether a table seems to hold predictions; job.star and the like do not."""
    with open(path, "rb") as file:
        return b"cryoforum" in file.read(2**16) or path.suffix == ".cs"


def _read_warnings(job: dict[str, Any], logs: dict[Path, None]) -> list[str]:
    """Each warning once, without its time, in order: those of a job's steps, or those in the log files.

    A job's own log also holds the warnings of its earlier runs.
    """
    if job:
        steps = [step for step in job.values() if isinstance(step, dict)]
        return list(dict.fromkeys(text for step in steps for text in step.get("warnings", [])))
    lines = [line.strip() for path in logs if path.exists() for line in path.read_text().splitlines()]
    return list(dict.fromkeys(line.partition(" WARNING ")[2] for line in lines if " WARNING " in line))

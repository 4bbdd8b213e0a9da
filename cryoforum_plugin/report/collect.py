"""What a model directory or run folder holds that a report can show."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoforum_plugin.errors import CryoForumError, ModelError
from cryoforum_plugin.particles import FloatArray, ParticleSet

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Suspects:
    """Particles whose own pose is implausible (suspect_labels.csv): how many, and the first of them."""

    count: int
    first: Rows


@dataclass(frozen=True)
class Run:
    """Everything found; what is absent is empty.

    job : what a host's job was asked to do and did (job.json). metrics : columns of metrics.csv `(epochs,)`,
    nan where a cell is empty. tables : predicted particles by file name. fsc : name -> (resolution_A, fsc),
    each `(shells,)`.
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


def collect_run(directory: Path, tables: Mapping[str, ParticleSet] | None = None) -> Run:
    """Read what `directory` holds; the model may lie in it or in its `model` folder.

    tables : the predicted particles, by name, where they need not be read again.
    Raises ModelError when it is no folder or holds nothing that a report could show.
    """
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a folder; give a model directory or the folder of a run")
    model = directory if (directory / "config.json").exists() else directory / "model"
    job = _read_json(directory / "job.json")
    run = Run(
        directory=directory,
        job=_readable(job),
        settings=_read_json_rows(model / "config.json"),
        metrics=read_metrics(model / "metrics.csv"),
        calibration=_read_json_rows(model / "calibration.json"),
        tables=_read_tables(directory, job.get("tables", {})) if tables is None else dict(tables),
        fsc={_fsc_name(path, directory): read_fsc(path) for path in sorted(directory.rglob("fsc.csv"))},
        warnings=_read_warnings(job, dict.fromkeys([directory / "log.txt", model / "log.txt"])),
        suspects=read_suspects(model / "suspect_labels.csv"),
    )
    if not (run.settings or run.metrics or run.tables or run.fsc):
        raise ModelError(
            f"{directory}: nothing to report: no config.json, metrics.csv, predicted .star or .cs, or fsc.csv"
        )
    return run


def _readable(job: dict[str, Any]) -> Rows:
    """Rows of job.json without what serves the program: file lists, checksums."""
    shown = {name: part for name, part in job.items() if name not in ("tables", "outputs")}
    internal = ("identity", "finished", "warnings")
    return [(name, value) for name, value in flatten(shown) if not set(name.split(".")) & set(internal)]


def flatten(value: Any, prefix: str = "") -> Rows:
    """Turn nested dictionaries and lists into rows ("section.key", value); long lists are abridged."""
    if isinstance(value, dict):
        return [
            row for key, item in value.items() for row in flatten(item, f"{prefix}.{key}" if prefix else key)
        ]
    if isinstance(value, list):
        texts = [text for item in value[:8] for _, text in flatten(item)]
        return [(prefix, ", ".join(texts) + (f", ... ({len(value)} values)" if len(value) > 8 else ""))]
    return [(prefix, f"{value:.6g}" if isinstance(value, float) else str(value))]


def read_metrics(path: Path) -> dict[str, FloatArray]:
    """Columns of metrics.csv, nan where a cell is empty or no number; {} without the file or rows."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([_number(row[name]) for row in rows]) for name in rows[0]} if rows else {}


def read_suspects(path: Path, shown: int = 10) -> Suspects | None:
    """Count of a suspect_labels.csv and a line for each of its first; None without the file.

    Raises ModelError when it is another table.
    """
    if not path.exists():
        return None
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    try:
        first = [
            (
                row["image"],
                f"{float(row['angle_deg']):.1f} deg away, probability {float(row['probability']):.3f}",
            )
            for row in rows[:shown]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: no table of suspect labels ({error!r}); remove it, or train again"
        ) from error
    return Suspects(len(rows), first)


def read_fsc(path: Path) -> tuple[FloatArray, FloatArray]:
    """Columns resolution_A and fsc of an fsc.csv. Raises ModelError when it has none."""
    columns = read_metrics(path)
    if not {"resolution_A", "fsc"} <= set(columns):
        raise ModelError(f"{path}: no columns resolution_A and fsc")
    return columns["resolution_A"], columns["fsc"]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _read_json_rows(path: Path) -> Rows:
    return flatten(_read_json(path))


def _read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file, {} without it."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object")
    return content


def _fsc_name(path: Path, directory: Path) -> str:
    name = path.parent.relative_to(directory).as_posix().removeprefix("fsc/")
    return "all" if name == "." else name


def _read_tables(directory: Path, more: Mapping[str, str]) -> dict[str, ParticleSet]:
    """Tables with predictions in the folder itself, by file name, and `more` that a job worked on, by its part."""
    from cryoforum_plugin.formats import read_particles

    own = sorted([*directory.glob("*.star"), *directory.glob("*.cs")])
    paths = {path.name: path for path in own}
    known = {path.resolve() for path in own}
    paths |= {part: Path(path) for part, path in more.items() if Path(path).resolve() not in known}
    tables: dict[str, ParticleSet] = {}
    for name, path in paths.items():
        try:
            particles = read_particles(path)
        except CryoForumError:
            continue
        if particles.prediction is not None and len(particles):
            tables[name] = particles
    return tables


def _read_warnings(job: dict[str, Any], logs: dict[Path, None]) -> list[str]:
    """Each warning once, without its time, in order: those of a job's steps, or those in the log files.

    A job's own log also holds the warnings of its earlier runs.
    """
    if job:
        steps = [step for step in job.values() if isinstance(step, dict)]
        return list(dict.fromkeys(text for step in steps for text in step.get("warnings", [])))
    lines = [line.strip() for path in logs if path.exists() for line in path.read_text().splitlines()]
    return list(dict.fromkeys(line.partition(" WARNING ")[2] for line in lines if " WARNING " in line))

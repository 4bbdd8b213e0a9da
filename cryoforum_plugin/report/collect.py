"""What a model directory or run folder holds that a report can show."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoforum_plugin.errors import CryoForumError, ModelError
from cryoforum_plugin.particles import FloatArray, ParticleSet

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Run:
    """Everything found; what is absent is empty.

    metrics : columns of metrics.csv `(epochs,)`, nan where a cell is empty. tables : predicted particles by
    file name. fsc : name -> (resolution_A, fsc), each `(shells,)`.
    """

    directory: Path
    settings: Rows
    metrics: dict[str, FloatArray]
    calibration: Rows
    tables: dict[str, ParticleSet]
    fsc: dict[str, tuple[FloatArray, FloatArray]]
    warnings: list[str]


def collect_run(directory: Path) -> Run:
    """Read what `directory` holds; the model may lie in it or in its `model` folder.

    Raises ModelError when it is no folder or holds nothing that a report could show.
    """
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a folder; give a model directory or the folder of a run")
    model = directory if (directory / "config.json").exists() else directory / "model"
    run = Run(
        directory=directory,
        settings=_read_json_rows(model / "config.json"),
        metrics=read_metrics(model / "metrics.csv"),
        calibration=_read_json_rows(model / "calibration.json"),
        tables=_read_tables(directory),
        fsc={_fsc_name(path, directory): read_fsc(path) for path in sorted(directory.rglob("fsc.csv"))},
        warnings=_read_warnings(dict.fromkeys([directory / "log.txt", model / "log.txt"])),
    )
    if not (run.settings or run.metrics or run.tables or run.fsc):
        raise ModelError(
            f"{directory}: nothing to report: no config.json, metrics.csv, predicted .star or .cs, or fsc.csv"
        )
    return run


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


def _fsc_name(path: Path, directory: Path) -> str:
    name = path.parent.relative_to(directory).as_posix()
    return "all" if name == "." else name


def _read_json_rows(path: Path) -> Rows:
    if not path.exists():
        return []
    try:
        return flatten(json.loads(path.read_text()))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error


def _read_tables(directory: Path) -> dict[str, ParticleSet]:
    """Tables in the folder itself that hold predictions; other STAR and .cs files are passed over."""
    from cryoforum_plugin.formats import read_particles

    tables = {}
    for path in sorted([*directory.glob("*.star"), *directory.glob("*.cs")]):
        try:
            particles = read_particles(path)
        except CryoForumError:
            continue
        if particles.prediction is not None and len(particles):
            tables[path.name] = particles
    return tables


def _read_warnings(paths: dict[Path, None]) -> list[str]:
    lines = [line.strip() for path in paths if path.exists() for line in path.read_text().splitlines()]
    return [line for line in lines if "warning" in line.lower()]

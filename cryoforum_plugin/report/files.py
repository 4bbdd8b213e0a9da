"""Single files of a run, as a report shows them."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoforum_plugin.errors import ModelError
from cryoforum_plugin.particles import FloatArray

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Suspects:
    """Particles whose own pose is implausible (suspect_labels.csv): how many, and the first of them."""

    count: int
    first: Rows


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


def read_json(path: Path) -> dict[str, Any]:
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


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")

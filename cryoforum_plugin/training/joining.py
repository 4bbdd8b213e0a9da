"""What stands in a model folder for its models of half sets and folds together."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.refinement.reference_file import write_references
from cryoforum_plugin.training.suspects import join_suspects

_NAME = re.compile(r"half[12](_fold\d+)?|fold\d+")


def join_members(directory: Path, calibrations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Write what stands for the members together; return their calibrations joined.

    That is log.txt, metrics.csv (means), reference.mrc (the first's, to look at) and suspect_labels.csv.
    calibrations : by member. Numbers become means, counts sums; each member's own are kept as "members".
    """
    folders = [directory / name for name in calibrations]
    with atomic_file(directory / "log.txt", overwrite=True) as temporary:
        temporary.write_text("".join(f"{f.name}\n{(f / 'log.txt').read_text()}" for f in folders))
    _join_metrics(directory, folders)
    join_suspects(directory, folders)
    with atomic_file(directory / "reference.mrc", overwrite=True) as temporary:
        shutil.copyfile(folders[0] / "reference.mrc", temporary)
    return joined_calibration(calibrations)


def joined_calibration(calibrations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Calibration of members together, by their names; what only makes sense of a single one is left out."""
    joined: dict[str, Any] = _mean(list(calibrations.values()))
    joined.pop("likeness", None)
    for figures in joined.get("reliability", {}).values():
        for name in ("directions", "quintiles", "confidence"):  # their groups differ
            figures.pop(name, None)
    joined["calibrated_on"] = "; ".join(
        dict.fromkeys(str(known.get("calibrated_on", "")) for known in calibrations.values())
    )
    if "refined" in joined:  # for all members alike, or one half map would be of refined poses, the other not
        joined["refined"]["helps"] = all(known["refined"]["helps"] for known in calibrations.values())
    return joined | {"members": calibrations}


def remove_members(directory: Path, names: Sequence[str]) -> None:
    """Remove members of an earlier training that are none of `names`, and references of a single model beside members."""
    if "" not in names:
        write_references(directory, {})
    for folder in directory.iterdir():
        if folder.is_dir() and _NAME.fullmatch(folder.name) and folder.name not in names:
            shutil.rmtree(folder)


def _join_metrics(directory: Path, folders: list[Path]) -> None:
    tables = []
    for folder in folders:
        with open(folder / "metrics.csv", newline="") as handle:
            tables.append(list(csv.DictReader(handle)))
    with (
        atomic_file(directory / "metrics.csv", overwrite=True) as temporary,
        open(temporary, "w", newline="") as handle,
    ):
        writer = csv.DictWriter(handle, fieldnames=list(tables[0][0]))
        writer.writeheader()
        for rows in zip(*tables, strict=False):  # as many epochs as all have
            writer.writerow({key: f"{np.mean([float(row[key]) for row in rows]):.6g}" for key in rows[0]})


def _mean(values: list[Any]) -> Any:
    """Mean of numbers, sum of counts, item by item of dictionaries and lists; the first of anything else."""
    first = values[0]
    if any(value is None for value in values):
        return None
    if isinstance(first, dict):
        shared = [key for key in first if all(key in value for value in values)]
        return {key: _mean([value[key] for value in values]) for key in shared}
    if isinstance(first, list) and all(len(value) == len(first) for value in values):
        return [_mean(list(items)) for items in zip(*values, strict=True)]
    if isinstance(first, int) and not isinstance(first, bool):
        return sum(values)
    return float(np.mean(values)) if isinstance(first, float) else first

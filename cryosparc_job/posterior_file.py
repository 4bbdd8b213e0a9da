"""`<stem>_posterior.npz` beside a .cs file: what has no place in cryoSPARC's table, keyed by uid.

Arrays: uid `(n,)`, those of bingham `(n, 10)`, credible_radius_50_deg, credible_radius_95_deg, lambda_max, trace, expected_shift_error_A, right_basin and in_training `(n,)`,
alternative_rotation `(n, 4)` and alternative_weight `(n,)` that are known, and slot_names, slot_numbers: which
components_mode_k slot of the table holds which quantity.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.particles import FloatArray, Prediction
from cryosparc_job.cs_file import Records

logger = logging.getLogger("cryoforum")

SIDE_FIELDS = (
    "bingham",
    "credible_radius_50_deg",
    "credible_radius_95_deg",
    "lambda_max",
    "trace",
    "expected_shift_error_A",
    "right_basin",
    "in_training",
    "alternative_rotation",
    "alternative_weight",
)


def posterior_path(path: Path) -> Path:
    """Return the side file's path for a .cs file."""
    return path.with_name(f"{path.stem}_posterior.npz")


def pack_posterior(
    uid: NDArray[np.uint64], prediction: Prediction, slots: dict[str, int]
) -> dict[str, NDArray[Any]]:
    """Return the arrays of the side file."""
    arrays: dict[str, NDArray[Any]] = {
        "uid": uid,
        "slot_names": np.array(list(slots), dtype=str),
        "slot_numbers": np.array(list(slots.values()), dtype=np.int64),
    }
    known = {name: getattr(prediction, name) for name in SIDE_FIELDS}
    return arrays | {name: value for name, value in known.items() if value is not None}


def read_posterior(
    path: Path, records: Records, rotation: FloatArray | None, shift_A: FloatArray | None
) -> tuple[dict[str, int], Prediction | None]:
    """Return our slots of a .cs file and the prediction they hold; ({}, None) without a fitting side file."""
    side = posterior_path(path)
    if not side.is_file():
        return {}, None
    try:
        with open(side, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        slots = dict(zip(arrays["slot_names"].tolist(), arrays["slot_numbers"].tolist(), strict=True))
        order = np.argsort(arrays["uid"], kind="stable")
        place = order[np.searchsorted(arrays["uid"], records["uid"], sorter=order).clip(max=len(order) - 1)]
        fits = np.array_equal(arrays["uid"][place], records["uid"])
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        logger.warning("%s: ignored, not a readable posterior file (%s)", side, error)
        return {}, None
    names = {field: f"components_mode_{k}/value" for field, k in slots.items()}
    if (
        not fits
        or "confidence" not in slots
        or any(n not in (records.dtype.names or ()) for n in names.values())
    ):
        logger.warning("%s: ignored, it belongs to other particles than %s", side, path)
        return {}, None
    scalars = {field: records[name].astype(np.float64) for field, name in names.items()}
    sided = {name: arrays[name][place] for name in SIDE_FIELDS if name in arrays}
    return slots, Prediction(**scalars, **sided, rotation=rotation, shift_A=shift_A)

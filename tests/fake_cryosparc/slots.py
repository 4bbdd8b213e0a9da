"""The registry of slot dtypes with their fields, and the inputs of the job types that we queue."""

from __future__ import annotations

from typing import Any

import numpy as np
from cryosparc.dataset import Dataset

from fake_cryosparc.faults import HTTPError

Fields = list[tuple[str, str]]
_F = "<f4"


def _floats(names: str) -> Fields:
    return [(name, _F) for name in names.split()]


_ALIGNMENTS: Fields = [
    ("split", "<u4"),
    ("shift", "2f4"),
    *_floats("psize_A error error_min resid_pow slice_pow image_pow cross_cor alpha alpha_min"),
    *_floats("weight pose_ess shift_ess"),
    ("class_posterior", _F),
    ("class", "<u4"),
    ("class_ess", _F),
]
_CTF: Fields = [
    ("type", "O"),
    ("exp_group_id", "<u4"),
    *_floats("accel_kv cs_mm amp_contrast df1_A df2_A df_angle_rad phase_shift_rad scale scale_const"),
    *((name, "2f4") for name in ("shift_A", "tilt_A", "trefoil_A")),
    ("tetra_A", "4f4"),
    ("anisomag", "4f4"),
    ("bfactor", _F),
]
_BLOB: Fields = [
    ("path", "O"),
    ("idx", "<u4"),
    ("shape", "2u4"),
    ("psize_A", _F),
    ("sign", _F),
    ("import_sig", "<u8"),
]
_VOLUME: Fields = [("path", "O"), ("shape", "3u4"), ("psize_A", _F)]

SLOTS: dict[str, dict[str, Fields]] = {
    "particle": {
        "blob": _BLOB,
        "ctf": _CTF,
        "alignments3D": [*_ALIGNMENTS, ("pose", "3f4")],
        "alignments2D": [*_ALIGNMENTS, ("pose", _F)],
        "location": [
            ("micrograph_uid", "<u8"),
            ("exp_group_id", "<u4"),
            ("micrograph_path", "O"),
            ("micrograph_shape", "2u4"),
            ("center_x_frac", _F),
            ("center_y_frac", _F),
        ],
        "pick_stats": [("ncc_score", _F), ("power", _F), ("template_idx", "<u4"), ("angle_rad", _F)],
        "components": [("component", "<u4"), ("value", _F)],
        "sym_expand": [("src_uid", "<u8"), ("idx", "<u4"), ("symmetry", "O"), ("is_helix", "<u4")],
    },
    "volume": dict.fromkeys(("map", "map_half_A", "map_half_B", "map_sharp", "mask_refine"), _VOLUME),
    "mask": {"mask": _VOLUME},
}

# job type -> input name -> (output type, least number of connections, required slots)
JOB_INPUTS: dict[str, dict[str, tuple[str, int, tuple[str, ...]]]] = {
    "homo_reconstruct": {
        "particles": ("particle", 1, ("blob", "ctf", "alignments3D")),
        "mask": ("mask", 0, ("mask",)),
    },
    "new_local_refine": {
        "particles": ("particle", 1, ("blob", "ctf", "alignments3D")),
        "volume": ("volume", 1, ("map",)),
        "mask": ("mask", 1, ("mask",)),
    },
    "nonuniform_refine_new": {
        "particles": ("particle", 1, ("blob", "ctf")),
        "volume": ("volume", 1, ("map",)),
        "mask": ("mask", 0, ("mask",)),
    },
}


def slot_dtype(prefix: str) -> str:
    """Return the dtype of a dataset prefix: components_mode_0 holds `components`."""
    return "components" if prefix.startswith("components_mode_") else prefix


def output_type(prefixes: list[str]) -> str:
    """Guess the type of an output from its dataset's prefixes."""
    for kind, registry in SLOTS.items():
        if any(slot_dtype(prefix) in registry for prefix in prefixes):
            return kind
    return "particle"


def full_slots(slots: list[Any], kind: str) -> list[dict[str, Any]]:
    """Return slots as dictionaries; HTTPError 422 without one or with a dtype the registry lacks."""
    if not slots:
        raise HTTPError(422, "at least one slot is required")
    full = []
    for slot in slots:
        if isinstance(slot, str):
            slot = {"name": slot.lstrip("?"), "dtype": slot.lstrip("?"), "required": not slot.startswith("?")}
        slot = dict(slot)
        if "prefix" in slot:  # 4.7
            slot["name"] = slot.pop("prefix")
        full.append(slot)
    registry = SLOTS.get(kind, {})
    unknown = [slot for slot in full if slot["dtype"] not in registry]
    if unknown:
        prefixed = [{**slot, "prefix": slot["name"], "required": True} for slot in full]
        data = {
            "type": kind,
            "valid": [slot for slot in prefixed if slot["dtype"] in registry],
            "invalid": [slot for slot in prefixed if slot["dtype"] not in registry],
            "valid_dtypes": sorted(registry),
        }
        names = [slot["dtype"] for slot in unknown]
        detail = f"Unknown {kind} slot dtype(s): {names}. Valid: {sorted(registry)}"
        raise HTTPError(422, detail, {"slots": data})
    return full


def expected_fields(output: dict[str, Any]) -> Fields:
    """Return the columns that an output must have."""
    registry = SLOTS[output["type"]]
    return [
        (f"{slot['name']}/{name}", dtype)
        for slot in output["slots"]
        for name, dtype in registry[slot["dtype"]]
    ]


def check_fields(output: dict[str, Any], dataset: Dataset) -> None:
    """Raise HTTPError 422 if a dataset lacks a column of an output, or has it with another type."""
    have = {row[0]: np.dtype(row[1] if len(row) < 3 else (row[1], row[2])) for row in dataset.descr()}
    missing = {name: dtype for name, dtype in expected_fields(output) if have.get(name) != np.dtype(dtype)}
    if missing:
        raise HTTPError(422, f"Invalid dataset; missing the following required fields: {missing}")

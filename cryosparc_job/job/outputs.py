"""What goes back to cryoSPARC: outputs with our own slots only; everything else is passed through."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.confidence.calibration import TARGET_DEG
from cryoforum_plugin.errors import HostError
from cryoforum_plugin.particles import ParticleSet
from cryosparc_job.cs_file import CsHost
from cryosparc_job.job import client
from cryosparc_job.job.calls import call, upload
from cryosparc_job.writing import SLOT_FIELDS

INPUT = "particles"
POSES = "particles_network_pose"
SELECTED, REJECTED = "particles_selected", "particles_rejected"
POSE = ("alignments3D/pose", "alignments3D/shift")
TITLES = {
    INPUT: "All particles, with uncertainty",
    SELECTED: "Selected particles",
    REJECTED: "Rejected particles",
    POSES: "All particles, with predicted poses",
}
MEANING = {
    "confidence": f"confidence: probability that the angular error is below {TARGET_DEG:g} degrees",
    "expected_error_deg": "expected angular error, degrees",
    "credible_radius_90_deg": "radius of the 90 % credible ball, degrees",
    "outlier_score": "outlier score, 0 to 1, higher is more unlike the training particles",
}


def free_slots(names: list[str]) -> dict[str, int]:
    """Number of the components_mode_k for each quantity: the first that the input does not use."""
    taken = {name for name in names if name.startswith("components_mode_")}
    free = (k for k in range(len(taken) + len(SLOT_FIELDS)) if f"components_mode_{k}" not in taken)
    return dict(zip(SLOT_FIELDS, free, strict=False))


def explanation(slots: dict[str, int], has_poses: bool) -> str:
    """Markdown for the job: which component holds what, and how to choose by it."""
    rows = "\n".join(
        f"- **3DVA component {k}** (`components_mode_{k}/value`): {MEANING[n]}" for n, k in slots.items()
    )
    poses = (
        f"`{POSES}` holds the predicted poses; in the other outputs poses are those of the input."
        if has_poses
        else "The input has no 3D alignments: every output holds the predicted poses, and new half sets."
    )
    return (
        "cryoforum writes its uncertainties as 3DVA components, the kind of number that *Subset Particles by "
        f"Statistic* can choose by:\n\n{rows}\n\n{poses}"
    )


def declare(job: Any, slots: dict[str, int], selecting: bool, has_poses: bool) -> list[str]:
    """Add the outputs to an external job that is being built; return their names.

    has_poses : whether the input has alignments, which all but one output then keep.
    """
    components = [client.slot(f"components_mode_{k}", "components") for k in slots.values()]
    poses = [client.slot("alignments3D", "alignments3D")]
    names = [INPUT, *([SELECTED, REJECTED] if selecting else []), POSES]
    for name in names:
        own = [*components, *(poses if name == POSES or not has_poses else [])]
        call(f"adding output {name}", job.add_output, "particle", name, slots=own, passthrough=INPUT,
             title=TITLES[name])  # fmt: skip
    return names


def rows_of(names: list[str], count: int, keep: NDArray[np.bool_] | None) -> dict[str, NDArray[np.bool_]]:
    """Rows `(count,)` of each output; `keep` `(count,)` marks the selected ones."""
    everything = np.ones(count, dtype=bool)
    chosen = {} if keep is None else {SELECTED: keep, REJECTED: ~keep}
    return {name: chosen.get(name, everything) for name in names}


def save(job: Any, name: str, predicted: ParticleSet, slots: dict[str, int], rows: NDArray[np.bool_]) -> None:
    """Write the marked rows `(n,)` of a predicted set as an output; nothing is written where there are none.

    slots : as declared. Only our own slots are sent. Raises HostError if the server wants what is not known
    here.
    """
    from cryosparc.dataset import Dataset

    assert isinstance(predicted.host, CsHost)
    records = predicted.host.records
    known = {field: records[field] for field in records.dtype.names or ()}
    known["alignments3D/split"] = predicted.half_set - 1
    for quantity, k in slots.items():
        known[f"components_mode_{k}/component"] = np.full(len(predicted), k)
        known[f"components_mode_{k}/value"] = getattr(predicted.prediction, quantity)
    if not rows.any():
        return
    uid = Dataset({"uid": records["uid"][rows]})
    data = call(f"preparing {name}", job.alloc_output, name, uid)  # the fields the server wants, all 0
    for field in data.fields():
        if field in known and field != "uid":
            data[field] = known[field][rows]
    needed = [field for field in data.fields() if field in POSE or field.startswith("components_mode_")]
    unfilled = [field for field in needed if field not in known]  # they would be left at 0
    if unfilled:
        raise HostError(f"{name}: nothing to write to {', '.join(unfilled)}; predict these particles first")
    upload(f"writing {name}", job.save_output, name, data)

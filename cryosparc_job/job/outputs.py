"""What goes back to cryoSPARC: outputs with our own slots only; everything else is passed through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosparc_job.cs_file import read_records
from cryosparc_job.job.calls import call, upload
from cryosparc_job.writing import SLOT_FIELDS

INPUT = "particles"
POSES = "particles_network_pose"
SELECTED, REJECTED = "particles_selected", "particles_rejected"
TITLES = {
    INPUT: "All particles, with uncertainty",
    SELECTED: "Selected particles",
    REJECTED: "Rejected particles",
    POSES: "All particles, with predicted poses",
}
MEANING = {
    "confidence": "confidence: probability that the angular error is below 5 degrees",
    "expected_error_deg": "expected angular error, degrees",
    "credible_radius_90_deg": "radius of the 90 % credible ball, degrees",
    "outlier_score": "outlier score, 0 to 1, higher is more unlike the training particles",
}


def free_slots(names: list[str]) -> dict[str, int]:
    """Number of the components_mode_k for each quantity: the first that the input does not use."""
    taken = {name for name in names if name.startswith("components_mode_")}
    free = (k for k in range(len(taken) + len(SLOT_FIELDS)) if f"components_mode_{k}" not in taken)
    return dict(zip(SLOT_FIELDS, free, strict=False))


def explanation(slots: dict[str, int]) -> str:
    """Markdown for the job: which component holds what, and how to choose by it."""
    rows = "\n".join(
        f"- **3DVA component {k}** (`components_mode_{k}/value`): {MEANING[n]}" for n, k in slots.items()
    )
    return (
        "cryoforum writes its uncertainties as 3DVA components, the kind of number that *Subset Particles by "
        f"Statistic* can choose by:\n\n{rows}\n\n`{POSES}` holds the predicted poses; in the other outputs poses are "
        "those of the input."
    )


def declare(job: Any, slots: dict[str, int], selecting: bool, with_poses: bool) -> list[str]:
    """Add the outputs to an external job that is being built; return their names."""
    components = [{"name": f"components_mode_{k}", "dtype": "components"} for k in slots.values()]
    names = [INPUT, *([SELECTED, REJECTED] if selecting else []), *([POSES] if with_poses else [])]
    for name in names:
        own = ["alignments3D"] if name == POSES else components
        call(
            f"adding output {name}",
            job.add_output,
            "particle",
            name,
            slots=own,
            passthrough=INPUT,
            title=TITLES[name],
        )
    return names


def save(job: Any, names: list[str], predicted: Path, keep: NDArray[np.bool_] | None) -> None:
    """Write the outputs from a predicted .cs file; `keep` `(n,)` marks the selected rows.

    Nothing but our own slots is sent; what the server wants of them and the table lacks is 0. An output without rows is not written.
    """
    from cryosparc.dataset import Dataset

    records, _ = read_records(predicted)
    rows = {SELECTED: keep, REJECTED: None if keep is None else ~keep}
    for name in names:
        mask = rows.get(name)
        part = records if mask is None else records[mask]
        if len(part):
            uid = Dataset({"uid": np.ascontiguousarray(part["uid"])})
            data = call(
                f"preparing {name}", job.alloc_output, name, uid
            )  # every field the server wants, zero
            for field in data.fields():
                if field in (part.dtype.names or ()) and field != "uid":
                    data[field] = np.ascontiguousarray(part[field])
            upload(f"writing {name}", job.save_output, name, data)

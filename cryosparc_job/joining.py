"""Tables that describe the same particles, put together by uid."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.errors import ParticleFileError
from cryosparc_job.cs_file import ROWS_AT_ONCE, Records, as_dtype, field_types, slots_of

logger = logging.getLogger("cryoforum")


def joined(records: Records, path: Path, other: Records, other_path: Path) -> Records:
    """Return the rows that both tables hold, in the order of the first, with the slots only the second has.

    Raises ParticleFileError if they share no row, or if either holds a uid twice.
    """
    _, rows, other_rows = np.intersect1d(
        _uids(records, path), _uids(other, other_path), assume_unique=True, return_indices=True
    )
    order = np.argsort(rows)
    rows, other_rows = rows[order], other_rows[order]
    if not len(rows):
        raise ParticleFileError(
            f"{path}: none of its particles is in {other_path.name}, so the files do not belong together; "
            "export the particles again"
        )
    if len(rows) < len(records):
        lost, n = len(records) - len(rows), len(records)
        logger.warning("%s: left out %d of %d particles, not in %s", path, lost, n, other_path.name)
    known, slots = field_types(records), slots_of(records)
    added = {name: kind for name, kind in field_types(other).items() if slots_of([name]) - slots}
    result = np.empty(len(rows), dtype=as_dtype(known | added))
    for start in range(0, len(rows), ROWS_AT_ONCE):  # whole rows are fetched, as they lie in memory
        part = slice(start, start + ROWS_AT_ONCE)
        ours, theirs = records[rows[part]], other[other_rows[part]]
        for name in result.dtype.names or ():
            result[name][part] = ours[name] if name in known else theirs[name]
    return result


def overlap(records: Records, path: Path, other: Records, other_path: Path) -> int:
    """Return how many particles two tables share. Raises ParticleFileError if either holds a uid twice."""
    return len(np.intersect1d(_uids(records, path), _uids(other, other_path), assume_unique=True))


def _uids(records: Records, path: Path) -> NDArray[Any]:
    """Return the uids; ParticleFileError if there are none or if one occurs twice."""
    if "uid" not in (records.dtype.names or ()):
        raise ParticleFileError(f"{path}: no field uid, by which files are joined; export the particles")
    uids = np.ascontiguousarray(records["uid"])
    ordered = np.sort(uids)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ParticleFileError(
            f"{path}: uid {twice[0]} occurs more than once, so files cannot be joined; remove duplicates"
        )
    return uids

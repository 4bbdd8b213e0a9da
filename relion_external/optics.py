"""Per-particle optics, whether RELION keeps them in an optics table or in every row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import FloatArray, IntArray
from relion_external.host import StarHost
from relion_external.star import Table


@dataclass(frozen=True)
class Optics:
    """Look-up of a label per particle: from the optics table where it has the label, else from the row.

    group : `(n,)` optics group of each particle. row : `(n,)` its row of the optics table.
    values : numeric columns of the particle table.
    """

    table: Table | None
    group: IntArray
    row: IntArray
    values: dict[str, FloatArray]

    def get(self, label: str) -> FloatArray | None:
        """Return a number per particle `(n,)`, or None where neither table has the label."""
        if self.table is not None and label in self.table:
            return self.table.numbers(label)[label][self.row]
        return self.values.get(label)


def read_optics(host: StarHost, values: dict[str, FloatArray]) -> Optics:
    """Match particles and optics groups.

    Raises ParticleFileError if a group is missing from the optics table or listed twice.
    """
    source, table = host.document.source, host.document.table("optics")
    n = len(host.particles)
    group = values["rlnOpticsGroup"].astype(np.int64) if "rlnOpticsGroup" in values else np.ones(n, np.int64)
    if table is None or not len(table):
        return Optics(None, group, np.zeros(n, np.int64), values)
    if "rlnOpticsGroup" not in table:
        raise ParticleFileError(f"{source}: data_optics has no column _rlnOpticsGroup; add it")
    listed = table.numbers("rlnOpticsGroup")["rlnOpticsGroup"].astype(np.int64)
    if len(np.unique(listed)) != len(listed):
        raise ParticleFileError(f"{source}: data_optics lists an optics group twice; keep one row a group")
    if "rlnOpticsGroup" not in values:
        if len(listed) > 1:
            raise ParticleFileError(
                f"{source}: {len(listed)} optics groups, but no column _rlnOpticsGroup in the particle table"
            )
        group = np.full(n, listed[0])
    order = np.argsort(listed)
    row = order[np.searchsorted(listed, group, sorter=order).clip(max=len(listed) - 1)]
    lost = np.flatnonzero(listed[row] != group)
    if lost.size:
        missing = sorted(set(group[lost].tolist()))
        raise ParticleFileError(
            f"{source}: {host.particles.where(int(lost[0]))} uses optics group {missing[0]}, "
            f"which data_optics lacks ({lost.size} rows, groups {missing[:5]}); add it to data_optics"
        )
    return Optics(table, group, row, values)


def pixel_size(optics: Optics, host: StarHost) -> FloatArray:
    """Return the pixel size in Å `(n,)`; the labels of RELION 3.1+ first, then those of 3.0 and before.

    Raises ParticleFileError if it is missing or not positive.
    """
    size = optics.get("rlnImagePixelSize")
    label = "_rlnImagePixelSize"
    if size is None:
        magnification, detector = optics.get("rlnMagnification"), optics.get("rlnDetectorPixelSize")
        if magnification is not None and detector is not None:
            label = "_rlnDetectorPixelSize / _rlnMagnification"
            with np.errstate(divide="ignore", invalid="ignore"):
                size = 1e4 * detector / magnification
        else:
            size, label = optics.get("rlnPixelSize"), "_rlnPixelSize"
    if size is None:
        raise ParticleFileError(
            f"{host.document.source}: no pixel size (_rlnImagePixelSize in data_optics, or "
            "_rlnMagnification and _rlnDetectorPixelSize, or _rlnPixelSize); add it"
        )
    bad = np.flatnonzero(~((size > 0) & np.isfinite(size)))
    if bad.size:
        raise ParticleFileError(
            f"{host.document.source}: {host.particles.where(int(bad[0]))}: pixel size from {label} "
            "is not positive; correct it"
        )
    return size

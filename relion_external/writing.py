"""ParticleSet to STAR: the host's table with our columns changed or added, or a fresh document."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.geometry.rotations import quaternion_to_relion_euler
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.particles import FloatArray, ParticleSet, Prediction
from cryoforum_plugin.particles.writable import Writable, writable
from relion_external.host import (
    ALTERNATIVE,
    ALTERNATIVE_WEIGHT,
    ANGLES,
    BINGHAM,
    HALF_SET,
    ORIGIN_A,
    ORIGIN_PX,
    PRIORS,
    SCALARS,
    StarHost,
)
from relion_external.rows import Cells, Numbers
from relion_external.star import StarDocument, Table, new_table
from relion_external.tokens import quote

logger = logging.getLogger("cryoforum")

Mask = NDArray[np.bool_]
_WHOLE, _FIXED, _GENERAL = "%d", "%.6f", "%.9g"  # how numbers are written
_CTF_LABELS = {  # label: field of Ctf
    "rlnDefocusU": "defocus_u_A",
    "rlnDefocusV": "defocus_v_A",
    "rlnDefocusAngle": "defocus_angle_deg",
    "rlnPhaseShift": "phase_shift_deg",
}
_OPTICS_LABELS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize")
_NO_CTF = (300.0, 2.7, 0.1)  # RELION demands a voltage, Cs and Q0 even of particles without CTF


def write_particles(
    particles: ParticleSet,
    path: Path,
    prediction: Prediction | None = None,
    overwrite: bool = False,
    data_root: Path | None = None,
) -> None:
    """Write particles as STAR: every row, column, block and comment of the table they came from.

    Only the columns of `prediction` are changed or added, and poses where they differ from the table's;
    rows that hold a NaN are written as unpredicted. Particles from elsewhere get a fresh document
    (`new_document`), with image paths relative to `data_root`.
    Raises OutputError if `path` exists and `overwrite` is false.
    """
    document = predicted(particles, path, prediction, data_root).host.document
    with atomic_file(Path(path), overwrite) as temporary:
        document.write(temporary)


def predicted(
    particles: ParticleSet, path: Path, prediction: Prediction | None = None, data_root: Path | None = None
) -> ParticleSet:
    """Return the particles with the table that `write_particles` writes to `path`, and what it holds."""
    host = particles.host
    if not isinstance(host, StarHost):
        document = new_document(particles, data_root)
        host = StarHost(document, 1, particles.rotation, particles.shift_A)
    values = writable(particles, prediction, host.rotation, host.shift_A)
    columns = _columns(host, particles, values)
    if columns:
        host = host.with_particles(host.particles.with_columns(columns))
    return replace(
        particles,
        rotation=values.rotation,
        shift_A=values.shift_A,
        prediction=particles.prediction if values.prediction is None else values.prediction,
        host=replace(host, rotation=values.rotation, shift_A=values.shift_A),
    )


def _columns(host: StarHost, particles: ParticleSet, values: Writable) -> dict[str, Cells]:
    """Return every column that is changed or added."""
    table, columns, prediction = host.particles, dict[str, Cells](), values.prediction
    if values.rotation is not None and values.rotation_changed.any():
        _warn_of_priors(table)
        angles = quaternion_to_relion_euler(values.rotation)
        columns |= _changed(table, ANGLES, angles, values.rotation_changed)
    if values.shift_A is not None and values.shift_changed.any():
        for labels, per_A in _origin_labels(host, particles.pixel_size_A):
            columns |= _changed(table, labels, values.shift_A * per_A[:, None], values.shift_changed)
    if _gained_half_sets(table, particles):
        columns[HALF_SET] = Numbers(particles.half_set, _WHOLE)
    if prediction is None:
        return columns
    for label, name in SCALARS.items():
        numbers = getattr(prediction, name)
        if numbers is not None:
            columns[label] = Numbers(numbers, _FIXED if label.startswith("rln") else _GENERAL)
    if prediction.bingham is not None:
        columns |= {label: Numbers(prediction.bingham[:, i], _GENERAL) for i, label in enumerate(BINGHAM)}
    return columns | _alternative(table, prediction)


def _alternative(table: Table, prediction: Prediction) -> dict[str, Cells]:
    """Columns of the next best orientation; where none is known, but a table has them, with weight 0."""
    rotation, weight = prediction.alternative_rotation, prediction.alternative_weight
    if rotation is None or weight is None:
        none = Numbers(np.zeros(len(prediction)), _WHOLE)
        return {ALTERNATIVE_WEIGHT: none} if ALTERNATIVE_WEIGHT in table else {}
    angles = quaternion_to_relion_euler(rotation)
    columns: dict[str, Cells] = {label: Numbers(angles[:, i], _FIXED) for i, label in enumerate(ALTERNATIVE)}
    return columns | {ALTERNATIVE_WEIGHT: Numbers(weight, _GENERAL)}


def _gained_half_sets(table: Table, particles: ParticleSet) -> bool:
    """Whether every particle has a half set, and none in the table."""
    first = next(table.tokens(HALF_SET), "0") if HALF_SET in table else "0"
    return first not in ("1", "2") and bool((particles.half_set > 0).all())


def _origin_labels(host: StarHost, pixel_size_A: FloatArray) -> list[tuple[tuple[str, str], FloatArray]]:
    """Which origin columns to write, with the factor `(n,)` from Å: what the table has, else what its
    version has (pixels without, Å with an optics table)."""
    known = [ORIGIN_A] if all(label in host.particles for label in ORIGIN_A) else []
    known += [ORIGIN_PX] if all(label in host.particles for label in ORIGIN_PX) else []
    if not known:
        known = [ORIGIN_PX if host.document.table("optics") is None else ORIGIN_A]
    return [
        (labels, np.ones_like(pixel_size_A) if labels is ORIGIN_A else 1 / pixel_size_A) for labels in known
    ]


def _changed(table: Table, labels: Sequence[str], values: FloatArray, changed: Mask) -> dict[str, Cells]:
    """Columns of `values` `(n, k)` for the k labels; rows that did not change keep their text."""
    partly = all(label in table for label in labels) and not changed.all()
    mask = changed if partly else None
    return {label: Numbers(values[:, i], _FIXED, mask) for i, label in enumerate(labels)}


def _warn_of_priors(table: Table) -> None:
    stale = [label for label in PRIORS if label in table]
    if stale:
        logger.warning(
            "%s: %s are left as they are although the orientations changed; local searches of RELION 3.1 "
            "and 4 start from these columns, so remove them before a local refinement",
            table.source, ", ".join(f"_{label}" for label in stale),
        )  # fmt: skip


def new_document(particles: ParticleSet, root: Path | None = None) -> StarDocument:
    """Build a RELION 3.1+ document (tables optics, particles) from particles of any origin.

    root : stacks inside it get paths relative to it; default the current folder.
    Optics groups are the distinct sets of voltage, Cs, amplitude contrast and pixel size. Without CTF,
    where RELION still wants a voltage, 300 kV, 2.7 mm and 0.1 are written.
    """
    n, ctf = len(particles), particles.ctf
    microscope = (
        [np.full(n, value) for value in _NO_CTF]
        if ctf is None
        else [ctf.voltage_kV, ctf.spherical_aberration_mm, ctf.amplitude_contrast]
    )
    keys = np.stack([*microscope, particles.pixel_size_A], axis=1)
    groups, group = np.unique(np.round(keys, 6), axis=0, return_inverse=True)
    numbers = [str(i) for i in range(1, len(groups) + 1)]
    optics: dict[str, Cells] = {
        "rlnOpticsGroupName": [f"opticsGroup{i}" for i in numbers], "rlnOpticsGroup": numbers
    }  # fmt: skip
    optics |= {label: Numbers(groups[:, i], _FIXED) for i, label in enumerate(_OPTICS_LABELS)}
    box_px = _box_px(particles)
    optics |= {} if box_px is None else {"rlnImageSize": [str(box_px)] * len(groups)}
    optics["rlnImageDimensionality"] = ["2"] * len(groups)
    columns: dict[str, Cells] = {"rlnImageName": _image_names(particles, root or Path.cwd())}
    columns["rlnOpticsGroup"] = Numbers(group.reshape(-1) + 1, _WHOLE)
    columns |= _particle_columns(particles)
    tables = (
        new_table(particles.source, "optics", optics),
        new_table(particles.source, "particles", columns),
    )
    return StarDocument(particles.source, (), tables)


def _box_px(particles: ParticleSet) -> int | None:
    """Box size as it is known, or according to the first particle's stack, or None."""
    if particles.box_px is not None or not len(particles):
        return particles.box_px
    try:
        return StackReader(particles.stacks).header(int(particles.stack_index[0])).width
    except ImageStackError:
        return None


def _particle_columns(particles: ParticleSet) -> dict[str, Cells]:
    """The columns of a fresh particle table that depend on what is known."""
    columns: dict[str, Cells] = {}
    if (particles.micrograph >= 0).all():
        columns["rlnMicrographName"] = Numbers(particles.micrograph, "micrograph%06d.mrc")
    if (particles.half_set > 0).all():  # RELION refuses 0 beside 1 and 2
        columns[HALF_SET] = Numbers(particles.half_set, _WHOLE)
    if particles.rotation is not None:
        angles = quaternion_to_relion_euler(particles.rotation)
        columns |= {label: Numbers(angles[:, i], _FIXED) for i, label in enumerate(ANGLES)}
    if particles.shift_A is not None:
        columns |= {label: Numbers(particles.shift_A[:, i], _FIXED) for i, label in enumerate(ORIGIN_A)}
    if particles.ctf is not None:
        columns |= {label: Numbers(getattr(particles.ctf, f), _FIXED) for label, f in _CTF_LABELS.items()}
    return columns


def _image_names(particles: ParticleSet, root: Path) -> list[str]:
    """Names `000001@path`, relative to `root` where the stack lies inside it, else absolute."""
    base = root.absolute()
    paths = [Path(os.path.abspath(stack)) for stack in particles.stacks]
    texts = [str(path.relative_to(base) if path.is_relative_to(base) else path) for path in paths]
    forms = [quote("%06d@" + text.replace("%", "%%")) for text in texts]
    rows = zip(particles.stack_index.tolist(), particles.slice_index.tolist(), strict=True)
    return [forms[stack] % (number + 1) for stack, number in rows]

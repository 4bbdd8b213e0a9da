"""STAR to ParticleSet; `writing` goes back. RELION's conventions are stated in `geometry.rotations`."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.geometry.rotations import relion_euler_to_quaternion
from cryoforum_plugin.particles import Ctf, FloatArray, IntArray, ParticleSet, Prediction
from cryoforum_plugin.particles.origins import origin_labels
from relion_external.appending import appended
from relion_external.host import (
    ALTERNATIVE,
    ALTERNATIVE_WEIGHT,
    ANGLES,
    BINGHAM,
    CONFIDENCE,
    DEFOCUS,
    MICROSCOPE,
    ORIGIN_A,
    ORIGIN_PX,
    SCALARS,
    StarHost,
    find_particle_table,
    refuse_volumes,
)
from relion_external.image_names import ImageNames, parse_image_names
from relion_external.optics import Optics, pixel_size, read_optics
from relion_external.star import Table
from relion_external.star_reader import read_star
from relion_external.writing import new_document, predicted, write_particles

__all__ = [
    "appended",
    "looks_like_particles",
    "new_document",
    "predicted",
    "read_particles",
    "write_particles",
]

logger = logging.getLogger("cryoforum")

_CORRECTED = {
    "rlnCtfDataAreCtfPremultiplied": "premultiplied by the CTF",
    "rlnCtfDataArePhaseFlipped": "phase-flipped",
}
_HEAD_BYTES = 1 << 18
COORDINATES = ("rlnCoordinateX", "rlnCoordinateY")
_NUMERIC = (
    *ANGLES, *ORIGIN_A, *ORIGIN_PX, *DEFOCUS, *MICROSCOPE, *SCALARS, *BINGHAM, *ALTERNATIVE,
    ALTERNATIVE_WEIGHT, "rlnPhaseShift",
    "rlnOpticsGroup", "rlnRandomSubset", "rlnImagePixelSize", "rlnPixelSize", "rlnMagnification",
    "rlnDetectorPixelSize", "rlnImageDimensionality", *_CORRECTED,
)  # fmt: skip


def read_particles(path: Path, data_root: Path | None = None) -> ParticleSet:
    """Read a RELION particle STAR file of any version since 1.4.

    data_root : what image paths are relative to (RELION's project folder); default the current folder.
    Angles and origins are taken by label, not by version. Raises ParticleFileError naming file, row,
    column and remedy if the table is damaged, incomplete, or holds subtomograms or premultiplied images.
    """
    path = Path(path)
    host = find_particle_table(read_star(path))
    table = host.particles
    images = parse_image_names(table, data_root or Path.cwd())
    refuse_volumes(host, _dimensionality(host), images.single)
    values = table.numbers(*(label for label in _NUMERIC if label in table))
    optics = read_optics(host, values)
    _refuse_corrected(optics, host)
    size_A = pixel_size(optics, host)
    rotation = _rotation(values, path)
    shift_A = _shift_A(values, size_A, rotation)
    n, micrograph = len(table), _micrograph(table)
    return ParticleSet(
        source=path,
        stacks=images.stacks,
        stack_index=images.stack_index,
        slice_index=images.slice_index,
        pixel_size_A=size_A,
        rotation=rotation,
        shift_A=shift_A,
        ctf=_ctf(optics, path),
        contrast_sign=np.ones(n),
        optics_group=optics.group,
        half_set=_half_set(values, n),
        micrograph=micrograph,
        origin=_origin(images, micrograph, table),
        uid=np.arange(n, dtype=np.uint64),
        prediction=_prediction(values, rotation, shift_A),
        host=replace(host, rotation=rotation, shift_A=shift_A),
    )


def looks_like_particles(path: Path) -> bool:
    """Tell from a file's head whether it is a particle table to take from a folder.

    Tables that cryoforum predicted are not, nor those that an Extract job writes for single micrographs.
    """
    if path.name.endswith("_extract.star"):
        return False
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    return b"_rlnImageName" in head and b"_cryoforum" not in head


def _dimensionality(host: StarHost) -> float | None:
    """Return the largest rlnImageDimensionality of the file, or None where it is not given."""
    tables = [host.particles, *(t for t in (host.document.table("optics"),) if t is not None)]
    label = "rlnImageDimensionality"
    return max((float(t.numbers(label)[label].max()) for t in tables if label in t and len(t)), default=None)


def _refuse_corrected(optics: Optics, host: StarHost) -> None:
    """Refuse images whose CTF was applied already: correcting it again would undo it."""
    for label, what in _CORRECTED.items():
        flag = optics.get(label)
        if flag is not None and flag.any():
            row = host.particles.where(int(np.flatnonzero(flag)[0]))
            raise ParticleFileError(
                f"{host.document.source}: {row}: the images are {what} (_{label}); extract them again without that"
            )


def _rotation(values: dict[str, FloatArray], path: Path) -> FloatArray | None:
    """Orientations as XYZW quaternions `(n, 4)`, or None unless all three angles are there."""
    if not all(label in values for label in ANGLES):
        return None
    angles = np.stack([values[label] for label in ANGLES], axis=1)
    if len(angles) > 1 and not angles[:, :2].any():
        logger.warning(
            "%s: rot and tilt are 0 in every row, as after 2D classification: not 3D orientations", path
        )
    return relion_euler_to_quaternion(angles)


def _shift_A(
    values: dict[str, FloatArray], size_A: FloatArray, rotation: FloatArray | None
) -> FloatArray | None:
    """Origins in Å `(n, 2)`, those in Å before those in pixels; 0 if the rows have angles only."""
    for labels, scale in ((ORIGIN_A, np.ones_like(size_A)), (ORIGIN_PX, size_A)):
        if all(label in values for label in labels):
            return np.stack([values[label] * scale for label in labels], axis=1)
    return None if rotation is None else np.zeros((len(size_A), 2))


def _ctf(optics: Optics, path: Path) -> Ctf | None:
    """CTF parameters, or None where no defocus is given.

    Raises ParticleFileError if the defocus is given but something else is not.
    """
    if not any(optics.get(label) is not None for label in DEFOCUS):
        return None
    found = {label: optics.get(label) for label in (*DEFOCUS, *MICROSCOPE)}
    missing = ", ".join(f"_{label}" for label, value in found.items() if value is None)
    if missing:
        raise ParticleFileError(f"{path}: incomplete CTF parameters, no column {missing}; add it")
    phase_shift = optics.get("rlnPhaseShift")
    u, v, angle, voltage, cs, amplitude = (value for value in found.values() if value is not None)
    return Ctf(u, v, angle, voltage, cs, amplitude, np.zeros_like(u) if phase_shift is None else phase_shift)


def _half_set(values: dict[str, FloatArray], n: int) -> IntArray:
    subset = values.get("rlnRandomSubset", np.zeros(n)).astype(np.int64)
    return np.where((subset == 1) | (subset == 2), subset, 0)


def _micrograph(table: Table) -> IntArray:
    if "rlnMicrographName" not in table:
        return np.full(len(table), -1, dtype=np.int64)
    return table.numbered("rlnMicrographName")


def _origin(images: ImageNames, micrograph: IntArray, table: Table) -> IntArray:
    """Label rows of one physical particle alike: the same image, or the same place in a micrograph."""
    image = images.stack_index * (int(images.slice_index.max()) + 1) + images.slice_index
    if any(label not in table for label in COORDINATES):
        return origin_labels(image)
    try:
        values = table.numbers(*COORDINATES)
    except ParticleFileError:  # coordinates serve nothing else: unreadable ones are no reason to refuse
        return origin_labels(image)
    position_px = np.stack([values[label] for label in COORDINATES], axis=1)
    return origin_labels(image, micrograph=micrograph, position_px=position_px)


def _prediction(
    values: dict[str, FloatArray], rotation: FloatArray | None, shift_A: FloatArray | None
) -> Prediction | None:
    """What an earlier prediction wrote; None unless a cryoforum column and the confidence are there."""
    if CONFIDENCE not in values or not any(label.startswith("cryoforum") for label in values):
        return None
    scalars = {name: values[label] for label, name in SCALARS.items() if label in values}
    complete = all(label in values for label in BINGHAM)
    bingham = np.stack([values[label] for label in BINGHAM], axis=1) if complete else None
    alternative: dict[str, FloatArray] = {}
    if all(label in values for label in (*ALTERNATIVE, ALTERNATIVE_WEIGHT)):
        angles = np.stack([values[label] for label in ALTERNATIVE], axis=1)
        alternative["alternative_rotation"] = relion_euler_to_quaternion(angles)
        alternative["alternative_weight"] = values[ALTERNATIVE_WEIGHT]
    return Prediction(**scalars, rotation=rotation, shift_A=shift_A, bingham=bingham, **alternative)

""".cs and .csg to ParticleSet; `writing` goes back. cryoSPARC's conventions are stated in `geometry.rotations`."""

from __future__ import annotations

import logging
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.geometry.rotations import rotation_vector_to_quaternion
from cryoforum_plugin.particles import Ctf, FloatArray, IntArray, ParticleSet
from cryoforum_plugin.particles.origins import origin_labels
from cryosparc_job.appending import appended
from cryosparc_job.cs_file import CsHost, Records, numbered, stacks_of
from cryosparc_job.groups import looks_like_particles, read_table
from cryosparc_job.posterior_file import read_posterior
from cryosparc_job.writing import predicted, write_particles

__all__ = ["appended", "looks_like_particles", "predicted", "read_particles", "write_particles"]

logger = logging.getLogger("cryoforum")

_CTF_FIELDS = (
    "ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad", "ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast",
)  # fmt: skip
_ROOTS_TO_TRY = 20


def read_particles(path: Path, data_root: Path | None = None) -> ParticleSet:
    """Read a cryoSPARC particle file, .cs or .csg; `groups.read_table` says which files are joined.

    data_root : what blob/path is relative to; default the file's own folder (of an export) or the project
    folder: the first folder from there up under which the images are found, else the current folder.
    Raises ParticleFileError naming file, row, field and remedy if the table is damaged or incomplete.
    """
    path = Path(path)
    records, compressed = read_table(path)
    _check(records, path)
    n = len(records)
    stacks, stack_index = stacks_of(records)
    root = (data_root or _project_folder(path, stacks)).absolute()
    slice_index = records["blob/idx"].astype(np.int64)
    rotation, shift_A = _poses(records, path)
    micrograph = _micrograph(records)
    slots, prediction = read_posterior(path, records, rotation, shift_A)
    sign = _numbers(records, "blob/sign", path) if "blob/sign" in _names(records) else np.ones(n)
    return ParticleSet(
        source=path,
        stacks=tuple(root / name for name in stacks),
        stack_index=stack_index,
        slice_index=slice_index,
        pixel_size_A=_pixel_size_A(records, path),
        rotation=rotation,
        shift_A=shift_A,
        ctf=_ctf(records, path),
        contrast_sign=np.where(sign < 0, -1.0, 1.0),
        optics_group=_first_known(records, ("ctf/exp_group_id", "location/exp_group_id")),
        half_set=half_sets_of(records),
        micrograph=micrograph,
        origin=_origin(records, stack_index, slice_index, micrograph),
        uid=records["uid"].astype(np.uint64),
        prediction=prediction,
        host=CsHost(records, compressed, slots, rotation, shift_A, root if _holds(root, stacks) else None),
    )


def half_sets_of(records: Records) -> IntArray:
    """Half set `(n,)` of each row, 1 or 2; 0 where the table has none."""
    if "alignments3D/split" not in _names(records):
        return np.zeros(len(records), dtype=np.int64)
    result: IntArray = records["alignments3D/split"].astype(np.int64) + 1
    return result


def _names(records: Records) -> tuple[str, ...]:
    return records.dtype.names or ()


def _check(records: Records, path: Path) -> None:
    """Raise ParticleFileError unless the table has rows and the fields of an image."""
    missing = [
        name for name in ("uid", "blob/path", "blob/idx", "blob/psize_A") if name not in _names(records)
    ]
    if missing:
        raise ParticleFileError(
            f"{path}: no field {', '.join(missing)}; cryoSPARC may keep it in the job's passthrough file: "
            "give the job's .csg, or export the particles and give that .cs"
        )
    if not len(records):
        raise ParticleFileError(f"{path}: holds no particles")


def _numbers(records: Records, name: str, path: Path) -> FloatArray:
    """Return a field as finite float64 `(n, ...)`; ParticleFileError names row and field otherwise."""
    values = np.asarray(records[name], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if bad.size:
        row = int(bad[0])
        more = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
        raise ParticleFileError(
            f"{path}: row {row + 1} (uid {records['uid'][row]}), field {name}: {records[name][row]} is not "
            f"a number{more}; remove the row"
        )
    return values


def _pixel_size_A(records: Records, path: Path, name: str = "blob/psize_A") -> FloatArray:
    size = _numbers(records, name, path)
    bad = np.flatnonzero(size <= 0)
    if bad.size:
        raise ParticleFileError(f"{path}: row {bad[0] + 1}: field {name} is not positive; correct it")
    return size


def _project_folder(path: Path, names: Collection[str]) -> Path:
    """Return the nearest folder above `path` under which one of the stacks exists, else the current one."""
    return next((folder for folder in path.absolute().parents if _holds(folder, names)), Path.cwd())


def _holds(folder: Path, names: Collection[str]) -> bool:
    return any((folder / name).exists() for name in islice(names, _ROOTS_TO_TRY))


def _poses(records: Records, path: Path) -> tuple[FloatArray | None, FloatArray | None]:
    """Orientations `(n, 4)` and shifts in Å `(n, 2)`, or None where there is no 3D alignment."""
    if "alignments3D/pose" not in _names(records):
        logger.info("%s: no 3D alignment (field alignments3D/pose), so no orientations to train on", path)
        return None, None
    rotation = rotation_vector_to_quaternion(_numbers(records, "alignments3D/pose", path))
    if "alignments3D/shift" not in _names(records):
        return rotation, np.zeros((len(records), 2))
    psize = "alignments3D/psize_A" if "alignments3D/psize_A" in _names(records) else "blob/psize_A"
    shift_px = _numbers(records, "alignments3D/shift", path)
    return rotation, shift_px * _pixel_size_A(records, path, psize)[:, None]


def _ctf(records: Records, path: Path) -> Ctf | None:
    """CTF parameters, or None where no defocus is given; ParticleFileError if only part is there."""
    missing = [name for name in _CTF_FIELDS if name not in _names(records)]
    if "ctf/df1_A" in missing and "ctf/df2_A" in missing:
        return None
    if missing:
        raise ParticleFileError(
            f"{path}: incomplete CTF parameters, no field {', '.join(missing)}; export it too"
        )
    u, v, angle, voltage, cs, amplitude = (_numbers(records, name, path) for name in _CTF_FIELDS)
    shift = "ctf/phase_shift_rad"
    phase = _numbers(records, shift, path) if shift in _names(records) else np.zeros_like(u)
    return Ctf(u, v, np.degrees(angle), voltage, cs, amplitude, np.degrees(phase))


def _first_known(records: Records, names: tuple[str, ...]) -> IntArray:
    """Return the first of the fields that is there as int64 `(n,)`, else zeros."""
    known = next((name for name in names if name in _names(records)), None)
    return np.zeros(len(records), np.int64) if known is None else records[known].astype(np.int64)


def _micrograph(records: Records) -> IntArray:
    for name in ("location/micrograph_uid", "location/micrograph_path"):
        if name in _names(records):
            return _labels(records[name])
    return np.full(len(records), -1, dtype=np.int64)


def _origin(records: Records, stack_index: IntArray, slice_index: IntArray, micrograph: IntArray) -> IntArray:
    """Label the rows of one physical particle alike: symmetry-expanded copies, or the same image."""
    image = stack_index * (int(slice_index.max()) + 1) + slice_index
    if "sym_expand/src_uid" in _names(records):
        return origin_labels(image, _labels(records["sym_expand/src_uid"]))
    place = ("location/center_x_frac", "location/center_y_frac", "location/micrograph_shape")
    if any(name not in _names(records) for name in place):
        return origin_labels(image)
    fraction = np.stack([records[name].astype(np.float64) for name in place[:2]], axis=1)
    position_px = fraction * records[place[2]][:, ::-1]  # shape is (ny, nx)
    return origin_labels(image, micrograph=micrograph, position_px=position_px)


def _labels(keys: NDArray[Any]) -> IntArray:
    """Number equal keys alike, from 0."""
    if keys.dtype.kind in "OS":
        return numbered(keys)[1]
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)

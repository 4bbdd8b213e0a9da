"""ParticleSet to .cs and .csg: the host's table with our fields changed or added, or a fresh table."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.formats import files_of
from cryoforum_plugin.geometry.rotations import quaternion_to_rotation_vector
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.particles import FloatArray, ParticleSet, Prediction
from cryoforum_plugin.particles.writable import Writable, writable
from cryosparc_job.cs_file import CsHost, Records, numbered, table_of, with_fields, write_records
from cryosparc_job.groups import GROUP_SUFFIX, group_text
from cryosparc_job.posterior_file import pack_posterior, posterior_path

SPLIT = "alignments3D/split"
SLOT_FIELDS = ("confidence", "expected_error_deg", "credible_radius_90_deg", "outlier_score")


def write_particles(
    particles: ParticleSet,
    path: Path,
    prediction: Prediction | None = None,
    overwrite: bool = False,
    data_root: Path | None = None,
) -> None:
    """Write particles as .cs, and beside it the side file with the posterior, if there is one.

    For `name.csg` the table is `name.cs`, and the .csg names it as the file of each of its slots.
    Poses are changed where they differ; confidence, expected error, credible radius and outlier score go
    to the first free components_mode_k, or to the slots an earlier prediction used. All other fields keep
    their bytes, type and order, the file its format; only paths that begin with `>`, for the table's own
    folder, are rewritten for an output in another folder. Rows that hold a NaN are written as unpredicted.
    Particles from elsewhere get a fresh table, image paths relative to `data_root`.
    Raises OutputError if an output exists and `overwrite` is false.
    """
    path = Path(path)
    table = files_of(path)[-1]
    written = predicted(particles, path, prediction, data_root)
    host = written.host
    side_prediction = written.prediction if host.slots or prediction is not None else None
    with (
        ExitStack() as outputs
    ):  # renamed last to first: the side file before the table, which it may be ahead of
        if path != table:
            group = outputs.enter_context(atomic_file(path, overwrite))
            group.write_text(group_text(host.records, table.name), encoding="utf-8")
        write_records(outputs.enter_context(atomic_file(table, overwrite)), host.records, host.compressed)
        if side_prediction is not None:
            side = outputs.enter_context(atomic_file(posterior_path(table), overwrite))
            with open(side, "wb") as file:
                np.savez(file, **pack_posterior(written.uid, side_prediction, host.slots))  # type: ignore[arg-type]
    if side_prediction is None:
        posterior_path(table).unlink(missing_ok=True)  # of the file just replaced


def predicted(
    particles: ParticleSet, path: Path, prediction: Prediction | None = None, data_root: Path | None = None
) -> ParticleSet:
    """Return the particles with the table that `write_particles` writes to `path`, and what it holds."""
    host = particles.host
    if not isinstance(host, CsHost):
        records = new_records(particles, path, data_root)
        host = CsHost(records, False, {}, particles.rotation, particles.shift_A)
    values = writable(particles, prediction, host.rotation, host.shift_A)
    fields, slots = _path_fields(host, particles.source.parent, path.parent), host.slots
    fields |= _pose_fields(host.records, values)
    if SPLIT not in (host.records.dtype.names or ()):
        fields |= _half_set_fields(particles)
    if values.prediction is not None:
        slots = _slots(host.records, values.prediction, slots)
        fields |= _slot_fields(values.prediction, slots)
    records = with_fields(host.records, fields) if fields else host.records
    return replace(
        particles,
        source=path,
        rotation=values.rotation,
        shift_A=values.shift_A,
        prediction=particles.prediction if values.prediction is None else values.prediction,
        host=replace(host, records=records, slots=slots, rotation=values.rotation, shift_A=values.shift_A),
    )


def _slots(records: Records, prediction: Prediction, known: dict[str, int]) -> dict[str, int]:
    """Give each scalar of the prediction its slot: the one it had, else the first free one."""
    modes = re.findall(r"components_mode_(\d+)/", " ".join(records.dtype.names or ()))
    taken = {int(mode) for mode in modes}
    slots = dict(known)
    for name in SLOT_FIELDS:
        if getattr(prediction, name) is not None and name not in slots:
            slots[name] = next(k for k in range(len(taken) + 1) if k not in taken)
            taken.add(slots[name])
    return {name: k for name, k in slots.items() if getattr(prediction, name) is not None}


def _slot_fields(prediction: Prediction, slots: dict[str, int]) -> dict[str, NDArray[Any]]:
    fields: dict[str, NDArray[Any]] = {}
    for name, k in slots.items():
        fields[f"components_mode_{k}/component"] = np.full(len(prediction), k, dtype="<u4")
        fields[f"components_mode_{k}/value"] = getattr(prediction, name).astype("<f4")
    return fields


def _path_fields(host: CsHost, source: Path, folder: Path) -> dict[str, NDArray[Any]]:
    """Return the path columns whose `>` must lead from `folder` to where the images were found."""
    here = os.path.realpath(folder)
    if host.root is None or here == os.path.realpath(source):
        return {}
    root, fields = os.path.realpath(host.root), dict[str, NDArray[Any]]()
    for name in host.records.dtype.names or ():
        if name.endswith("path"):
            paths, rows = numbered(host.records[name])
            moved = np.array([_moved(path, root, here) for path in paths])
            if any(path.startswith(b">") for path in moved.tolist()):
                fields[name] = moved[rows]
    return fields


def _moved(path: str, root: str, folder: str) -> bytes:
    """Return a path that begins with `>`, for `root`, with `>` for `folder`; others as they are."""
    if not path.startswith(">"):
        return path.encode()
    return os.fsencode(f">{os.path.relpath(os.path.join(root, path[1:]), folder)}")


def _pose_fields(records: Records, values: Writable) -> dict[str, NDArray[Any]]:
    """Return alignments3D/pose and /shift with the changed rows replaced, others bit for bit."""
    names, fields = records.dtype.names or (), dict[str, NDArray[Any]]()
    psize = next(n for n in ("alignments3D/psize_A", "blob/psize_A") if n in names)
    if values.rotation is not None and values.rotation_changed.any():
        pose = quaternion_to_rotation_vector(values.rotation).astype("<f4")
        fields["alignments3D/pose"] = _merge(records, "alignments3D/pose", pose, values.rotation_changed)
    if values.shift_A is not None and values.shift_changed.any():
        shift = (values.shift_A / records[psize].astype(np.float64)[:, None]).astype("<f4")
        fields["alignments3D/shift"] = _merge(records, "alignments3D/shift", shift, values.shift_changed)
    if fields and "alignments3D/psize_A" not in names:
        fields["alignments3D/psize_A"] = records["blob/psize_A"].astype("<f4")
    return fields


def _merge(records: Records, name: str, new: NDArray[Any], changed: NDArray[np.bool_]) -> NDArray[Any]:
    if name not in (records.dtype.names or ()):
        return new
    return np.where(changed[:, None], new, records[name])


def new_records(particles: ParticleSet, path: Path, data_root: Path | None = None) -> Records:
    """Build a cryoSPARC table (uid, blob, ctf, alignments3D, location) from particles of any origin.

    Image paths are relative to `data_root`, by default the nearest folder above `path` that holds all
    stacks. Raises ParticleFileError without CTF, ImageStackError if a stack cannot be read.
    """
    if particles.ctf is None:
        raise ParticleFileError(
            f"{particles.source}: no CTF parameters, which a .cs file needs; write .star instead"
        )
    n, ctf = len(particles), particles.ctf
    box_px = particles.box_px
    if box_px is None:
        box_px = StackReader(particles.stacks).header(int(particles.stack_index[0])).width
    stacks = [Path(os.path.abspath(stack)) for stack in particles.stacks]
    names = np.array([os.fsencode(name) for name in _relative(stacks, path, data_root)])
    fields: dict[str, NDArray[Any]] = {
        "uid": particles.uid.astype("<u8"),
        "blob/path": names[particles.stack_index],
        "blob/idx": particles.slice_index.astype("<u4"),
        "blob/shape": np.tile(np.array([box_px, box_px], "<u4"), (n, 1)),
        "blob/psize_A": particles.pixel_size_A.astype("<f4"),
        "blob/sign": particles.contrast_sign.astype("<f4"),
        "ctf/type": np.full(n, b"imported"),
        "ctf/exp_group_id": particles.optics_group.astype("<u4"),
        "ctf/accel_kv": ctf.voltage_kV.astype("<f4"),
        "ctf/cs_mm": ctf.spherical_aberration_mm.astype("<f4"),
        "ctf/amp_contrast": ctf.amplitude_contrast.astype("<f4"),
        "ctf/df1_A": ctf.defocus_u_A.astype("<f4"),
        "ctf/df2_A": ctf.defocus_v_A.astype("<f4"),
        "ctf/df_angle_rad": np.radians(ctf.defocus_angle_deg).astype("<f4"),
        "ctf/phase_shift_rad": np.radians(ctf.phase_shift_deg).astype("<f4"),
        "ctf/scale": np.ones(n, "<f4"),
        "ctf/scale_const": np.zeros(n, "<f4"),
    } | _alignment_fields(particles)
    if (particles.micrograph >= 0).all():
        fields["location/micrograph_uid"] = particles.micrograph.astype("<u8")
    return table_of(fields)


def _alignment_fields(particles: ParticleSet) -> dict[str, NDArray[Any]]:
    if particles.rotation is None:
        return {}
    shift_A: FloatArray = np.zeros((len(particles), 2)) if particles.shift_A is None else particles.shift_A
    fields: dict[str, NDArray[Any]] = {
        "alignments3D/shift": (shift_A / particles.pixel_size_A[:, None]).astype("<f4"),
        "alignments3D/pose": quaternion_to_rotation_vector(particles.rotation).astype("<f4"),
        "alignments3D/psize_A": particles.pixel_size_A.astype("<f4"),
    }
    return _half_set_fields(particles) | fields


def _half_set_fields(particles: ParticleSet) -> dict[str, NDArray[Any]]:
    """Half sets, counted from 0, where every particle has one."""
    known = len(particles) and (particles.half_set > 0).all()
    return {SPLIT: (particles.half_set - 1).astype("<u4")} if known else {}


def _relative(stacks: list[Path], path: Path, data_root: Path | None) -> list[str]:
    """Paths relative to the root where they lie inside it, else absolute; those of a .csg to its folder."""
    if path.suffix.lower() == GROUP_SUFFIX and data_root is None:
        return [f">{os.path.relpath(stack, os.path.realpath(path.parent))}" for stack in stacks]
    above = [data_root] if data_root is not None else list(Path(os.path.abspath(path)).parents)[:-1]
    for root in (Path(os.path.abspath(folder)) for folder in above):
        if data_root is not None or all(stack.is_relative_to(root) for stack in stacks):
            return [str(s.relative_to(root) if s.is_relative_to(root) else s) for s in stacks]
    return [str(stack) for stack in stacks]

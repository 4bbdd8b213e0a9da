"""Several particle sets as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles.particle_set import Ctf, FloatArray, IntArray, ParticleSet, Prediction


def concatenate(sets: Sequence[ParticleSet]) -> ParticleSet:
    """Join particle sets row after row; host and prediction are None, source names
    them all.

    Micrograph and origin labels of different sets stay apart, except where rows show the same image (same
    stack, same slice). uid stays what it was unless two sets share one; then it is the row number.
    Raises ParticleFileError if only some sets have orientations, or only some have CTF parameters.
    """
    stacks, stack_index = _merge_stacks(sets)
    slice_index = np.concatenate([s.slice_index for s in sets])
    place = stack_index * (int(slice_index.max(initial=0)) + 1) + slice_index
    image = np.unique(place, return_inverse=True)[1].reshape(-1)
    uid = np.concatenate([s.uid for s in sets])
    shared_uid = len(np.unique(uid)) < sum(len(np.unique(s.uid)) for s in sets)
    return ParticleSet(
        source=Path(", ".join(str(s.source) for s in sets)),
        stacks=stacks,
        stack_index=stack_index,
        slice_index=slice_index,
        pixel_size_A=np.concatenate([s.pixel_size_A for s in sets]),
        rotation=_rotation(sets),
        shift_A=_shift_A(sets),
        ctf=_ctf(sets),
        contrast_sign=np.concatenate([s.contrast_sign for s in sets]),
        optics_group=_apart([s.optics_group for s in sets]),
        half_set=np.concatenate([s.half_set for s in sets]),
        micrograph=_merge_labels([s.micrograph for s in sets], image),
        origin=_merge_labels([s.origin for s in sets], image),
        uid=np.arange(len(uid), dtype=np.uint64) if shared_uid else uid,
        prediction=None,
        host=None,
    )


def _merge_stacks(sets: Sequence[ParticleSet]) -> tuple[tuple[Path, ...], IntArray]:
    """One list of stacks, equal files once, and the index of each row into it."""
    numbers: dict[Path, int] = {}
    indices = []
    for s in sets:
        here = np.array(
            [numbers.setdefault(stack.resolve(), len(numbers)) for stack in s.stacks], dtype=np.int64
        )
        indices.append(here[s.stack_index])
    return tuple(numbers), np.concatenate(indices)


def _apart(labels: Sequence[IntArray]) -> IntArray:
    """Shift the labels of each set beyond those of the sets before it; negative ones stay."""
    shifted, offset = [], 0
    for label in labels:
        shifted.append(np.where(label < 0, label, label + offset))
        offset += int(label.max(initial=-1)) + 1
    return np.concatenate(shifted)


def _merge_labels(labels: Sequence[IntArray], image: NDArray[np.int64]) -> IntArray:
    """Labels that agree within a set or through a shared image; -1 stays -1."""
    apart = _apart(labels)
    known = apart >= 0
    if not known.any():
        return apart
    first_image = int(apart.max()) + 1  # label and image numbers are the two kinds of nodes of one graph
    size = first_image + int(image.max()) + 1
    links = (np.ones(known.sum()), (apart[known], first_image + image[known]))
    component = connected_components(coo_array(links, shape=(size, size)), directed=False)[1]
    merged = apart.copy()
    merged[known] = np.unique(component[apart[known]], return_inverse=True)[1]
    return merged


def _rotation(sets: Sequence[ParticleSet]) -> FloatArray | None:
    if all(s.rotation is None for s in sets):
        return None
    return np.concatenate([s.require_rotation() for s in sets])


def _shift_A(sets: Sequence[ParticleSet]) -> FloatArray | None:
    if all(s.shift_A is None for s in sets):
        return None
    return np.concatenate([np.zeros((len(s), 2)) if s.shift_A is None else s.shift_A for s in sets])


def _ctf(sets: Sequence[ParticleSet]) -> Ctf | None:
    parts = [s.ctf for s in sets if s.ctf is not None]
    if not parts:
        return None
    if len(parts) < len(sets):
        without = next(s.source for s in sets if s.ctf is None)
        raise ParticleFileError(
            f"{without}: no CTF parameters, unlike the other files; leave it out, or add them"
        )
    return Ctf(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Ctf)})


def appended(first: ParticleSet, second: ParticleSet, host: Any) -> ParticleSet:
    """Put the rows of `second` after those of `first`; `host` is their tables joined.

    Quick, for a table that grows: stacks and labels of the two stay apart, even where they are equal. Poses, CTF and
    predictions are kept where both have them.
    """
    rotations = [s.rotation for s in (first, second) if s.rotation is not None]
    shifts = [s.shift_A for s in (first, second) if s.shift_A is not None]
    predictions = [s.prediction for s in (first, second) if s.prediction is not None]
    return ParticleSet(
        source=first.source,
        stacks=(*first.stacks, *second.stacks),
        stack_index=np.concatenate([first.stack_index, second.stack_index + len(first.stacks)]),
        slice_index=np.concatenate([first.slice_index, second.slice_index]),
        pixel_size_A=np.concatenate([first.pixel_size_A, second.pixel_size_A]),
        rotation=np.concatenate(rotations) if len(rotations) == 2 else None,
        shift_A=np.concatenate(shifts) if len(shifts) == 2 else None,
        ctf=None if first.ctf is None or second.ctf is None else _ctf([first, second]),
        contrast_sign=np.concatenate([first.contrast_sign, second.contrast_sign]),
        optics_group=_apart([first.optics_group, second.optics_group]),
        half_set=np.concatenate([first.half_set, second.half_set]),
        micrograph=_apart([first.micrograph, second.micrograph]),
        origin=_apart([first.origin, second.origin]),
        uid=np.concatenate([first.uid, second.uid]),
        prediction=joined_predictions(predictions) if len(predictions) == 2 else None,
        host=host,
    )


def joined_predictions(parts: Sequence[Prediction]) -> Prediction:
    """One prediction of several; what one does not know, none does."""
    values: dict[str, Any] = {}
    for f in fields(Prediction):
        found = [getattr(part, f.name) for part in parts]
        values[f.name] = None if any(value is None for value in found) else np.concatenate(found)
    return Prediction(**values)

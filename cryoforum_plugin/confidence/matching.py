"""Which row of one table shows the same particle as a row of another; never by position."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable

import numpy as np

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import IntArray, ParticleSet

_SHOWN = 3


def match_rows(predicted: ParticleSet, reference: ParticleSet) -> IntArray:
    """Rows `(n,)` of `reference` that show the particles of `predicted`, in the order of `predicted`.

    Two files of cryoSPARC (.cs, .csg) are matched by uid, anything else by image: real path of the stack, and
    slice.

    Raises ParticleFileError if a particle is missing in `reference` or occurs there more than once.
    """
    if {predicted.source.suffix, reference.source.suffix} <= {".cs", ".csg"}:
        wanted: list[Hashable] = [int(uid) for uid in predicted.uid]
        known: list[Hashable] = [int(uid) for uid in reference.uid]
        kind = "uid"
    else:
        wanted, known, kind = _image_keys(predicted), _image_keys(reference), "image"
    row_of = {key: row for row, key in enumerate(known)}
    missing = [key for key in wanted if key not in row_of]
    if missing:
        raise ParticleFileError(
            f"{len(missing)} of {len(wanted)} particles of {predicted.source} are not in {reference.source} "
            f"(matched by {kind}; the first: {_show(missing)}); give the table they were predicted from, and "
            "--data-root if their image paths start elsewhere"
        )
    repeated = {key for key, count in Counter(known).items() if count > 1} & set(wanted)
    if repeated:
        raise ParticleFileError(
            f"{reference.source}: {len(repeated)} particles occur more than once (matched by {kind}; the "
            f"first: {_show(sorted(repeated, key=str))}); remove duplicates or symmetry-expanded copies"
        )
    return np.array([row_of[key] for key in wanted], dtype=np.int64)


def _image_keys(particles: ParticleSet) -> list[Hashable]:
    """(stack, slice) of each row; stacks by their real path."""
    names = [os.path.realpath(stack) for stack in particles.stacks]
    rows = zip(particles.stack_index.tolist(), particles.slice_index.tolist(), strict=True)
    return [(names[stack], index) for stack, index in rows]


def _show(keys: list[Hashable]) -> str:
    """First few keys; images as RELION writes them, 1-based."""
    texts = [f"{key[1] + 1}@{key[0]}" if isinstance(key, tuple) else str(key) for key in keys[:_SHOWN]]
    return ", ".join(texts)

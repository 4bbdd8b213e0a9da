"""Image names `000123@stack.mrcs` to stacks and 0-based slices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import IntArray
from relion_external.star import Table


@dataclass(frozen=True)
class ImageNames:
    """Stacks in order of first appearance, and for each row the stack's number and the 0-based slice."""

    stacks: tuple[Path, ...]
    stack_index: IntArray
    slice_index: IntArray
    single: bool  # no name holds an @


def parse_image_names(table: Table, root: Path) -> ImageNames:
    """Parse rlnImageName; paths are relative to `root`. A name without @ is a single image (slice 0).

    Raises ParticleFileError if the number before @ is not a whole number from 1.
    """
    numbers: dict[str, int] = {}
    stack_index = np.empty(len(table), dtype=np.int64)
    slice_index = np.zeros(len(table), dtype=np.int64)
    single = True
    for i, name in enumerate(table.strings("rlnImageName")):
        number, at, path = name.partition("@") if "@" in name else ("", "", name)
        if at:
            single = False
            if not number.isdecimal() or int(number) < 1 or not path:
                raise ParticleFileError(
                    f"{table.source}: {table.where(i)}: image name {name!r} is not of the form "
                    "<number from 1>@<stack>; correct it"
                )
            slice_index[i] = int(number) - 1
        stack_index[i] = numbers.setdefault(path, len(numbers))
    stacks = tuple(root.absolute() / path for path in numbers)
    return ImageNames(stacks, stack_index, slice_index, single)

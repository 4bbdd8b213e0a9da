"""A simulation on disk: the stack, the table(s), and the truth about junk."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.atomic import atomic_directory
from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.formats import write_particles
from cryoforum_plugin.images.stacks import write_stack
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.simulation.draw import Draw
from cryoforum_plugin.simulation.simulate import Simulator

PARTICLES_PER_MICROGRAPH = 50
JUNK_COLUMN = "cryoforumSimulatedJunk"
STACK = "particles.mrcs"


def particle_set(draw: Draw, pixel_size_A: float, box_px: int, stack: Path, source: Path) -> ParticleSet:
    """Describe drawn particles: half sets alternate, micrographs of 50 particles, one optics group."""
    n = len(draw)
    rows = np.arange(n)
    return ParticleSet(
        source=source,
        stacks=(stack,),
        stack_index=np.zeros(n, dtype=np.int64),
        slice_index=rows,
        pixel_size_A=np.full(n, pixel_size_A),
        rotation=draw.rotation,
        shift_A=draw.shift_A,
        ctf=draw.ctf,
        contrast_sign=np.ones(n),
        optics_group=np.ones(n, dtype=np.int64),
        half_set=rows % 2 + 1,
        micrograph=rows // PARTICLES_PER_MICROGRAPH + 1,
        origin=rows,
        uid=rows.astype(np.uint64),
        prediction=None,
        host=None,
        box_px=box_px,
    )


def split_names(n: int, split: tuple[float, float] | None) -> NDArray[np.str_]:
    """Name `(n,)` "train", "test" or "" of each row: the first rows train, the next test.

    Rows are drawn independently, so the first are as random as any; micrographs stay together.
    Raises SettingsError for fractions that are not positive or exceed 1 together.
    """
    names = np.full(n, "", dtype="<U5")
    if split is None:
        return names
    train, test = split
    if min(train, test) <= 0 or train + test > 1 + 1e-9:
        raise SettingsError(f"--split needs two positive fractions, together at most 1: got {train} {test}")
    cut, end = round(train * n), min(n, round((train + test) * n))
    if cut == 0 or end == cut:
        raise SettingsError(f"--split {train} {test} of {n} particles leaves one part empty")
    names[:cut], names[cut:end] = "train", "test"
    return names


def write_simulation(
    simulator: Simulator,
    draw: Draw,
    path: Path,
    suffix: str = ".star",
    split: tuple[float, float] | None = None,
    float16: bool = False,
    data_root: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write folder `path`: particles.mrcs, particles.star (or .cs), train and test tables, truth.csv.

    Tables name the stack relative to `data_root` (the current folder) where it lies inside, else
    absolutely. truth.csv has a row a particle: row (1-based), cryoforumSimulatedJunk (0 good, 1 pure noise,
    2 off-centre, 3 wrong particle), set. Raises OutputError if `path` exists and `overwrite` is false.
    """
    names = split_names(len(draw), split)
    owned = (
        STACK,
        "truth.csv",
        *(f"{name}{end}" for name in ("particles", "train", "test") for end in (".star", ".cs")),
    )
    with atomic_directory(path, owned, overwrite) as folder:
        images = _counted(simulator.images(draw), progress)
        write_stack(folder / STACK, images, simulator.pixel_size_A, "float16" if float16 else "float32")
        _write_truth(folder / "truth.csv", draw, names)
        # tables name the stack where it will lie when the folder is in its place
        particles = particle_set(draw, simulator.pixel_size_A, simulator.box_px, path / STACK, path)
        root = path if suffix == ".cs" and data_root is None else data_root
        _write_tables(particles, folder, suffix, names, root)


def _write_tables(
    particles: ParticleSet, folder: Path, suffix: str, names: NDArray[np.str_], data_root: Path | None
) -> None:
    write_particles(particles, folder / f"particles{suffix}", overwrite=True, data_root=data_root)
    for name in sorted(set(names.tolist()) - {""}):
        part = particles[np.flatnonzero(names == name)]
        write_particles(part, folder / f"{name}{suffix}", overwrite=True, data_root=data_root)


def _write_truth(path: Path, draw: Draw, names: NDArray[np.str_]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", JUNK_COLUMN, "set"])
        writer.writerows(zip(range(1, len(draw) + 1), draw.junk.tolist(), names.tolist(), strict=True))


def _counted(
    batches: Iterator[NDArray[np.float32]], progress: Callable[[int], None] | None
) -> Iterator[NDArray[np.float32]]:
    for batch in batches:
        yield batch
        if progress is not None:
            progress(len(batch))

"""Which adapter reads and writes which file suffix: the only place here that knows the hosts."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.particles.concatenation import concatenate

logger = logging.getLogger("cryoforum")

_ADAPTERS = {
    ".star": "relion_external.particles",
    ".cs": "cryosparc_job.dataset",
    ".csg": "cryosparc_job.dataset",
}


class Adapter(Protocol):
    """What an adapter module offers."""

    def read_particles(self, path: Path, data_root: Path | None = None) -> ParticleSet: ...

    def write_particles(
        self,
        particles: ParticleSet,
        path: Path,
        prediction: Prediction | None = None,
        overwrite: bool = False,
        data_root: Path | None = None,
    ) -> None: ...

    def predicted(
        self,
        particles: ParticleSet,
        path: Path,
        prediction: Prediction | None = None,
        data_root: Path | None = None,
    ) -> ParticleSet: ...

    def appended(self, done: ParticleSet, new: ParticleSet, source: Path) -> ParticleSet: ...

    def looks_like_particles(self, path: Path) -> bool: ...


def adapter_for(path: Path) -> Adapter:
    """Import and return the adapter for a path's suffix. Raises ParticleFileError for an unknown one."""
    module = _ADAPTERS.get(path.suffix.lower())
    if module is None:
        raise ParticleFileError(
            f"{path}: unknown kind of particle file; the name must end in .star, .cs or .csg"
        )
    return cast(Adapter, importlib.import_module(module))


def files_of(path: Path) -> list[Path]:
    """Return the files that writing particles to `path` makes, the table last: a .csg has it beside itself."""
    return [path, path.with_suffix(".cs")] if path.suffix.lower() == ".csg" else [path]


def is_table(path: Path) -> bool:
    """Tell by its suffix whether a path is of a particle table."""
    return path.suffix.lower() in _ADAPTERS


def suffixes_like(path: Path) -> tuple[str, ...]:
    """Return the suffixes of the tables that the adapter of `path` reads. Raises ParticleFileError for an unknown one."""
    adapter_for(path)
    module = _ADAPTERS[path.suffix.lower()]
    return tuple(suffix for suffix, other in _ADAPTERS.items() if other == module)


def parts_of(path: Path) -> list[Path]:
    """Return the files that a table's content may lie in: a .csg names .cs files, as a rule beside it."""
    return [path, *sorted(path.parent.glob("*.cs"))] if path.suffix.lower() == ".csg" else [path]


def seems_cut_short(path: Path) -> bool:
    """Tell whether a STAR file ends within a line: its last number may lack digits. Of other files reading tells."""
    if path.suffix.lower() != ".star":
        return False
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            return file.read(1) != b"\n"
    except OSError:
        return True


def read_particles(path: Path, data_root: Path | None = None) -> ParticleSet:
    """Read a particle file, .star, .cs or .csg; see the adapters for `data_root`.

    Raises ParticleFileError if the file is missing, of unknown kind, damaged or incomplete.
    """
    path = Path(path)
    adapter = adapter_for(path)
    if not path.is_file():
        raise ParticleFileError(f"{path}: no such file; check the name and the current folder")
    return adapter.read_particles(path, data_root)


def write_particles(
    particles: ParticleSet,
    path: Path,
    prediction: Prediction | None = None,
    overwrite: bool = False,
    data_root: Path | None = None,
) -> None:
    """Write a particle file in the format of `path`'s suffix, converting where it is not the host's.

    data_root : for conversions only, what the written image paths are relative to.
    Raises ParticleFileError for an unknown suffix or a conversion without CTF, OutputError if `path` exists.
    """
    path = Path(path)
    adapter = adapter_for(path)
    hosts = [_ADAPTERS.get(file.suffix.lower()) for file in (particles.source, path)]
    converted = particles.host is not None and hosts[0] != hosts[1]
    if converted:
        _check_conversion(particles, path)
        prediction = particles.prediction if prediction is None else prediction
    adapter.write_particles(particles, path, prediction, overwrite, data_root)


def _check_conversion(particles: ParticleSet, path: Path) -> None:
    """Raise ParticleFileError if the other host needs what is missing; warn of what it cannot hold."""
    if particles.ctf is None:
        raise ParticleFileError(
            f"{particles.source}: no CTF parameters, so it cannot become {path.name}; "
            f"give an output that ends in {particles.source.suffix}"
        )
    if path.suffix.lower() == ".star" and (particles.contrast_sign < 0).any():
        logger.warning(
            "%s: protein is dark in these images (blob/sign -1); RELION expects it bright, so invert the "
            "stacks before using %s there",
            particles.source,
            path,
        )


def read_many(paths: Sequence[Path], data_root: Path | None = None) -> ParticleSet:
    """Read several particle files as one set (`concatenate`); one file is returned as it is.

    Raises ParticleFileError as `read_particles`, or if `paths` is empty.
    """
    if not paths:
        raise ParticleFileError("no particle files given")
    sets = [read_particles(Path(path), data_root) for path in paths]
    return sets[0] if len(sets) == 1 else concatenate(sets)

"""One particle table from the files that cryoSPARC spreads an output of a job over.

`J42_005_particles.cs` holds the slots (blob, ctf, alignments3D, ...) that job J42 changed,
`J42_passthrough_particles.cs` those it took over, and `J42_particles.csg` (YAML) names the file of each slot,
`>` for its own folder. An export holds one .cs file with every slot, and its .csg.
"""

from __future__ import annotations

import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from cryoforum_plugin.errors import ParticleFileError
from cryosparc_job.cs_file import Records, read_records, read_slots, slots_of
from cryosparc_job.joining import joined, overlap
from cryosparc_job.posterior_file import posterior_path

logger = logging.getLogger("cryoforum")

GROUP_SUFFIX = ".csg"
_NEEDED = {"blob", "ctf", "alignments3D"}
_LAYOUT_VERSION = "v4.4.1"  # the cryoSPARC whose .csg files ours are like
_RESULT_TYPES = {r"components_mode_\d+": "components", r"alignments_class_\d+": "alignments3D"}


def read_table(path: Path) -> tuple[Records, bool]:
    """Return the table of a .cs file or .csg group and whether its first file was compressed.

    A .csg is all its files joined. A .cs file that lacks a slot takes it from the files that a .csg beside it
    names, or else from the passthrough file of its job beside it. The first file, or the one given, decides
    the rows and their order, and wins where a slot is in both.
    Raises ParticleFileError if a file is missing or damaged, or if the files share no particle.
    """
    if path.suffix.lower() != GROUP_SUFFIX:
        records, compressed = read_records(path)
        return _completed(records, path), compressed
    first, *others = read_group(path)
    records, compressed = read_records(first)
    for other in others:
        records = joined(records, path, read_records(other)[0], other)
    return records, compressed


def read_group(path: Path) -> list[Path]:
    """Return the .cs files that a .csg file names, passthrough files last.

    Raises ParticleFileError if it is damaged, not of particles, or names a file that is missing.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind = content["group"]["type"]
        names = [result.get("metafile") for result in content["results"].values()]
        files = dict.fromkeys(_find(path.absolute().parent, name) for name in names if name)
    except OSError as error:
        raise ParticleFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ParticleFileError(
            f"{path}: damaged .csg file, or none of cryoSPARC's; copy or export it again"
        ) from error
    if kind != "particle":
        raise ParticleFileError(
            f"{path}: a group of type {kind}, not particle; give the .csg of the job's particles"
        )
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        what = f"the file it names, {missing[0]}, is missing" if missing else "it names no .cs file"
        raise ParticleFileError(f"{path}: {what}; copy it beside the .csg, or export the particles again")
    return sorted(files, key=_is_passthrough)


def looks_like_particles(path: Path) -> bool:
    """Tell from a file's head whether it is a particle table to take from a folder.

    Tables that cryoforum predicted are not, nor .cs files that a .csg beside them names, which stands for them,
    nor passthrough files.
    """
    table = path.with_suffix(".cs")
    if posterior_path(table).is_file():
        return False
    if path.suffix.lower() == GROUP_SUFFIX:
        group = _content(path).get("group")
        return isinstance(group, dict) and group.get("type") == "particle"
    groups = path.parent.glob(f"*{GROUP_SUFFIX}")
    named = {Path(name.removeprefix(">")).name for group in groups for name in _metafiles(_content(group))}
    return not _is_passthrough(path) and path.name not in named and "blob" in read_slots(path)


def _content(group: Path) -> dict[str, Any]:
    """What a .csg file holds; nothing where that cannot be read."""
    try:
        content = yaml.safe_load(group.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _metafiles(content: dict[str, Any]) -> list[str]:
    results = content.get("results")
    found = (
        [r.get("metafile") for r in results.values() if isinstance(r, dict)]
        if isinstance(results, dict)
        else []
    )
    return [name for name in found if isinstance(name, str)]


def _find(folder: Path, name: str) -> Path:
    """Return where a metafile lies: `>` in the .csg's folder, else there or in the project folder above."""
    beside = folder / name.removeprefix(">")
    above = [] if name.startswith(">") else folder.parents
    return next((path for path in (beside, *(f / name for f in above)) if path.is_file()), beside)


def group_text(records: Records, table_name: str) -> str:
    """Return a .csg file for a table beside it, as cryoSPARC's Import Result Group wants it."""
    results = {}
    for slot in sorted(slots_of(records)):
        kind = next((kind for name, kind in _RESULT_TYPES.items() if re.fullmatch(name, slot)), slot)
        results[slot] = {
            "metafile": f">{table_name}",
            "num_items": len(records),
            "type": f"particle.{kind}",
        }
    group = {
        "description": "Written by cryoforum",
        "name": "particles",
        "title": "Particles",
        "type": "particle",
    }
    return yaml.safe_dump(
        {"created": datetime.now(), "group": group, "results": results, "version": _LAYOUT_VERSION}
    )


def _completed(records: Records, path: Path) -> Records:
    """Return the table with the slots it lacks, from other files of its output where these are known.

    Rows are left out for want of images only.
    """
    if slots_of(records) >= _NEEDED or "uid" not in (records.dtype.names or ()):
        return records
    named = _named_together(path)
    others, log = (named, logger.info) if named else (_passthrough_beside(path), logger.warning)
    while lacking := _NEEDED - slots_of(records):
        usable = [other for other in others if lacking & read_slots(other)]
        if not usable:
            break
        # a job passes the same values on to each of its outputs: the one with most of the particles will do
        tables = ((read_records(other)[0], other) for other in usable)
        table, other = max(tables, key=lambda pair: (overlap(records, path, *pair), -len(pair[0])))
        others.remove(other)
        shared = overlap(records, path, table, other)
        if shared == len(records) or (shared and "blob" in lacking):
            added = ", ".join(sorted(slots_of(table) - slots_of(records)))
            log("%s: took %s from %s, joined by uid", path, added, other.name)
            records = joined(records, path, table, other)
    return records


def _named_together(path: Path) -> list[Path]:
    """Return the files that .csg files beside a .cs file name together with it."""
    path, together = path.absolute(), dict[Path, None]()
    for group in sorted(path.parent.glob(f"*{GROUP_SUFFIX}")):
        try:
            files = read_group(group)
        except ParticleFileError:  # nobody asked for this one
            continue
        if path in files:
            together |= dict.fromkeys(files)
    return [file for file in together if file != path]


def _passthrough_beside(path: Path) -> list[Path]:
    """Return the passthrough files of its job beside a .cs file; none if that is uncertain."""
    if _is_passthrough(path):
        return []
    job = _job(path)
    beside = filter(_is_passthrough, sorted(path.parent.glob("*.cs")))
    found = [other for other in beside if job is None or _job(other) in (job, None)]
    if len({_job(other) for other in found} - {None}) > 1:
        names = ", ".join(other.name for other in found)
        logger.warning("%s: nothing taken from %s, which are of several jobs; give the .csg", path, names)
        return []
    return found


def _is_passthrough(path: Path) -> bool:
    return "passthrough" in path.name


def _job(path: Path) -> str | None:
    """Return the job in a file's name, J42, or else in that of its folder."""
    for name in (path.stem, path.absolute().parent.name):
        if match := re.search(r"(?<![A-Za-z0-9])J\d+(?![A-Za-z0-9])", name):
            return match[0]
    return None

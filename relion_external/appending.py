"""Rows of one STAR file after those of another: optics groups merged by name, columns those of the first."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import ParticleSet, concatenation
from relion_external.star import Table
from relion_external.tokens import quote, unquote

logger = logging.getLogger("cryoforum")

GROUP, NAME = "rlnOpticsGroup", "rlnOpticsGroupName"


def appended(done: ParticleSet, new: ParticleSet, source: Path) -> ParticleSet:
    """Put the rows of `new` after those of `done`, both of STAR files and with the columns they are to be written with.

    source : the table that `new` came from, for messages.
    Columns that only `new` has are left out with a warning. An optics group of a known name is that group where
    everything else is the same too; else it comes in with a new number, and a new name (name_2) where that is taken.
    Raises ParticleFileError if `new` lacks a column, or if the optics tables have different columns.
    """
    first, second = (particles.host.document.table("optics") for particles in (done, new))
    optics, numbers = _merged_optics(first, second, new, source)
    host, rows = done.host, new.host.particles
    if GROUP in host.particles and (GROUP not in rows or any(old != now for old, now in numbers.items())):
        groups = [str(numbers.get(group, group)) for group in new.optics_group.tolist()]
        rows = rows.with_columns({GROUP: groups})
    joined = _joined(host.particles, rows, source)
    if optics is not None and len(optics) > 1 and GROUP not in host.particles:
        raise ParticleFileError(
            f"{source}: another optics group, but {done.source} has no column _{GROUP}; keep them apart"
        )
    host = host.with_particles(joined)
    if optics is not None:
        place = next(i for i, table in enumerate(host.document.tables) if table.name == "optics")
        host = replace(host, document=host.document.with_table(place, optics))
    result = concatenation.appended(done, new, host)
    return replace(result, host=replace(host, rotation=result.rotation, shift_A=result.shift_A))


def _joined(first: Table, second: Table, source: Path) -> Table:
    """Rows of `second` after those of `first`, in its columns."""
    first = first if first.loop else first.as_loop()
    lacking = [label for label in first.labels if label not in second]
    if lacking:
        raise ParticleFileError(
            f"{source}: no column {_listed(lacking)}, which the particles before it have; keep them apart"
        )
    surplus = [label for label in second.labels if label not in first]
    if surplus:
        logger.warning("%s: left out %s, which the particles before it do not have", source, _listed(surplus))
    rows, remarks = tuple(second.rows), second.remarks if second.loop else {}
    if second.labels != first.labels:
        rows = tuple(" ".join(tokens) for tokens in zip(*map(second.tokens, first.labels), strict=True))
    moved = {len(first) + row: lines for row, lines in remarks.items()}
    return replace(first, rows=(*first.rows, *rows), remarks=first.remarks | moved)


def _merged_optics(
    first: Table | None, second: Table | None, new: ParticleSet, source: Path
) -> tuple[Table | None, dict[int, int]]:
    """Return the optics table with the groups that `new` uses, and the number of each of them in it."""
    if (first is None) != (second is None):
        which = "no optics table (RELION 3.0)" if second is None else "an optics table (RELION 3.1 or later)"
        raise ParticleFileError(
            f"{source}: {which}, unlike the particles before it; convert it with relion_convert_star"
        )
    if first is None or second is None:
        return None, {}
    if set(first.labels) != set(second.labels):
        differing = _listed(sorted(set(first.labels) ^ set(second.labels)))
        raise ParticleFileError(
            f"{source}: data_optics has other columns than that of the particles before it ({differing}); keep "
            "them apart, or make the tables alike"
        )
    merged, numbers = (first if first.loop else first.as_loop()), dict[int, int]()
    used = set(np.unique(new.optics_group).tolist())
    for group in _groups(second):
        if _number(group) in used:
            merged, numbers[_number(group)] = _with_group(merged, group, source)
    return merged, numbers


def _groups(optics: Table) -> list[dict[str, str]]:
    """Tokens of each optics group by label."""
    columns = map(optics.tokens, optics.labels)
    return [dict(zip(optics.labels, row, strict=True)) for row in zip(*columns, strict=True)]


def _number(group: dict[str, str]) -> int:
    return int(float(group[GROUP]))


def _name(group: dict[str, str]) -> str:
    return unquote(group.get(NAME, ""))


def _with_group(optics: Table, group: dict[str, str], source: Path) -> tuple[Table, int]:
    """Return the table with `group` in it, and its number there."""
    known, name = _groups(optics), _name(group)
    own_name = re.compile(rf"{re.escape(name)}(_\d+)?")
    for other in known:
        if own_name.fullmatch(_name(other)) and _alike(group, other):
            return optics, _number(other)
    names = {_name(other) for other in known if NAME in other}
    number = max(map(_number, known), default=0) + 1
    added = group | {GROUP: str(number)}
    if name in names:
        free = next(n for k in range(2, len(names) + 3) if (n := f"{name}_{k}") not in names)
        added[NAME] = quote(free)
        logger.warning(
            "%s: optics group %s is not what it is in the particles before it; it becomes %s",
            source, name, free,
        )  # fmt: skip
    row = " ".join(added[label] for label in optics.labels)
    return replace(optics, rows=(*optics.rows, row)), number


def _alike(group: dict[str, str], other: dict[str, str]) -> bool:
    """Tell whether two groups agree in all but number and name, numbers to 1e-6."""
    return all(_same(token, other[label]) for label, token in group.items() if label not in (GROUP, NAME))


def _same(a: str, b: str) -> bool:
    try:
        return a == b or bool(np.isclose(float(a), float(b), rtol=1e-6, atol=0.0))
    except ValueError:
        return False


def _listed(labels: list[str]) -> str:
    return ", ".join(f"_{label}" for label in labels)

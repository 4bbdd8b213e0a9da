"""Rows of one .cs table after those of another: fields are those of the first, our slots matched by what they hold."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import ParticleSet, concatenation
from cryosparc_job.cs_file import CsHost, Records, field_types, slots_of, table_of

logger = logging.getLogger("cryoforum")


def appended(done: ParticleSet, new: ParticleSet, source: Path) -> ParticleSet:
    """Put the rows of `new` after those of `done`, both of .cs files and with the fields they are to be written with.

    source : the table that `new` came from, for messages.
    Fields that only `new` has are left out with a warning.
    Raises ParticleFileError if `new` lacks a field, if a field cannot hold its values, or if its image paths start in
    another folder.
    """
    host, other = done.host, new.host
    _check_root(host, other, source)
    columns = _columns(host, other, source)
    types = field_types(host.records)
    for name, column in columns.items():
        if column.shape[1:] != types[name][1]:
            raise ParticleFileError(f"{source}: field {name} has another shape than in {done.source}")
        types[name] = (_common_type(name, np.dtype(types[name][0]), column, source), types[name][1])
    alike = {
        name: column.astype(types[name][0]) for name, column in columns.items()
    }  # u8 and i8 would join as f8
    records = table_of(
        {name: np.concatenate([host.records[name], column]) for name, column in alike.items()}, types
    )
    result = concatenation.appended(done, new, None)
    joined = replace(host, records=records, rotation=result.rotation, shift_A=result.shift_A)
    return replace(result, host=joined)


def _common_type(name: str, known: np.dtype[Any], column: NDArray[Any], source: Path) -> np.dtype[Any]:
    """Return the type of the joined field: that of the first table, with room for the longer texts of both."""
    texts = [dtype.kind in "SU" for dtype in (known, column.dtype)]
    if all(texts):
        return np.promote_types(known, column.dtype)
    with np.errstate(all="ignore"):
        fits = not any(texts) and (np.can_cast(column.dtype, known) or _equal(column.astype(known), column))
    if not fits:
        raise ParticleFileError(
            f"{source}: field {name} holds values ({column.dtype}) that do not fit that of the particles before it "
            f"({known}); keep them apart"
        )
    return known


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return np.array_equal(a, b, equal_nan=all(column.dtype.kind in "fc" for column in (a, b)))


def _columns(host: CsHost, other: CsHost, source: Path) -> dict[str, NDArray[Any]]:
    """Return the columns of `other` under the names they have in `host`."""
    ours = {host.slots[name]: k for name, k in other.slots.items() if name in host.slots}
    slot_of = {f"components_mode_{k}": f"components_mode_{ours[k]}" for k in ours}
    known = other.records.dtype.names or ()
    lacking, columns = list[str](), dict[str, NDArray[Any]]()
    for name in host.records.dtype.names or ():
        slot, _, rest = name.partition("/")
        theirs = f"{slot_of.get(slot, slot)}/{rest}" if rest else name
        if theirs not in known or (slot not in slot_of and _is_ours(slot, other)):
            lacking.append(name)
        elif slot in slot_of and rest == "component":
            columns[name] = np.full(len(other.records), int(slot.rsplit("_", 1)[1]), dtype="<u4")
        else:
            columns[name] = other.records[theirs]
    if lacking:
        raise ParticleFileError(
            f"{source}: no field {', '.join(lacking)}, which the particles before it have; keep them apart"
        )
    _warn_of_surplus(host.records, other, source)
    return columns


def _is_ours(slot: str, host: CsHost) -> bool:
    return slot in {f"components_mode_{k}" for k in host.slots.values()}


def _warn_of_surplus(records: Records, other: CsHost, source: Path) -> None:
    names = set(records.dtype.names or ())
    surplus = [
        name
        for name in other.records.dtype.names or ()
        if name not in names and not any(_is_ours(slot, other) for slot in slots_of([name]))
    ]
    if surplus:
        logger.warning(
            "%s: left out %s, which the particles before it do not have", source, ", ".join(surplus)
        )


def _check_root(host: CsHost, other: CsHost, source: Path) -> None:
    """Refuse paths that start in another folder: joined, they would lead to other images."""
    if host.root is None or other.root is None:
        return
    roots = [os.path.realpath(root) for root in (host.root, other.root)]
    if roots[0] != roots[1] and any(not path.startswith(b">") for path in _paths(other.records)):
        raise ParticleFileError(
            f"{source}: its image paths start in {roots[1]}, those of the particles before it in {roots[0]}; "
            "keep them apart"
        )


def _paths(records: Records) -> list[bytes]:
    return [p if isinstance(p, bytes) else str(p).encode() for p in np.unique(records["blob/path"]).tolist()]

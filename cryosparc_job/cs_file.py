"""`.cs` files as NumPy structured arrays, in NumPy's or cryoSPARC's own compressed (CSDAT) format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import FloatArray, IntArray

_NUMPY_MAGIC, _CSDAT_MAGIC = b"\x93NUMPY", b"\x95CSDAT"
_MAX_HEADER = 1 << 24  # NumPy's own limit is too short for wide tables
ROWS_AT_ONCE = 2048  # of a table that is filled column by column: they stay in the processor's cache
Records = NDArray[np.void]


@dataclass(frozen=True)
class CsHost:
    """The table behind a particle set; `[rows]` subsets it.

    slots : which components_mode_k are ours, by Prediction field.
    rotation `(n, 4)`, shift_A `(n, 2)` : the poses the table holds, or None.
    root : the folder in which its image paths were found to start, else None.
    """

    records: Records
    compressed: bool
    slots: dict[str, int]
    rotation: FloatArray | None
    shift_A: FloatArray | None
    root: Path | None = None

    def __getitem__(self, rows: Any) -> CsHost:
        rotation = None if self.rotation is None else self.rotation[rows]
        shift_A = None if self.shift_A is None else self.shift_A[rows]
        return replace(self, records=self.records[rows], rotation=rotation, shift_A=shift_A)


def read_records(path: Path) -> tuple[Records, bool]:
    """Return the table of a .cs file and whether it was compressed (CSDAT).

    Raises ParticleFileError if it is missing, empty, not a .cs file or damaged, or if it is compressed
    and cryosparc-tools is not installed.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
        if magic == _CSDAT_MAGIC:
            return _read_csdat(path), True
        if magic != _NUMPY_MAGIC:
            what = "the file is empty" if not magic else "not a .cs file"
            raise ParticleFileError(f"{path}: {what}; give the particles.cs of a cryoSPARC job or export")
        records = np.load(path, allow_pickle=False, max_header_size=_MAX_HEADER)
    except OSError as error:
        raise ParticleFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else "cut short"
        raise ParticleFileError(f"{path}: damaged .cs file ({reason}); copy or export it again") from error
    if records.dtype.names is None or records.ndim != 1:
        raise ParticleFileError(f"{path}: not a .cs file but a plain NumPy array; give a particles.cs")
    return records, False


def read_slots(path: Path) -> set[str]:
    """Return the slots of a .cs file from its header alone; none if that cannot be read."""
    try:
        with open(path, "rb") as file:
            if file.read(len(_CSDAT_MAGIC)) == _CSDAT_MAGIC:
                return slots_of(field[0] for field in _csdat_header(file)["dtype"])
        return slots_of(np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=_MAX_HEADER))
    except (OSError, ValueError, EOFError, KeyError):
        return set()


def slots_of(fields: Records | Iterable[str]) -> set[str]:
    """Return the slots that fields belong to: `ctf` of `ctf/df1_A`."""
    names = (fields.dtype.names or ()) if isinstance(fields, np.ndarray) else fields
    return {name.split("/")[0] for name in names if "/" in name}


def write_records(path: Path, records: Records, compressed: bool) -> None:
    """Write a table in the format it came in; `path` is overwritten."""
    if not compressed:
        with open(path, "wb") as file:
            np.save(file, records, allow_pickle=False)
        return
    dataset = _dataset_module(path)
    dataset.Dataset(records).save(str(path), format=dataset.CSDAT_FORMAT)


def _read_csdat(path: Path) -> Records:
    dataset = _dataset_module(path)
    _check_csdat(path)
    try:
        return records_of(dataset.Dataset.load(str(path)))
    except Exception as error:  # the client raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ParticleFileError(f"{path}: damaged .cs file ({reason}); copy or export it again") from error


def records_of(dataset: Any) -> Records:
    """Return a Dataset of cryosparc-tools as a table, its texts as bytes."""
    columns = {name: np.asarray(dataset[name]) for name in dataset.fields()}
    return table_of(
        {name: _fixed(column) if column.dtype == object else column for name, column in columns.items()}
    )


def _fixed(column: NDArray[Any]) -> NDArray[np.bytes_]:
    """Return a text column as bytes of one length, which end in NUL as cryoSPARC's do."""
    names, number = numbered(column)
    return np.array([name.encode() + b"\0" for name in names], dtype=bytes)[number]


def _check_csdat(path: Path) -> None:
    """Raise ValueError if a compressed file is cut short: cryosparc-tools 5.0 would crash on it.

    Layout: magic, header length and JSON header, per column its length and bytes, texts ending in NUL.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(len(_CSDAT_MAGIC))
        header = _csdat_header(file)
        for _ in header["dtype"] if header["length"] else []:
            file.seek(int.from_bytes(file.read(4), "little"), os.SEEK_CUR)
        if file.tell() >= size:
            raise ValueError("cut short")
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\0":
            raise ValueError("cut short")


def _csdat_header(file: BinaryIO) -> Any:
    """Return the header of a compressed file that is open behind its magic; ValueError if it is cut short."""
    length = int.from_bytes(file.read(4), "little")
    header = file.read(length)
    if not length or len(header) < length:
        raise ValueError("cut short")
    return json.loads(header)


def _dataset_module(path: Path) -> Any:
    try:
        from cryosparc import dataset
    except ImportError as error:
        raise ParticleFileError(
            f"{path}: a compressed .cs file needs cryosparc-tools; run: pip install 'cryoforum[cryosparc]'"
        ) from error
    return dataset


def with_fields(records: Records, fields: dict[str, NDArray[Any]]) -> Records:
    """Replace or append fields `(n, ...)`; replaced ones keep their type, all others bytes and order.

    Texts that became longer get a longer type.
    """
    known = field_types(records)
    longer = {
        name: (value.dtype, ())
        for name, value in fields.items()
        if name in known and value.dtype.kind == "S" and value.itemsize > known[name][0].itemsize
    }
    added = {name: (value.dtype, value.shape[1:]) for name, value in fields.items() if name not in known}
    if longer or added:
        columns = {name: fields.get(name, records[name]) for name in known} | fields
        return table_of(columns, known | longer | added)
    changed = records.copy()
    for name, value in fields.items():
        changed[name] = value
    return changed


FieldTypes = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def field_types(records: Records) -> FieldTypes:
    """Return type and shape of each field."""
    dtype = records.dtype
    return {name: (dtype[name].base, dtype[name].shape) for name in dtype.names or ()}


def as_dtype(types: FieldTypes) -> np.dtype[np.void]:
    """Return the type of a table with these fields."""
    return np.dtype([(name, *kind) for name, kind in types.items()])


def table_of(columns: dict[str, NDArray[Any]], types: FieldTypes | None = None) -> Records:
    """Return columns `(n, ...)` as a table, of their own types if none are given."""
    own = {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}
    records = np.empty(len(next(iter(columns.values()))), dtype=as_dtype(types or own))
    pairs = [(records[name], column) for name, column in columns.items()]
    for start in range(0, len(records), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        for target, column in pairs:
            target[rows] = column[rows]
    return records


def numbered(column: NDArray[Any]) -> tuple[list[str], IntArray]:
    """Return the distinct values of a text column as `texts` does, in order, and each row's number `(n,)`."""
    numbers: dict[Any, int] = {}
    number = np.fromiter((numbers.setdefault(value, len(numbers)) for value in column), np.int64, len(column))
    return texts(np.array(list(numbers), dtype=column.dtype)), number


def stacks_of(records: Records) -> tuple[list[str], IntArray]:
    """Paths of the stacks without `>`, and the number of each row's `(n,)`."""
    paths, path_index = numbered(records["blob/path"])
    numbers: dict[str, int] = {}
    stack_of_path = [numbers.setdefault(path.removeprefix(">"), len(numbers)) for path in paths]
    return list(numbers), np.array(stack_of_path, dtype=np.int64)[path_index]


def texts(column: NDArray[Any]) -> list[str]:
    """Return a text column as str, whether its type is bytes, str or object."""
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in column.tolist()]

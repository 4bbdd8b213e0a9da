"""STAR documents that come out as they went in.

The `starfile` package is not lossless: it turns `nan` into `<NA>`, cuts `x#y` to `x`, drops a second
block of the same name and all comments, and rewrites every number. Here each line is kept as text, and
only the tokens that are replaced change; the tests use starfile as an independent reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import FloatArray, IntArray
from relion_external.rows import Cells, Rows, edited_rows, new_rows, parse_numbers
from relion_external.tokens import is_plain, split_row, unquote

_ROWS_AT_ONCE = 5000


@dataclass(frozen=True)
class Table:
    """One loop, or one list of `_label value` pairs (then one row), of a STAR file.

    name : what follows `data_`. labels : without the underscore. line : number of the first row's line.
    head : the raw lines before the rows; rows : raw text of each row; tail : raw lines after them.
    remarks : raw comment lines inside the table, by the row they precede.
    """

    source: Path
    name: str
    labels: tuple[str, ...]
    head: tuple[str, ...]
    rows: Rows
    tail: tuple[str, ...] = ()
    loop: bool = True
    line: int = 0
    remarks: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, label: object) -> bool:
        return label in self.labels

    def __getitem__(self, rows: Any) -> Table:
        """Rows by index array, slice or boolean mask, in the order asked for."""
        table = self if self.loop else self.as_loop()
        kept, lines = np.arange(len(table))[rows].tolist(), tuple(table.rows)
        remarks = {new: table.remarks[old] for new, old in enumerate(kept) if old in table.remarks}
        return replace(table, rows=tuple(lines[i] for i in kept), remarks=remarks)

    def tokens(self, label: str) -> Iterator[str]:
        """Yield the raw tokens of a column."""
        at = self.labels.index(label)
        for row in self.rows:
            yield row.split(None, at + 1)[at] if is_plain(row) else split_row(row)[at]

    def strings(self, label: str) -> Iterator[str]:
        """Yield the unquoted text of a column."""
        return map(unquote, self.tokens(label))

    def numbered(self, label: str) -> IntArray:
        """Number equal texts of a column alike, in order of appearance from 0."""
        numbers: dict[str, int] = {}
        found = (numbers.setdefault(text, len(numbers)) for text in self.strings(label))
        return np.fromiter(found, np.int64, len(self))

    def numbers(self, *labels: str) -> dict[str, FloatArray]:
        """Return columns as finite float64 `(n,)`; ParticleFileError names row and column otherwise."""
        values = {label: np.empty(len(self)) for label in labels}
        places, rows, start = [self.labels.index(label) for label in labels], iter(self.rows), 0
        while places and (lines := list(islice(rows, _ROWS_AT_ONCE))):
            columns = parse_numbers(lines, places).T
            for label, column in zip(labels, columns, strict=True):
                self._refuse_bad(label, column, lines, start)
                values[label][start : start + len(lines)] = column
            start += len(lines)
        return values

    def _refuse_bad(self, label: str, values: FloatArray, lines: Sequence[str], start: int) -> None:
        """Raise ParticleFileError if one of `values` `(m,)` of the rows from `start` on is not finite."""
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            row = int(bad[0])
            token = split_row(lines[row])[self.labels.index(label)]
            more = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
            raise ParticleFileError(
                f"{self.source}: {self.where(start + row)}, column _{label}: {token!r} is not a number{more}; "
                "correct the value or remove the row"
            )

    def where(self, row: int) -> str:
        """Name row `row` (0-based) for a message."""
        before = sum(len(lines) for at, lines in self.remarks.items() if at <= row)
        line = f" (line {self.line + row + before})" if self.line else ""
        return f"row {row + 1}{line} of data_{self.name}"

    def as_loop(self) -> Table:
        """Return a list of pairs as a loop of one row."""
        head = (
            f"data_{self.name}",
            "",
            "loop_",
            *(f"_{label} #{i}" for i, label in enumerate(self.labels, 1)),
        )
        return replace(self, head=head, loop=True, remarks={})

    def with_columns(self, columns: Mapping[str, Cells]) -> Table:
        """Replace or append columns; every other token and blank stays as it was.

        The rows are made when they are written.
        """
        table = self if self.loop else self.as_loop()
        if not columns:
            return table
        changed = {table.labels.index(label): columns[label] for label in columns if label in table.labels}
        added = [label for label in columns if label not in table.labels]
        count = len(table.labels)
        new_labels = [f"_{label} #{count + i}" for i, label in enumerate(added, 1)]
        rows = edited_rows(tuple(table.rows), count, changed, [columns[label] for label in added])
        last = max(i for i, line in enumerate(table.head) if line.strip()) + 1  # the last label line
        head = (*table.head[:last], *new_labels, *table.head[last:])
        return replace(table, labels=(*table.labels, *added), head=head, rows=rows)

    def lines(self) -> Iterator[str]:
        """Yield the raw lines of this table."""
        yield from self.head
        if self.loop and not self.remarks:
            yield from self.rows
        elif self.loop:  # the values of pairs stand in the head
            for i, row in enumerate(self.rows):
                yield from self.remarks.get(i, ())
                yield row
        yield from self.tail


def new_table(source: Path, name: str, columns: Mapping[str, Cells]) -> Table:
    """Build a loop, aligned as RELION aligns it; the rows are made when they are written."""
    head = ["", "# version 30001", "", f"data_{name}", "", "loop_"]
    head += [f"_{label} #{i}" for i, label in enumerate(columns, 1)]
    return Table(source, name, tuple(columns), tuple(head), new_rows(list(columns.values())), tail=("",))


@dataclass(frozen=True)
class StarDocument:
    """A whole STAR file: `preamble` lines before the first block, then tables in their order."""

    source: Path
    preamble: tuple[str, ...]
    tables: tuple[Table, ...]

    def table(self, name: str) -> Table | None:
        """Return the first table called `name`, or None."""
        return next((table for table in self.tables if table.name == name), None)

    def with_table(self, index: int, table: Table) -> StarDocument:
        """Return a copy with table number `index` exchanged."""
        return replace(self, tables=(*self.tables[:index], table, *self.tables[index + 1 :]))

    def lines(self) -> Iterator[str]:
        """Yield the lines of the file."""
        return chain(self.preamble, *(table.lines() for table in self.tables))

    def text(self) -> str:
        """Return the file's text; what was not changed is byte for byte what was read."""
        return "\n".join(self.lines())

    def write(self, path: Path) -> None:
        """Write the file, as `text` returns it, without ever holding the whole; `path` is overwritten."""
        lines = self.lines()
        with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            end = ""
            while part := list(islice(lines, _ROWS_AT_ONCE)):
                file.write(end + "\n".join(part))
                end = "\n"

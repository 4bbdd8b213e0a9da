"""STAR documents that come out as they went in.

The `starfile` package is not lossless: it turns `nan` into `<NA>`, cuts `x#y` to `x`, drops a second
block of the same name and all comments, and rewrites every number. Here each line is kept as text, and
only the tokens that are replaced change; the tests use starfile as an independent reader.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import FloatArray

_TOKEN = re.compile(r""" "[^"]*"(?!\S) | '[^']*'(?!\S) | \#.* | \S+ """, re.VERBOSE)
_BLANK = re.compile(r"(\s+)")
_CHUNK = 50_000  # rows whose tokens are held at a time


def split_row(line: str) -> list[str]:
    """Split a line into its tokens, quotes kept, a trailing comment dropped."""
    if '"' not in line and "'" not in line and "#" not in line:
        return line.split()
    tokens = _TOKEN.findall(line)
    comment = next((i for i, token in enumerate(tokens) if token.startswith("#")), len(tokens))
    return tokens[:comment]


def quote(text: str) -> str:
    """Return `text` as one STAR token, quoted if blanks, quotes or a leading # or _ ask for it."""
    if text and not re.search(r"\s", text) and text[0] not in "\"'#_":
        return text
    return f"'{text}'" if '"' in text else f'"{text}"'


def unquote(token: str) -> str:
    """Return the text a token stands for."""
    return token[1:-1] if len(token) > 1 and token[0] in "\"'" and token[-1] == token[0] else token


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
    rows: tuple[str, ...]
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
        kept = np.arange(len(table))[rows].tolist()
        remarks = {new: table.remarks[old] for new, old in enumerate(kept) if old in table.remarks}
        return replace(table, rows=tuple(table.rows[i] for i in kept), remarks=remarks)

    def tokens(self, *labels: str, rows: slice = slice(None)) -> list[list[str]]:
        """Return the raw tokens of the named columns, one list a column, in one pass over the rows."""
        wanted = [self.labels.index(label) for label in labels]
        lines = self.rows[rows]
        if not lines or not wanted:
            return [[] for _ in wanted]
        pick = itemgetter(*wanted, wanted[0])  # always a tuple
        picked = (pick(split_row(line)) for line in lines)
        return [list(column) for column in zip(*picked, strict=True)][:-1]

    def strings(self, label: str) -> list[str]:
        """Return the unquoted text of a column."""
        return [unquote(token) for token in self.tokens(label)[0]]

    def numbers(self, *labels: str) -> dict[str, FloatArray]:
        """Return columns as finite float64 `(n,)`; ParticleFileError names row and column otherwise."""
        values = {label: np.empty(len(self)) for label in labels}
        for start in range(0, len(self), _CHUNK):
            rows = slice(start, start + _CHUNK)
            for label, column in zip(labels, self.tokens(*labels, rows=rows), strict=True):
                values[label][rows] = self._parse(label, column, start)
        return values

    def _parse(self, label: str, column: list[str], start: int) -> FloatArray:
        try:
            values = np.array([float(token) for token in column], dtype=np.float64)
        except ValueError:
            values = np.array([_float_or_nan(token) for token in column], dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            row = int(bad[0])
            more = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
            raise ParticleFileError(
                f"{self.source}: {self.where(start + row)}, column _{label}: {column[row]!r} is not a number{more}; "
                "correct the value or remove the row"
            )
        return values

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

    def with_columns(self, columns: dict[str, list[str]]) -> Table:
        """Replace or append columns, given as tokens; every other token and blank stays as it was."""
        table = self if self.loop else self.as_loop()
        changed = [(table.labels.index(label), columns[label]) for label in columns if label in table.labels]
        added = [label for label in columns if label not in table.labels]
        count = len(table.labels)
        new_labels = [f"_{label} #{count + i}" for i, label in enumerate(added, 1)]
        extra = [" ".join(row) for row in zip(*(columns[label] for label in added), strict=True)]
        rows = tuple(
            _edit_row(row, [(at, column[i]) for at, column in changed], extra[i] if added else "")
            for i, row in enumerate(table.rows)
        )
        last = max(i for i, line in enumerate(table.head) if line.strip()) + 1  # the last label line
        head = (*table.head[:last], *new_labels, *table.head[last:])
        return replace(table, labels=(*table.labels, *added), head=head, rows=rows)

    def lines(self) -> list[str]:
        """Return the raw lines of this table."""
        if not self.loop:  # the values stand in the head
            return [*self.head, *self.tail]
        if not self.remarks:
            return [*self.head, *self.rows, *self.tail]
        body = chain.from_iterable((*self.remarks.get(i, ()), row) for i, row in enumerate(self.rows))
        return [*self.head, *body, *self.tail]


def _float_or_nan(token: str) -> float:
    try:
        return float(token)
    except ValueError:
        return float("nan")


def _edit_row(row: str, changed: list[tuple[int, str]], extra: str) -> str:
    """Replace tokens by position and append `extra` after the last token."""
    if '"' not in row and "'" not in row and "#" not in row:
        parts = _BLANK.split(row)
        first = 0 if parts[0] else 2  # a leading blank yields an empty first part
        for at, token in changed:
            parts[first + 2 * at] = token
        end = len(parts) if parts[-1] else len(parts) - 2
        if extra:
            parts.insert(end, f" {extra}")
        return "".join(parts)
    spans = [match.span() for match in _TOKEN.finditer(row) if not match.group().startswith("#")]
    if extra:
        row = f"{row[: spans[-1][1]]} {extra}{row[spans[-1][1] :]}"
    for at, token in sorted(changed, reverse=True):
        row = row[: spans[at][0]] + token + row[spans[at][1] :]
    return row


def new_table(source: Path, name: str, columns: dict[str, list[str]]) -> Table:
    """Build a loop from columns of tokens, aligned as RELION aligns them."""
    head = ["", "# version 30001", "", f"data_{name}", "", "loop_"]
    head += [f"_{label} #{i}" for i, label in enumerate(columns, 1)]
    rows = tuple(" ".join(row) for row in zip(*columns.values(), strict=True))
    return Table(source, name, tuple(columns), tuple(head), rows, tail=("",))


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

    def text(self) -> str:
        """Return the file's text; what was not changed is byte for byte what was read."""
        lines = [*self.preamble, *chain.from_iterable(table.lines() for table in self.tables)]
        return "\n".join(lines)

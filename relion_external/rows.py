"""Rows of a STAR table: numbers read from them, and rows that are made while they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.particles import FloatArray
from relion_external.tokens import TOKEN, split_row

_ROWS_AT_ONCE = 2000


def parse_numbers(rows: Sequence[str], places: Sequence[int]) -> FloatArray:
    """Return the tokens at some places of rows as float64 `(n, k)`, NaN where one is not a number."""
    if not any('"' in row or "'" in row for row in rows):
        try:
            return np.loadtxt(rows, usecols=places, comments=None, ndmin=2)  # several times as fast
        except ValueError:  # not a number, or one that only float() knows: 1_000
            pass
    tokens = map(split_row, rows)
    return np.array([[_float_or_nan(row[place]) for place in places] for row in tokens], dtype=np.float64)


def _float_or_nan(token: str) -> float:
    try:
        return float(token)
    except ValueError:
        return float("nan")


@dataclass(frozen=True)
class Numbers:
    """A column of numbers `(n,)`, written as `form % number`; rows outside `changed` `(n,)` keep their text."""

    values: NDArray[Any]
    form: str
    changed: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.values)


Cells = Sequence[str] | Numbers  # a column: its tokens, or its numbers


@dataclass(frozen=True)
class LazyRows:
    """`count` rows, of which `make` returns a part."""

    count: int
    make: Callable[[slice], Iterable[str]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        for start in range(0, self.count, _ROWS_AT_ONCE):
            yield from self.make(slice(start, start + _ROWS_AT_ONCE))


Rows = tuple[str, ...] | LazyRows


def new_rows(columns: Sequence[Cells]) -> LazyRows:
    """Return rows of these columns with one blank between."""
    template = " ".join(map(_form, columns))

    def make(part: slice) -> Iterable[str]:
        return map(template.__mod__, zip(*(_values(column, part) for column in columns), strict=True))

    return LazyRows(len(columns[0]) if columns else 0, make)


def edited_rows(
    rows: tuple[str, ...], width: int, changed: Mapping[int, Cells], added: Sequence[Cells]
) -> LazyRows:
    """Return rows of `width` tokens with the tokens at some places exchanged and others added after the last one.

    Everything else in a row, its blanks and a comment at its end too, stays as it is.
    """
    places = sorted(changed)
    match = _pattern(places, width).match
    template = "".join(f"%s{_form(changed[place])}" for place in places)
    template += "%s" + "".join(f" {_form(column)}" for column in added) + "%s"

    def make(part: slice) -> Iterable[str]:
        *kept, rest, end = zip(*(_groups(match(row)) for row in rows[part]), strict=True)
        cells: list[Sequence[Any]] = []
        for place, before, old in zip(places, kept[::2], kept[1::2], strict=True):
            cells += [before, _values(changed[place], part, old)]
        cells += [rest, *(_values(column, part) for column in added), end]
        return map(template.__mod__, zip(*cells, strict=True))

    return LazyRows(len(rows), make)


def _pattern(places: Sequence[int], width: int) -> re.Pattern[str]:
    """Groups of a row: for each place what stands before its token, and the token; the other tokens; the end."""
    groups, blank, done = "", r"\s*+", 0
    for place in places:
        groups += rf"({blank} (?:{TOKEN}\s++){{{place - done}}}) ({TOKEN})"
        blank, done = r"\s++", place + 1
    other = rf"{blank}{TOKEN}(?:\s++{TOKEN}){{{width - done - 1}}}" if done < width else ""
    return re.compile(rf"{groups} ({other}) (.*+)", re.VERBOSE | re.DOTALL)


def _groups(match: re.Match[str] | None) -> tuple[str, ...]:
    assert match is not None, "a row has fewer tokens than the table has columns"
    return match.groups()


def _form(column: Cells) -> str:
    return column.form if isinstance(column, Numbers) and column.changed is None else "%s"


def _values(column: Cells, part: slice, old: Sequence[str] = ()) -> Sequence[Any]:
    """What `_form` of a column is applied to."""
    if not isinstance(column, Numbers):
        return column[part]
    values: list[Any] = column.values[part].tolist()
    if column.changed is None:
        return values
    rows = zip(values, old, column.changed[part].tolist(), strict=True)
    return [column.form % value if changed else text for value, text, changed in rows]

"""What makes large STAR tables quick, numbers parsed in C and rows made while written, changes no result."""

from __future__ import annotations

import math
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cryoforum_plugin.errors import ParticleFileError
from relion_external import rows as star_rows
from relion_external import star
from relion_external.rows import Numbers
from relion_external.star import Table, new_table
from relion_external.star_reader import parse_star, read_star

SOURCE = Path("x.star")
LABELS = ("rlnA", "rlnB", "rlnC", "rlnD")
NUMBERS = ("0", "-1.5", "+2.", ".5e-3", "17", "1E5", "007", "9007199254740993", "0.1", "1_000", "\uff11")
NOT_FINITE = ("nan", "-inf", "Infinity", "1e999")
TEXTS = (
    "x#y", "abc", "0x10", "1,5", "1d5", "5e", "1__0", "--1", "'a b'", '"a"b', "'5'6'", "'1 2 3'", '"1.5"', "'1", "it's", 'a"b', "<NA>", "\udce9",
    "True", "data_x", "_y", "loop_",
)  # fmt: skip
BLANKS = (" ", "  ", "\t", " \t ", "\x0b", "\r", "\u00a0", "\x1c")

blanks = st.sampled_from(BLANKS)
cells = st.sampled_from((*NUMBERS, *NOT_FINITE, *TEXTS))
numeric_cells = st.sampled_from(NUMBERS)
ends = st.sampled_from(("", " ", "\t ", "\r", " # it's 5", "  #"))


def found(row: str) -> list[re.Match[str]]:
    """The tokens of a row, found in another way than the program does."""
    pattern = r""" "[^"]*"(?!\S) | '[^']*'(?!\S) | \#.* | \S+ """
    return [match for match in re.finditer(pattern, row, re.VERBOSE) if not match[0].startswith("#")]


@st.composite
def tables(draw: st.DrawFn, kinds: tuple[st.SearchStrategy[str], ...] = (cells,) * 4) -> Table:
    """A table of four columns, with values of these kinds, whose rows were written by hand."""
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 7))):
        words = [draw(kind) for kind in kinds]
        line = "".join(draw(blanks) + word for word in words) + draw(ends)
        line = line[1:] if draw(st.booleans()) and not line[1:].startswith(("#", "\r")) else line
        assume(len(found(line)) == len(LABELS))  # of `' a'` two became one
        assume(lines or not line.strip().startswith("_"))  # a label, before the first row
        lines.append(line)
    head = "data_particles\n\nloop_\n" + "".join(f"_{label}\n" for label in LABELS)
    return parse_star(head + "\n".join(lines) + "\n\n", SOURCE).tables[0]


def as_float(token: str) -> float:
    try:
        return float(token)
    except ValueError:
        return math.nan


@given(st.one_of(tables(), tables((cells, *(numeric_cells,) * 3))), st.permutations(LABELS))
@settings(deadline=None, max_examples=400)
def test_numbers_are_what_float_makes_of_each_token(table: Table, labels: list[str]) -> None:
    labels = labels[:2]
    rows = [dict(zip(LABELS, (match[0] for match in found(row)), strict=True)) for row in table.rows]
    assert {label: list(table.tokens(label)) for label in LABELS} == {
        label: [row[label] for row in rows] for label in LABELS
    }
    bad = [
        (label, i, row[label])
        for label in labels
        for i, row in enumerate(rows)
        if not math.isfinite(as_float(row[label]))
    ]
    if not bad:
        values = table.numbers(*labels)
        assert {label: values[label].tolist() for label in labels} == {
            label: [as_float(row[label]) for row in rows] for label in labels
        }
        return
    label, i, token = bad[0]
    place = (
        f"x.star: row {i + 1} (line {i + 8}) of data_particles, column _{label}: {token!r} is not a number"
    )
    with pytest.raises(ParticleFileError, match=re.escape(place)):
        table.numbers(*labels)


@pytest.mark.parametrize("text", ["'1 2 3'", '"1 2 3"', "x#2", "1_0"])
def test_numbers_behind_a_text_that_looks_like_numbers(text: str) -> None:
    head = "data_\nloop_\n" + "".join(f"_{label}\n" for label in LABELS)
    table = parse_star(f"{head}{text} 4 5 6 # 7\n8 9 10 11\n", SOURCE).tables[0]
    assert table.numbers("rlnD", "rlnB") == {"rlnD": pytest.approx([6, 11]), "rlnB": pytest.approx([4, 9])}


def edited_slowly(row: str, changed: dict[int, str], added: list[str]) -> str:
    """Another way to do it: find where each token stands, and exchange from the back."""
    spans = [match.span() for match in found(row)]
    row = row[: spans[-1][1]] + "".join(f" {token}" for token in added) + row[spans[-1][1] :]
    for at, token in sorted(changed.items(), reverse=True):
        row = row[: spans[at][0]] + token + row[spans[at][1] :]
    return row


@given(tables(), st.sets(st.sampled_from(LABELS)), st.integers(0, 2), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=300)
def test_rows_change_only_where_asked(table: Table, labels: set[str], count: int, random: object) -> None:
    n, rng = len(table), np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    numbers = {label: rng.normal(size=n) for label in sorted(labels)}
    masks = {label: rng.uniform(size=n) < 0.5 if rng.uniform() < 0.5 else None for label in numbers}
    added = {f"new{i}": rng.normal(size=n) for i in range(count)}
    columns = {label: Numbers(values, "%.9g", masks[label]) for label, values in numbers.items()}
    edited = table.with_columns(columns | {label: Numbers(values, "%.3f") for label, values in added.items()})
    expected = [
        edited_slowly(
            row,
            {
                LABELS.index(label): f"{values[i]:.9g}"
                for label, values in numbers.items()
                if (mask := masks[label]) is None or mask[i]
            },
            [f"{values[i]:.3f}" for values in added.values()],
        )
        for i, row in enumerate(table.rows)
    ]
    assert list(edited.rows) == expected


def test_parts_of_a_table_are_joined_without_a_seam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(star, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(star_rows, "_ROWS_AT_ONCE", 3)
    columns = {"rlnA": [str(i) for i in range(7)], "rlnB": Numbers(np.arange(7) / 2, "%.2f")}
    table = new_table(SOURCE, "t", columns).with_columns({"rlnC": Numbers(np.arange(7), "%d")})
    document = star.StarDocument(SOURCE, (), (table,))
    document.write(tmp_path / "x.star")
    assert (tmp_path / "x.star").read_text() == document.text()
    again = read_star(tmp_path / "x.star").tables[0]
    assert list(again.rows) == [f"{i} {i / 2:.2f} {i}" for i in range(7)]
    assert again.numbers("rlnB", "rlnC")["rlnB"].tolist() == (np.arange(7) / 2).tolist()
    assert again[[6, 0]].rows == ("6 3.00 6", "0 0.00 0")
    bad = again.with_columns({"rlnC": ["0", "1", "2", "3", "4", "x", "x"]})
    with pytest.raises(ParticleFileError, match=r"row 6 \(line 15\) of data_t, column _rlnC: 'x' is not"):
        bad.numbers("rlnC")


def test_columns_of_another_length_are_an_error() -> None:
    table = new_table(SOURCE, "t", {"rlnA": ["1", "2"]})
    with pytest.raises(ValueError, match="zip"):
        list(table.with_columns({"rlnB": ["1"]}).rows)


def test_writing_holds_a_part_of_the_table_only(tmp_path: Path) -> None:
    n = 40_000
    rows = [f"{i:06d}@stack.mrcs {i / 7:12.6f}" for i in range(n)]
    table = parse_star("data_\nloop_\n_rlnImageName\n_rlnA\n" + "\n".join(rows) + "\n", SOURCE).tables[0]
    values = np.random.default_rng(0).normal(size=(n, 20))
    columns = {f"cryoforum{i}": Numbers(values[:, i], "%.9g") for i in range(20)}
    document = star.StarDocument(SOURCE, (), (table.with_columns({"rlnA": columns["cryoforum0"]} | columns),))
    tracemalloc.start()
    document.write(tmp_path / "x.star")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.8 * (tmp_path / "x.star").stat().st_size  # the tokens alone would take four times that

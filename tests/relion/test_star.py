"""STAR documents: byte for byte what was read, and only what was asked for changed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import starfile
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoforum_plugin.errors import ParticleFileError
from relion_external import star
from relion_external.star import Table, new_table
from relion_external.star_reader import parse_star, read_star
from relion_external.tokens import quote, split_row, unquote

SOURCE = Path("x.star")
TABLE = "data_particles\n\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n"

DOCUMENTS = {
    "relion 3.1": "\n# version 30001\n\ndata_optics\n\nloop_ \n_rlnOpticsGroup #1 \n           1 \n \n\n"
    "# version 30001\n\ndata_particles\n\nloop_ \n_rlnA #1 \n_rlnB #2 \n  1.50 x \n -2.00 y \n \n",
    "relion 3.0": "data_\nloop_\n_rlnA\n_rlnB\n1 2\n3 4",
    "tabs": "data_images\n\nloop_\n_rlnA #1\n_rlnB #2\n1\t2\n\t3\t4\t\n",
    "windows line ends": "data_\r\n\r\nloop_\r\n_rlnA #1\r\n_rlnB #2\r\n1 2\r\n3 4\r\n\r\n",
    "quotes": "data_\nloop_\n_rlnA #1\n_rlnB #2\n\"two words\" 'it''s'\n'a \"b\"' 4\n",
    "comments": "# top\ndata_ # block\nloop_ # loop\n_rlnA #1 [note]\n_rlnB #2\n# first\n1 2 # tail\n# mid\n3 4\n# end\n",
    "a block named twice": "data_a\nloop_\n_rlnA\n1\n\ndata_a\nloop_\n_rlnA\n2\n",
    "list of pairs": 'data_general\n\n_rlnA   1\n# why\n_rlnB   "two words"\n\n\ndata_b\nloop_\n_rlnC\n1\n',
    "odd text": "data_\nloop_\n_rlnA #1\n_rlnB #2\nx#y nan\n<NA> None\n\n",
    "rows like keywords": "data_\nloop_\n_rlnA #1\n_rlnB #2\ndata_x/1.mrc 1\n_y loop_\nloop_ 2\n",
    "empty block": "data_nothing\n\ndata_b\nloop_\n_rlnA\n1\n",
    "empty loop": "data_b\nloop_\n_rlnA\n_rlnB\n\n",
    "two loops in a block": "data_b\n_rlnX 5\nloop_\n_rlnA\n1\n\nloop_\n_rlnB\n2\n",
    "byte order mark": "\ufeffdata_b\nloop_\n_rlnA\n1\n",
    "no end of line": "data_b\nloop_\n_rlnA #1\n1",
}


def tokens(table: Table, *labels: str) -> list[list[str]]:
    return [list(table.tokens(label)) for label in labels]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_unchanged_document_is_byte_identical(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(star, "_ROWS_AT_ONCE", 2)
    path = tmp_path / "x.star"
    path.write_bytes(DOCUMENTS[name].encode())
    assert read_star(path).text().encode() == path.read_bytes()
    read_star(path).write(tmp_path / "y.star")
    assert (tmp_path / "y.star").read_bytes() == path.read_bytes()


def test_bytes_that_are_not_utf8_survive(tmp_path: Path) -> None:
    path = tmp_path / "x.star"
    path.write_bytes(b"data_\nloop_\n_rlnA #1\n\xe9\xff.mrc\n")
    read_star(path).write(tmp_path / "y.star")
    assert (tmp_path / "y.star").read_bytes() == path.read_bytes()


def test_values_of_every_kind_of_row() -> None:
    def rows(name: str) -> list[tuple[str, ...]]:
        table = parse_star(DOCUMENTS[name], SOURCE).tables[-1]
        return list(zip(*(table.strings(label) for label in table.labels), strict=True))

    assert rows("tabs") == rows("relion 3.0") == rows("windows line ends") == [("1", "2"), ("3", "4")]
    assert rows("comments") == [("1", "2"), ("3", "4")]
    assert rows("quotes") == [("two words", "it''s"), ('a "b"', "4")]
    assert rows("rows like keywords") == [("data_x/1.mrc", "1"), ("_y", "loop_"), ("loop_", "2")]
    assert rows("odd text") == [("x#y", "nan"), ("<NA>", "None")]
    pairs = parse_star(DOCUMENTS["list of pairs"], SOURCE).tables[0]
    assert (len(pairs), list(pairs.strings("rlnA")), list(pairs.strings("rlnB"))) == (1, ["1"], ["two words"])


def test_tables_of_a_document() -> None:
    document = parse_star(DOCUMENTS["two loops in a block"], SOURCE)
    assert [(t.name, t.labels, len(t)) for t in document.tables] == [
        ("b", ("rlnX",), 1), ("b", ("rlnA",), 1), ("b", ("rlnB",), 1),
    ]  # fmt: skip
    assert document.table("b") is document.tables[0]
    assert document.table("c") is None


@pytest.mark.parametrize("name", ["tabs", "windows line ends", "quotes", "comments", "rows like keywords"])
def test_changed_and_added_columns_leave_everything_else(name: str) -> None:
    document = parse_star(DOCUMENTS[name], SOURCE)
    changes = {"rlnB": ["10", '"2 0"', "3"], "new": ["a", "b", "c"], "more": ["1", "2", "3"]}
    n = len(document.tables[0])
    table = document.tables[0].with_columns({label: tokens[:n] for label, tokens in changes.items()})
    again = parse_star(document.with_table(0, table).text(), SOURCE).tables[0]
    assert again.labels == ("rlnA", "rlnB", "new", "more")
    assert tokens(again, "rlnA") == tokens(document.tables[0], "rlnA")
    assert list(again.strings("rlnB")) == ["10", "2 0", "3"][:n]
    assert tokens(again, "new", "more") == [changes["new"][:n], changes["more"][:n]]
    assert "_more #4" in again.head
    assert [again.remarks, len(again.tail)] == [document.tables[0].remarks, len(document.tables[0].tail)]


def test_added_columns_keep_the_text_of_rows() -> None:
    table = parse_star(DOCUMENTS["relion 3.1"], SOURCE).tables[1]
    assert tuple(table.with_columns({"new": ["7", "8"]}).rows) == ("  1.50 x 7 ", " -2.00 y 8 ")
    assert tuple(table.with_columns({"rlnA": ["9", "10"]}).rows) == ("  9 x ", " 10 y ")
    assert table.with_columns({}).rows == table.rows


def test_pairs_become_a_loop_when_changed() -> None:
    document = parse_star(DOCUMENTS["list of pairs"], SOURCE)
    text = document.with_table(0, document.tables[0].with_columns({"rlnC": ["3"]})).text()
    table = parse_star(text, SOURCE).tables[0]
    assert [list(table.strings(label)) for label in table.labels] == [["1"], ["two words"], ["3"]]


@pytest.mark.parametrize("rows", [slice(1, None), np.array([2, 0]), np.array([False, True, True]), [1, 1]])
def test_rows_are_subset_in_the_order_asked_for(rows: object) -> None:
    text = TABLE + "".join(f"{i}@x {i}.5\n" for i in range(1, 4)) + "\n"
    table = parse_star(text, SOURCE).tables[0][rows]
    assert table.numbers("rlnAngleRot")["rlnAngleRot"].tolist() == np.array([1.5, 2.5, 3.5])[rows].tolist()
    assert table.head == parse_star(text, SOURCE).tables[0].head


def test_remarks_follow_their_rows() -> None:
    document = parse_star(DOCUMENTS["comments"], SOURCE)
    assert document.with_table(0, document.tables[0][1:]).text() == (
        "# top\ndata_ # block\nloop_ # loop\n_rlnA #1 [note]\n_rlnB #2\n# first\n# mid\n3 4\n# end\n"
    )


words = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")), max_size=12).filter(
    lambda text: not ('"' in text and "'" in text)
)


@given(st.lists(st.tuples(words, words, st.floats(-1e6, 1e6)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_any_text_comes_back(rows: list[tuple[str, str, float]]) -> None:
    columns = {
        "rlnA": [quote(r[0]) for r in rows],
        "rlnB": [quote(r[1]) for r in rows],
        "rlnC": [repr(r[2]) for r in rows],
    }
    table = parse_star("\n".join(new_table(SOURCE, "t", columns).lines()), SOURCE).tables[0]
    assert list(table.strings("rlnA")) == [r[0] for r in rows]
    assert list(table.strings("rlnB")) == [r[1] for r in rows]
    assert table.numbers("rlnC")["rlnC"].tolist() == [r[2] for r in rows]
    changed = parse_star("\n".join(table.with_columns({"rlnB": ["z"] * len(rows)}).lines()), SOURCE).tables[0]
    assert tokens(changed, "rlnA", "rlnC") == tokens(table, "rlnA", "rlnC")


@given(words)
def test_quoting_makes_one_token(text: str) -> None:
    assert split_row(f"1 {quote(text)} 2")[1:] == [quote(text), "2"]
    assert unquote(quote(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n  \n", "the file is empty"),
        ("\x93NUMPY\x01", "not a STAR file but binary"),
        ("a,b\n1,2\n", r"line 1: not a STAR file: 'a,b' before any data_ block"),
        ("data_particles\n", "not a STAR file with a table"),
        ("# only a comment\n", "not a STAR file with a table"),
        (TABLE + "_rlnImageName #3\n", r"line 6: duplicate column _rlnImageName in data_particles; remove"),
        (TABLE + "1@x 1\n2@x\n", r"line 7: row 2 of data_particles: 1 values, 2 columns; repair"),
        (TABLE + "1@my stack.mrcs 1\n", r"row 1 of data_particles: 3 values, 2 columns; .*must be quoted"),
        (TABLE + "1@x 1\n\n2@x 2\n", r"line 8: values after an empty line in data_particles, where RELION ends"),
        (TABLE + "1@x 1\n\n_rlnB 2\n", r"line 8: _rlnB stands after the end of a table"),
        ("data_a\n_rlnA\n", r"_rlnA has 0 values where 1 is needed"),
        ("data_a\n1 2\n", r"line 2: values without column labels in data_a"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.star"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ParticleFileError, match=message) as caught:
        read_star(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParticleFileError, match=r"cannot read .*none\.star: No such file"):
        read_star(tmp_path / "none.star")


@pytest.mark.parametrize("value", ["nan", "inf", "-Inf", "<NA>", "None", "abc"])
def test_text_and_nan_in_a_numeric_column_name_the_row(value: str) -> None:
    table = parse_star(TABLE + f"1@x 1\n# remark\n2@x {value}\n3@x {value}\n", SOURCE).tables[0]
    message = rf"x\.star: row 2 \(line 8\) of data_particles, column _rlnAngleRot: '{value}' is not a number \(and 1 more"
    with pytest.raises(ParticleFileError, match=message):
        table.numbers("rlnAngleRot")


def test_starfile_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.star"
    document = parse_star(DOCUMENTS["relion 3.1"], path)
    table = document.tables[1].with_columns({"rlnB": ["p", '"q r"'], "rlnC": ["0.25", "-1e-7"]})
    path.write_text(document.with_table(1, table).text())
    blocks = starfile.read(path, always_dict=True)
    assert blocks["optics"]["rlnOpticsGroup"].tolist() == [1]
    assert blocks["particles"]["rlnB"].tolist() == ["p", "q r"]
    assert blocks["particles"]["rlnC"].tolist() == [0.25, -1e-7]


def test_large_tables_are_fast(tmp_path: Path) -> None:
    labels = [f"rlnColumn{i}" for i in range(30)]
    row = " ".join(f"{i * 37.123456:12.6f}" for i in range(30))
    head = "data_particles\n\nloop_\n" + "".join(f"_{label} #{i}\n" for i, label in enumerate(labels, 1))
    path = tmp_path / "large.star"
    path.write_text(head + f"{row}\n" * 60_000)
    start = time.perf_counter()
    document = read_star(path)
    values = document.tables[0].numbers(*labels[:8])
    columns = {label: [f"{v:.6f}" for v in values[label].tolist()] for label in labels[:3]}
    text = document.with_table(0, document.tables[0].with_columns(columns)).text()
    assert time.perf_counter() - start < 15  # about 1.5 s on an idle core
    assert len(text) > 20_000_000


def test_reference_files_are_byte_identical(shared_data: Path) -> None:
    paths = sorted(shared_data.rglob("*.star"))
    assert len(paths) > 10
    for path in paths:
        assert read_star(path).text().encode() == path.read_bytes(), path


def test_reference_files_agree_with_starfile(shared_data: Path) -> None:
    for name in (
        "parsers/relion5.star",
        "real/relion31_fibril/relion31.v2.star",
        "real/empiar10076/empiar_10076_7.star",
    ):
        blocks = starfile.read(shared_data / name, always_dict=True)
        for table in read_star(shared_data / name).tables:
            frame = blocks[table.name]
            assert list(frame.columns) == list(table.labels)
            for label in frame.select_dtypes("number").columns:
                np.testing.assert_array_equal(table.numbers(label)[label], frame[label].to_numpy(float))

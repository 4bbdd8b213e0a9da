"""A prediction that is killed goes on where it stopped, and never with what is of another one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import starfile
from chain import TINY, cryoforum, quick_networks, simulate, succeed

from cryoforum_plugin.prediction import run
from cryoforum_plugin.prediction.journal import Journal, journal_of, opened

COUNT, CHUNK = 400, 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """sim/particles.star in two stacks, in random order; model; whole.star, predicted without interruption."""
    folder = tmp_path_factory.mktemp("journal")
    simulate(folder, COUNT)
    particles = folder / "sim" / "particles.star"
    shutil.copy(folder / "sim" / "particles.mrcs", folder / "sim" / "second.mrcs")
    text = starfile.read(particles)
    table = text["particles"]
    table.loc[::2, "rlnImageName"] = table.loc[::2, "rlnImageName"].str.replace(
        "particles.mrcs", "second.mrcs"
    )
    text["particles"] = table.sample(frac=1, random_state=1)
    starfile.write(text, particles, overwrite=True)
    with quick_networks():
        succeed("train", folder / "sim" / "train.star", "-o", folder / "model", *TINY, "--quiet")
        yield folder


@pytest.fixture
def predict(data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Predict into a table; return how many rows each chunk had that was worked on. stop : chunks until it is killed."""
    monkeypatch.setattr(run, "ROWS_AT_ONCE", CHUNK)

    def do(output: Path, *options: object, stop: int | None = None) -> list[int]:
        worked: list[int] = []
        write = Journal.write

        def killed(journal: Journal, number: int, rows: np.ndarray, columns: dict[str, np.ndarray]) -> None:
            if len(worked) == stop:
                raise KeyboardInterrupt
            write(journal, number, rows, columns)
            worked.append(len(rows))

        monkeypatch.setattr(Journal, "write", killed)
        particles = data / "sim" / "particles.star"
        result = cryoforum("predict", data / "model", particles, "-o", output, "--quiet", *options)
        monkeypatch.setattr(Journal, "write", write)
        assert result.exit_code == (0 if stop is None else 130), result.output
        return worked

    return do


def test_a_killed_prediction_goes_on_where_it_stopped(
    predict: Callable[..., list[int]], tmp_path: Path
) -> None:
    out, whole = tmp_path / "out.star", tmp_path / "whole.star"
    assert sum(predict(whole)) == COUNT
    assert predict(out, stop=3) == [CHUNK] * 3
    assert not out.exists()
    assert journal_of(out).is_dir()
    assert sum(predict(out)) == COUNT - 3 * CHUNK
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.star", "whole.star"]


def test_rows_keep_their_order_and_each_its_own_answer(
    predict: Callable[..., list[int]], data: Path, tmp_path: Path
) -> None:
    predict(tmp_path / "out.star", "--precision", 32)
    found = starfile.read(tmp_path / "out.star")["particles"]
    given = starfile.read(data / "sim" / "particles.star")["particles"]
    assert found.rlnImageName.tolist() == given.rlnImageName.tolist()
    single = tmp_path / "some.star"
    rows = starfile.read(data / "sim" / "particles.star")
    rows["particles"] = given.iloc[100:110]
    starfile.write(rows, data / "sim" / "some.star", overwrite=True)
    succeed("predict", data / "model", data / "sim" / "some.star", "-o", single, "--quiet", "--precision", 32)
    alone = starfile.read(single)["particles"]
    np.testing.assert_allclose(alone.rlnAngleTilt, found.rlnAngleTilt.iloc[100:110], atol=1e-3)


def test_a_damaged_chunk_is_done_again(predict: Callable[..., list[int]], tmp_path: Path) -> None:
    out = tmp_path / "out.star"
    predict(out, stop=3)
    chunk = sorted(journal_of(out).glob("*.npz"))[1]
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    assert sum(predict(out)) == COUNT - 2 * CHUNK


@pytest.mark.parametrize("change", ["options", "stack", "table"])
def test_another_prediction_begins_anew(
    predict: Callable[..., list[int]], data: Path, tmp_path: Path, change: str
) -> None:
    out, particles = tmp_path / "out.star", data / "sim" / "particles.star"
    predict(out, stop=2)
    options = ("--views", 1) if change == "options" else ()
    if change == "stack":
        os.utime(data / "sim" / "second.mrcs", ns=(1, 1))
    if change == "table":
        particles.write_text(particles.read_text() + "\n")
    assert sum(predict(out, *options)) == COUNT


def test_a_refused_prediction_leaves_nothing(data: Path, tmp_path: Path) -> None:
    result = cryoforum(
        "predict", data / "model", data / "sim" / "particles.star", "-o", tmp_path / "out.star", "--refine"
    )
    assert result.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_behind_is_no_chunk(predict: Callable[..., list[int]], tmp_path: Path) -> None:
    out = tmp_path / "out.star"
    predict(out, stop=2)
    (journal_of(out) / ".0000003-abc.xyz.npz").write_bytes(b"half")
    assert sum(predict(out)) == COUNT - 2 * CHUNK
    assert not journal_of(out).exists()


def test_two_runs_do_not_write_one_output(
    predict: Callable[..., list[int]], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.star"
    with opened(Journal(journal_of(out), {"of": "another run"})):
        result = cryoforum("predict", data / "model", data / "sim" / "particles.star", "-o", out, "--quiet")
    assert result.exit_code == 1
    assert "another run writes" in result.stderr


def test_chunks_of_another_prediction_are_not_taken(tmp_path: Path) -> None:
    rows = np.arange(3)
    for identity, value in (({"model": "a"}, 1.0), ({"model": "b"}, 2.0)):
        journal = Journal(tmp_path, identity)
        assert not journal.done(0)
        journal.write(0, rows, {"x": np.full(3, value)})
        assert journal.collected(3)["x"].tolist() == [value] * 3


def test_a_stack_that_changes_during_the_prediction(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Journal.write

    def touched(journal: Journal, number: int, rows: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        os.utime(data / "sim" / "second.mrcs", ns=(2 + number, 2 + number))
        write(journal, number, rows, columns)

    monkeypatch.setattr(Journal, "write", touched)
    out = tmp_path / "out.star"
    result = cryoforum("predict", data / "model", data / "sim" / "particles.star", "-o", out, "--quiet")
    assert result.exit_code == 1
    assert "was changed while" in result.stderr
    assert not out.exists()

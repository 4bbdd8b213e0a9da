"""Two processes predict what one predicts."""

from __future__ import annotations

from pathlib import Path

from chain import TINY, cryoforum, simulate, succeed

from cryoforum_plugin.prediction import run


def test_two_processes_write_the_table_that_one_writes(tmp_path: Path) -> None:
    simulate(tmp_path, run.FEWEST + 100)  # two chunks
    particles, model = tmp_path / "sim" / "particles.star", tmp_path / "model"
    succeed("train", tmp_path / "sim" / "train.star", "-o", model, *TINY, "--quiet")
    same = ("--precision", 32, "--device", "cpu", "--quiet")
    succeed("predict", model, particles, "-o", tmp_path / "one.star", *same)
    succeed("predict", model, particles, "-o", tmp_path / "two.star", *same, "--devices", 2)
    assert (tmp_path / "one.star").read_bytes() == (tmp_path / "two.star").read_bytes()
    assert not [path for path in tmp_path.iterdir() if "journal" in path.name]


def test_a_refusal_by_the_processes_is_one_line(tmp_path: Path) -> None:
    simulate(tmp_path, 80)
    model = tmp_path / "model"
    succeed("train", tmp_path / "sim" / "train.star", "-o", model, *TINY, "--epochs", 1, "--quiet")
    (tmp_path / "sim" / "particles.mrcs").unlink()
    test = tmp_path / "sim" / "test.star"
    result = cryoforum(
        "predict", model, test, "-o", tmp_path / "out.star", "--devices", 2, "--device", "cpu", "--quiet"
    )
    assert result.exit_code == 1
    assert result.stderr.count("error:") == 1
    assert "missing image stacks" in result.stderr
    assert not (tmp_path / "out.star").exists()

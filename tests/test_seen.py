"""Where a network began: what its first training saw stays seen, and half sets stay apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from chain import TINY, cryoforum, simulate, succeed

from cryoforum_plugin.network.model import load_model

QUICK = (*TINY, "--epochs", "1", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sim/ of 800 particles, models of both half sets of sim/train.star."""
    folder = tmp_path_factory.mktemp("seen")
    simulate(folder, 800)
    succeed("train", folder / "sim" / "train.star", "-o", folder / "halves", "--half-sets", *QUICK)
    return folder


def test_a_half_set_model_has_a_reference_of_its_own_half(folder: Path) -> None:
    from cryoforum_plugin.refinement.reference_file import read_references

    for half in ("half1", "half2"):
        references = read_references(folder / "halves" / half)
        assert set(references) == {0}
        assert references[0].finest_A < 25  # both of its own halves hold particles


def test_what_the_first_training_saw_stays_seen(folder: Path) -> None:
    start = folder / "halves" / "half1"
    test = folder / "sim" / "test.star"
    succeed("train", test, "-o", folder / "next", "--init-from", start, "--no-half-sets", *QUICK)
    first, after = (load_model(path, torch.device("cpu")) for path in (start, folder / "next"))
    assert len(first.seen) == 270
    assert len(after.seen) == 270 + 180
    assert set(first.seen.tolist()) < set(after.seen.tolist())


def test_half_sets_start_from_weights_of_their_own(folder: Path) -> None:
    train = folder / "sim" / "train.star"
    result = cryoforum(
        "train", train, "-o", folder / "x", "--init-from", folder / "halves" / "half1", "--half-sets", *QUICK
    )
    assert result.exit_code == 1
    assert "the other half set" in result.stderr
    more = ("--half-sets", "--folds", 2)
    succeed("train", train, "-o", folder / "folds", "--init-from", folder / "halves", *more, *QUICK)


def test_a_folder_of_two_trainings_is_refused(folder: Path) -> None:
    model = folder / "halves" / "half2" / "model.pt"
    other = torch.load(model, weights_only=True)
    other["weights"] = {name: value + 1 for name, value in other["weights"].items()}
    torch.save(other, model)
    result = cryoforum("predict", folder / "halves", folder / "sim" / "test.star", "-o", folder / "x.star")
    assert result.exit_code == 1
    assert "another training" in result.stderr


def test_nothing_is_written_for_half_sets_that_are_refused(folder: Path) -> None:
    train = ("train", folder / "sim" / "train.star", "-o", folder / "d2", "--half-sets", "--symmetry", "D2")
    result = cryoforum(*train, *QUICK)
    assert result.exit_code == 1
    assert "D2 does not fit" in result.stderr
    assert not (folder / "d2").exists()

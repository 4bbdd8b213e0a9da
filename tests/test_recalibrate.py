"""`recalibrate` through the commands, and the alarm that asks for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from chain import TINY, cryoforum, quick_networks, simulate, succeed

from cryoforum_plugin.confidence.ranking import auroc
from cryoforum_plugin.network.model import load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sim/, a model with references and one of both half sets without; faint/ and new/, sets of a lower SNR."""
    folder = tmp_path_factory.mktemp("recalibrate")
    simulate(folder, 800)
    train = folder / "sim" / "train.star"
    succeed("train", train, "-o", folder / "model", "--quiet", *TINY)
    with quick_networks():
        succeed("train", train, "-o", folder / "halves", "--half-sets", "--quiet", *TINY, "--epochs", 1)
    for name, seed in (("faint", 9), ("new", 10)):
        faint = ("--count", 400, "--snr", 0.2, "--seed", seed, "--quiet")
        succeed("simulate", folder / "map.mrc", "-o", folder / name, *faint)
    return folder


def predicted(folder: Path, model: Path, table: Path, out: Path, *options: object) -> dict:
    """Figures of `evaluate`, with the unlikeness that `predict` found."""
    result = succeed(
        "predict", model, table, "-o", out, "--quiet", "--json", out.with_suffix(".p.json"), *options
    )
    succeed("evaluate", out, table, "--json", out.with_suffix(".json"))
    found = json.loads(out.with_suffix(".json").read_text())
    unlike = json.loads(out.with_suffix(".p.json").read_text())["unlikeness"]
    return found | {"unlike": unlike, "stderr": result.stderr}


def test_particles_of_the_same_kind_raise_no_alarm(folder: Path, tmp_path: Path) -> None:
    for name, option in (("a", "--no-refine"), ("b", "--refine")):
        found = predicted(
            folder, folder / "model", folder / "sim" / "test.star", tmp_path / f"{name}.star", option
        )
        assert found["unlike"]["alarms"] == []
        assert "unlike" not in found["stderr"]


def test_a_model_is_calibrated_anew_on_what_raised_the_alarm(folder: Path, tmp_path: Path) -> None:
    table = folder / "faint" / "particles.star"
    before = predicted(folder, folder / "model", table, tmp_path / "before.star", "--no-refine")
    assert before["unlike"]["alarms"]
    assert "are unlike those the model was calibrated on" in before["stderr"]
    succeed("recalibrate", folder / "model", table, "-o", tmp_path / "new", "--quiet")
    old, new = load_model(folder / "model", CPU), load_model(tmp_path / "new", CPU)
    for name, weight in old.network.state_dict().items():
        assert torch.equal(weight, new.network.state_dict()[name])
    assert new.calibration["calibrated_on"] == "400 particles of particles.star"
    assert json.loads((tmp_path / "new" / "calibration.json").read_text()) == new.calibration
    table = folder / "new" / "particles.star"
    after = predicted(folder, tmp_path / "new", table, tmp_path / "after.star", "--no-refine")
    assert after["unlike"]["alarms"] == []
    assert after["coverage_90"] == pytest.approx(0.9, abs=0.05)
    assert after["coverage_50"] == pytest.approx(0.5, abs=0.08)
    refined = predicted(folder, tmp_path / "new", table, tmp_path / "refined.star", "--refine")
    assert refined["unlike"]["alarms"] == []
    assert refined["coverage_90"] == pytest.approx(0.9, abs=0.05)


def test_both_half_sets_are_calibrated_anew(folder: Path, tmp_path: Path) -> None:
    with quick_networks():
        table = folder / "faint" / "particles.star"
        succeed("recalibrate", folder / "halves", table, "-o", tmp_path / "new", "--quiet")
        new = load_model(tmp_path / "new", CPU)
        sources = [member.calibration["calibrated_on"] for member in new.members]
        assert sources == ["200 particles of particles.star"] * 2
        assert "likeness" not in new.calibration  # of each member only
        succeed("predict", tmp_path / "new", table, "-o", tmp_path / "x.star", "--quiet", "--views", 2)


def test_training_particles_are_left_out_and_too_few_refused(folder: Path, tmp_path: Path) -> None:
    train = folder / "sim" / "train.star"
    result = cryoforum("recalibrate", folder / "model", train, "-o", tmp_path / "new", "--quiet")
    assert result.exit_code == 0  # 60 validation particles
    assert "540 particles that the model learned from are left out" in result.stderr
    assert "only 60 particles" in result.stderr
    tables = starfile.read(train)
    tables["particles"] = tables["particles"].iloc[:300]
    starfile.write(tables, tmp_path / "part.star")
    result = cryoforum(
        "recalibrate", folder / "model", tmp_path / "part.star", "-o", tmp_path / "x", "--quiet"
    )
    assert result.exit_code == 1
    assert "needs 50 at least" in result.stderr
    assert not (tmp_path / "x").exists()


def test_unusable_images_are_left_out_and_wrong_poses_doubted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "faint", tmp_path / "odd")
    tables = starfile.read(tmp_path / "odd" / "particles.star")
    stack = tmp_path / "odd" / "particles.mrcs"
    names = tables["particles"]["rlnImageName"].str.replace(r"@.*", f"@{stack}", regex=True)
    tables["particles"]["rlnImageName"] = names
    angles = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
    wrong = np.random.default_rng(2).permutation(40)
    tables["particles"].loc[:39, angles] = tables["particles"].loc[wrong, angles].to_numpy()
    starfile.write(tables, tmp_path / "odd.star")
    with mrcfile.open(stack, "r+") as file:
        file.data[300, 0, 0] = np.nan
        file.data[350] = 1.0
    succeed(
        "train", folder / "sim" / "train.star", "-o", tmp_path / "better", "--quiet", *TINY, "--epochs", 6
    )
    result = succeed(
        "recalibrate", tmp_path / "better", tmp_path / "odd.star", "-o", tmp_path / "new", "--quiet"
    )
    assert "2 of 400 images" in result.stderr
    calibration = load_model(tmp_path / "new", CPU).calibration
    assert calibration["validation_particles"] == 398
    assert 0.05 < calibration["views"]["8"]["wrong_labels"] <= 0.1  # 10 %, far more than in the training


def test_the_model_itself_is_not_overwritten(folder: Path) -> None:
    before = (folder / "model" / "model.pt").read_bytes()
    table = folder / "faint" / "particles.star"
    for output in (folder / "model", folder / "model" / "inside"):
        result = cryoforum("recalibrate", folder / "model", table, "-o", output, "--overwrite")
        assert result.exit_code == 1
        assert "give another folder" in result.stderr
    assert (folder / "model" / "model.pt").read_bytes() == before


def test_junk_is_told_from_particles_by_its_score(folder: Path, tmp_path: Path) -> None:
    succeed("simulate", folder / "map.mrc", "-o", tmp_path / "junk", "--count", 300, "--snr", 1, "--junk", 0.3,
            "--seed", 8, "--quiet")  # fmt: skip
    kinds = np.loadtxt(tmp_path / "junk" / "truth.csv", delimiter=",", skiprows=1, usecols=1)
    out = tmp_path / "out.star"
    succeed("predict", folder / "model", tmp_path / "junk" / "particles.star", "-o", out, "--quiet")
    score = starfile.read(out)["particles"]["cryoforumOutlierScore"].to_numpy()
    # noise, off-centre by 15 to 30 % of the box (the nearest are still found), another particle; limits of a tiny network
    for kind, least in ((1, 0.99), (2, 0.8), (3, 0.95)):
        rows = (kinds == 0) | (kinds == kind)
        assert auroc(score[rows], kinds[rows] == kind) >= least

"""simulate -> train -> predict -> select -> evaluate -> reconstruct, through the commands."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import starfile
import torch
from chain import TINY, cryoforum, simulate, succeed

from cryoforum_plugin import formats
from cryoforum_plugin.network.model import load_model
from cryoforum_plugin.particles import ParticleSet

MODEL_FILES = {
    "model.pt",
    "config.json",
    "metrics.csv",
    "calibration.json",
    "report.html",
    "log.txt",
    "reference.mrc",
    "references.pt",
    "suspect_labels.csv",
    "checkpoint",
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with sim/, a tiny model and its prediction of sim/test.star."""
    folder = tmp_path_factory.mktemp("chain")
    simulate(folder)
    succeed("train", folder / "sim" / "train.star", "-o", folder / "model", "--quiet", *TINY)
    succeed(
        "predict", folder / "model", folder / "sim" / "test.star", "-o", folder / "predicted.star", "--quiet"
    )
    return folder


def test_model_directory_is_complete_and_can_be_moved(chain: Path, tmp_path: Path) -> None:
    assert {path.name for path in (chain / "model").iterdir()} == MODEL_FILES
    moved = tmp_path / "elsewhere"
    shutil.copytree(chain / "model", moved)
    succeed("predict", moved, chain / "sim" / "test.star", "-o", tmp_path / "again.star", "--quiet")
    assert (tmp_path / "again.star").read_text() == (chain / "predicted.star").read_text()
    config = json.loads((moved / "config.json").read_text())
    assert config["settings"]["training.epochs"] == 3
    assert config["inputs"][0]["name"].endswith("train.star")


def test_training_learns(chain: Path) -> None:
    metrics = np.genfromtxt(chain / "model" / "metrics.csv", delimiter=",", names=True)
    assert metrics["validation_loss"][-1] < metrics["validation_loss"][0] - 0.3
    result = succeed("evaluate", chain / "predicted.star", chain / "sim" / "test.star")
    median_deg = float(
        next(line.split()[1] for line in result.stdout.splitlines() if line.startswith("median_deg"))
    )
    assert median_deg < 60  # 126 is chance


def test_prediction_keeps_the_table_and_writes_finite_columns(chain: Path) -> None:
    before = starfile.read(chain / "sim" / "test.star")
    after = starfile.read(chain / "predicted.star")
    assert before["optics"].equals(after["optics"])
    kept = [c for c in before["particles"] if not c.startswith(("rlnAngle", "rlnOrigin"))]
    assert before["particles"][kept].equals(after["particles"][kept])
    columns = after["particles"]
    assert np.isfinite(columns.select_dtypes("number").to_numpy()).all()
    assert columns["rlnParticleFigureOfMerit"].between(0, 1).all()
    assert columns["cryoforumOutlierScore"].between(0, 1).all()
    for label in ("cryoforumCredibleRadius90", "rlnAccuracyRotations"):
        assert columns[label].between(0, 180, inclusive="right").all()
    assert (columns["cryoforumInTraining"] == 0).all()
    assert (columns["cryoforumTrace"] < columns["cryoforumLambdaMax"]).all()


def test_written_posterior_has_the_written_pose_as_its_mode(chain: Path) -> None:
    from cryoforum_plugin.geometry import angular_distance
    from cryoforum_plugin.posterior import matrix_from_upper, mode

    particles = formats.read_particles(chain / "predicted.star")
    assert particles.prediction is not None
    found = mode(matrix_from_upper(torch.from_numpy(particles.prediction.bingham)))
    assert angular_distance(found, torch.from_numpy(particles.require_rotation())).max() < 1e-4


@pytest.mark.parametrize("views", ["1", "8"])
def test_views_change_numbers_but_not_shape(chain: Path, tmp_path: Path, views: str) -> None:
    out = tmp_path / "views.star"
    succeed("predict", chain / "model", chain / "sim" / "test.star", "-o", out, "--views", views, "--quiet")
    assert out.read_text() != (chain / "predicted.star").read_text()
    assert len(formats.read_particles(out)) == 100


def test_same_seed_same_model_and_resume_equals_straight_through(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryoforum_plugin.learning import loop

    star, model = chain / "sim" / "train.star", tmp_path / "resumed"
    save = loop.Trainer.save
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    def save_then_die(self: loop.Trainer) -> None:
        save(self)
        if self.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "save", save_then_die)
    killed = cryoforum("train", star, "-o", model, "--quiet", *TINY)
    assert killed.exit_code == 130
    assert not (model / "model.pt").exists()
    monkeypatch.setattr(loop.Trainer, "save", save)
    refused = cryoforum("predict", model, star, "-o", tmp_path / "x.star")
    assert refused.exit_code == 1
    assert "not finished: run train again with --resume" in refused.stderr
    other = cryoforum("train", star, "-o", model, "--resume", "--quiet", *TINY, "--batch-size", "32")
    assert other.exit_code == 1
    assert "started with other particles, map or settings" in other.stderr
    succeed("train", star, "-o", model, "--resume", "--quiet", *TINY)
    straight, resumed = (load_model(path, torch.device("cpu")) for path in (chain / "model", model))
    for name, value in straight.network.state_dict().items():
        assert torch.allclose(value, resumed.network.state_dict()[name], atol=1e-4), name
    before = torch.load(model / "model.pt", weights_only=True)["weights"]
    succeed("train", star, "-o", model, "--resume", "--quiet", *TINY)  # finished: the same model again
    after = torch.load(model / "model.pt", weights_only=True)["weights"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    other = cryoforum("train", chain / "sim" / "test.star", "-o", model, "--resume", "--quiet", *TINY)
    assert other.exit_code == 1
    assert "started with other particles" in other.stderr


def test_overwrite_spares_what_is_not_a_model_and_keeps_the_old_one_until_the_end(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryoforum_plugin.learning import loop

    star, model = chain / "sim" / "train.star", tmp_path / "model"
    model.mkdir()
    (model / "thesis.tex").write_text("years of work")
    refused = cryoforum("train", star, "-o", model, "--overwrite", *TINY)
    assert refused.exit_code == 1
    assert "holds other files" in refused.stderr
    assert (model / "thesis.tex").exists()
    shutil.rmtree(model)
    shutil.copytree(chain / "model", model)
    old = (model / "model.pt").read_bytes()

    def die(self: loop.Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "save", die)
    assert cryoforum("train", star, "-o", model, "--overwrite", "--quiet", *TINY).exit_code == 130
    assert (model / "model.pt").read_bytes() == old
    succeed("predict", model, chain / "sim" / "test.star", "-o", tmp_path / "again.star", "--quiet")


def test_select_reconstruct_and_report_follow(chain: Path, tmp_path: Path) -> None:
    succeed("select", chain / "predicted.star", "-o", tmp_path / "kept.star", "--keep", 0.5)
    succeed("reconstruct", tmp_path / "kept.star", "-o", tmp_path / "map", "--quiet")
    succeed("report", chain / "model", "-o", tmp_path / "report.pdf")
    assert {"half1.mrc", "half2.mrc", "map.mrc", "fsc.csv"} <= {p.name for p in (tmp_path / "map").iterdir()}


def test_cs_in_cs_out(chain: Path, tmp_path: Path) -> None:
    table = formats.read_particles(chain / "sim" / "test.star")
    formats.write_particles(table, chain / "sim" / "test.cs", overwrite=True)
    out = tmp_path / "predicted.cs"
    succeed("predict", chain / "model", chain / "sim" / "test.cs", "-o", out, "--quiet")
    cs, star = formats.read_particles(out), formats.read_particles(chain / "predicted.star")
    assert cs.prediction is not None
    assert star.prediction is not None
    assert np.allclose(cs.prediction.confidence, star.prediction.confidence, atol=1e-3)
    assert np.allclose(cs.shift_A, star.shift_A, atol=0.02)


def test_bad_images_get_confidence_zero_and_are_counted(chain: Path, tmp_path: Path) -> None:
    stack = tmp_path / "bad.mrcs"
    _copy_with_bad_image(chain, stack, row=0)
    star = _with_stack(chain, tmp_path / "bad.star", stack)
    result = succeed("predict", chain / "model", star, "-o", tmp_path / "out.star", "--quiet")
    assert "1 unusable" in result.stdout
    columns = starfile.read(tmp_path / "out.star")["particles"]
    bad = columns["rlnImageName"].str.startswith("000301@")
    assert columns.loc[bad, "rlnParticleFigureOfMerit"].tolist() == [0.0]
    assert columns.loc[bad, "rlnAccuracyRotations"].tolist() == [180.0]
    assert (columns.loc[~bad, "rlnParticleFigureOfMerit"] > 0).all()


def _copy_with_bad_image(chain: Path, stack: Path, row: int) -> None:
    import mrcfile

    shutil.copy(chain / "sim" / "particles.mrcs", stack)
    first = formats.read_particles(chain / "sim" / "test.star").slice_index[row]
    with mrcfile.mmap(stack, "r+") as file:
        file.data[first, 3, 4] = np.nan


def _with_stack(chain: Path, star: Path, stack: Path, table: str = "test.star") -> Path:
    text = (chain / "sim" / table).read_text()
    old = formats.read_particles(chain / "sim" / table).stacks[0]
    names = [str(old), str(old.resolve())]
    with contextlib.suppress(ValueError):
        names.append(str(old.resolve().relative_to(Path.cwd())))
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(f"@{name}", f"@{stack}")
    star.write_text(text)
    return star


def test_dark_protein_is_refused_with_advice(chain: Path, tmp_path: Path) -> None:
    import mrcfile

    stack = tmp_path / "dark.mrcs"
    shutil.copy(chain / "sim" / "particles.mrcs", stack)
    with mrcfile.mmap(stack, "r+") as file:
        file.data[:] = -file.data
    star = _with_stack(chain, tmp_path / "dark.star", stack)
    refused = cryoforum("predict", chain / "model", star, "-o", tmp_path / "out.star")
    assert refused.exit_code == 1
    assert "protein is dark" in refused.stderr
    assert "--invert-contrast" in refused.stderr
    assert not (tmp_path / "out.star").exists()
    succeed("predict", chain / "model", star, "-o", tmp_path / "out.star", "--invert-contrast", "--quiet")
    right = formats.read_particles(chain / "predicted.star")
    inverted = formats.read_particles(tmp_path / "out.star")
    assert isinstance(inverted, ParticleSet)
    assert np.allclose(inverted.prediction.confidence, right.prediction.confidence, atol=1e-3)
    dark_training = _with_stack(chain, tmp_path / "dark_train.star", stack, "train.star")
    refused = cryoforum("train", dark_training, "-o", tmp_path / "model", *TINY)
    assert refused.exit_code == 1
    assert "protein is dark" in refused.stderr
    assert not (tmp_path / "model").exists()


def test_symmetry_and_other_options_train(chain: Path, tmp_path: Path) -> None:
    succeed(
        "train", chain / "sim" / "train.star", "-o", tmp_path / "d2", "--quiet", *TINY, "--epochs", 1, "--symmetry", "D2",
        "--set", "training.simulated=0", "--set", "images.ctf=multiply", "--image-size", 24,
        "--set", "training.check_symmetry=false",
    )  # fmt: skip
    model = load_model(tmp_path / "d2", torch.device("cpu"))
    assert (model.settings.symmetry, model.box.size_px) == ("D2", 24)
    succeed(
        "predict",
        tmp_path / "d2",
        chain / "sim" / "test.star",
        "-o",
        tmp_path / "d2.star",
        "--views",
        2,
        "--quiet",
    )

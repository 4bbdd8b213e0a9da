"""Wrong input poses: how many there are is learned, which they are is found, and they do little harm."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chain import TINY, quick_networks, simulate, succeed
from scipy.spatial.transform import Rotation
from tiny_trainer import blob_trainer

from cryoforum_plugin import formats
from cryoforum_plugin.confidence.ranking import auroc
from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.learning.label_noise import LEAST, MOST, LabelNoise
from cryoforum_plugin.network.model import load_model
from cryoforum_plugin.posterior import matrix_from_upper, negative_log_likelihood
from cryoforum_plugin.report import write_report
from cryoforum_plugin.report.collect import collect_run
from cryoforum_plugin.training.suspects import FILE, join_suspects, judge_labels

WRONG = 0.1
OPTIONS = (*TINY, "--epochs", 12, "--quiet")
ONLY_SIMULATED = "wrong-only-simulated"


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_networks():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated particles, and wrong.star: the training table with 10 % of its poses replaced at random."""
    folder = tmp_path_factory.mktemp("labels")
    simulate(folder, 1600, "--snr", 8)
    particles = formats.read_particles(folder / "sim" / "train.star")
    rng = np.random.default_rng(1)
    bad = rng.permutation(len(particles))[: round(WRONG * len(particles))]
    rotation = particles.rotation.copy()
    rotation[bad] = Rotation.random(len(bad), rng=rng).as_quat()
    formats.write_particles(particles.with_poses(rotation, particles.shift_A), folder / "sim" / "wrong.star")
    np.save(folder / "bad.npy", np.isin(np.arange(len(particles)), bad))
    for name, outliers, simulated in (
        ("train-0.02", 0.02, 0),
        ("wrong-0.02", 0.02, 0),
        ("wrong-0", 0, 0),
        (ONLY_SIMULATED, 0.02, 1),
    ):
        table = folder / "sim" / f"{name.partition('-')[0]}.star"
        chosen = ("--set", f"loss.outliers={outliers}", "--set", f"training.simulated={simulated}")
        succeed("train", table, "-o", folder / name, *OPTIONS, *chosen)
    return folder


def learned(model: Path) -> float:
    return float(np.genfromtxt(model / "metrics.csv", delimiter=",", names=True)["wrong_labels"][-1])


def predicted(model: Path, table: Path) -> formats.ParticleSet:
    output = model / f"predicted-{table.name}"
    succeed("predict", model, table, "-o", output, "--views", 1, "--no-refine", "--quiet", "--overwrite")
    return formats.read_particles(output)


def errors_deg(model: Path, data: Path) -> np.ndarray:
    """Errors on the test particles, whose poses are all right."""
    found, true = (
        table.require_rotation()
        for table in (
            predicted(model, data / "sim" / "test.star"),
            formats.read_particles(data / "sim" / "test.star"),
        )
    )
    return np.degrees((Rotation.from_quat(found) * Rotation.from_quat(true).inv()).magnitude())


def test_their_part_is_learned(data: Path) -> None:
    assert learned(data / "train-0.02") < 0.03
    assert learned(data / "wrong-0.02") == pytest.approx(WRONG, abs=0.03)
    assert learned(data / "wrong-0") == 0
    calibration = load_model(data / "wrong-0.02", torch.device("cpu")).calibration
    assert calibration["wrong_labels"] == pytest.approx(WRONG, abs=0.03)
    assert 0 < calibration["views"]["1"]["wrong_labels"] <= 2 * calibration["wrong_labels"]


def test_their_part_is_estimated_where_training_saw_none_of_them(data: Path) -> None:
    calibration = load_model(data / ONLY_SIMULATED, torch.device("cpu")).calibration
    held_out = read_suspects(data / ONLY_SIMULATED)["held_out"].sum()
    expected = np.load(data / "bad.npy").mean()
    assert calibration["wrong_labels"] == pytest.approx(expected, abs=0.06)  # of 120 held-out particles
    assert calibration["views"]["1"]["implausible_labels"] == held_out > 0
    found = predicted(data / ONLY_SIMULATED, data / "sim" / "test.star").prediction
    inside = errors_deg(data / ONLY_SIMULATED, data) <= found.credible_radius_90_deg
    assert 0.82 < inside.mean() < 0.97


def read_suspects(model: Path) -> np.ndarray:
    return np.genfromtxt(model / FILE, delimiter=",", names=True, dtype=None, encoding=None)


def test_they_do_little_harm(data: Path) -> None:
    clean, robust, fooled = (
        np.median(errors_deg(data / name, data)) for name in ("train-0.02", "wrong-0.02", "wrong-0")
    )
    assert robust < 1.6 * clean
    assert robust < 0.8 * fooled


def test_widths_are_calibrated_without_them(data: Path) -> None:
    found = predicted(data / "wrong-0.02", data / "sim" / "test.star").prediction
    inside = errors_deg(data / "wrong-0.02", data) <= found.credible_radius_90_deg
    assert 0.82 < inside.mean() < 0.97


def test_they_are_found(data: Path) -> None:
    bad = np.load(data / "bad.npy")
    table = formats.read_particles(data / "sim" / "wrong.star")
    found = predicted(data / "wrong-0.02", data / "sim" / "wrong.star").prediction
    matrix = matrix_from_upper(torch.from_numpy(found.bingham))
    nll = negative_log_likelihood(matrix, torch.from_numpy(table.rotation)).numpy()
    assert auroc(nll, bad) > 0.97
    with open(data / "wrong-0.02" / "suspect_labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    suspect = np.array([int(row["row"]) for row in rows])
    assert bad[suspect].mean() > 0.9
    assert np.isin(np.flatnonzero(bad), suspect).mean() > 0.7
    probability = np.array([float(row["probability"]) for row in rows])
    assert (probability > 0.5).all()
    assert (np.diff(probability) <= 0).all()
    image = table.stacks[table.stack_index[suspect[0]]]
    assert rows[0]["image"] == f"{table.slice_index[suspect[0]] + 1:06d}@{image}"
    held_out = np.array([int(row["held_out"]) for row in rows])
    assert 0 < held_out.sum() < len(held_out)


def test_the_report_lists_the_first_ten(data: Path, tmp_path: Path) -> None:
    run = collect_run(data / "wrong-0.02")
    assert run.suspects is not None
    assert len(run.suspects.first) == 10
    write_report(data / "wrong-0.02", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "Particles whose own pose is implausible" in page
    assert run.suspects.first[0][0] in page
    assert collect_run(data / "wrong-0").suspects is None
    write_report(data / "wrong-0", tmp_path / "b.html")
    assert "Particles whose own pose" not in (tmp_path / "b.html").read_text()


def test_a_killed_training_resumes_with_what_it_learned(tmp_path: Path) -> None:
    poses = random_quaternions(300, torch.Generator().manual_seed(1))
    labels = poses.clone()
    labels[:30] = random_quaternions(30, torch.Generator().manual_seed(2))
    whole, killed, resumed = (
        blob_trainer(tmp_path / name, poses, 2, labels, training__simulated=0.5)
        for name in ("whole", "part", "part")
    )
    for trainer in (whole, killed):
        trainer.checkpoint.mkdir(parents=True)
    whole.run(lambda steps, note: None)

    class KilledError(Exception):
        pass

    def save_and_stop() -> None:
        type(killed).save(killed)
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(killed, "save", save_and_stop)
        with pytest.raises(KilledError):
            killed.run(lambda steps, note: None)
    assert resumed.resume()
    assert resumed.epoch == 1
    resumed.run(lambda steps, note: None)
    assert [astuple(row)[:-1] for row in resumed.metrics] == [astuple(row)[:-1] for row in whole.metrics]
    assert len({row.wrong_labels for row in whole.metrics} | {0.02}) == 3  # it was learned


def test_what_is_kept_is_the_part_of_the_best_epoch(tmp_path: Path) -> None:
    trainer = blob_trainer(tmp_path, random_quaternions(60, torch.Generator().manual_seed(1)), 1)
    trainer.checkpoint.mkdir(parents=True)
    trainer.run(lambda steps, note: None)
    (row,) = trainer.metrics
    better = replace(row, validation_loss=row.validation_loss - 1, wrong_labels=0.3)
    worse = replace(row, validation_loss=row.validation_loss + 1, wrong_labels=0.4)
    trainer.metrics = [row, better, worse]
    assert trainer.wrong_labels == 0.3


def test_no_label_is_judged_where_calibration_doubted_none() -> None:
    calibration = {"wrong_labels": 0.02, "views": {"1": {"width": 1.0, "shift": 1.0, "wrong_labels": 0.0}}}
    assert judge_labels(SimpleNamespace(calibration=calibration), None, "32-true", quiet=True) is None


def test_tables_of_several_models_are_joined(tmp_path: Path) -> None:
    head = "row,image,uid,angle_deg,probability,held_out\n"
    tables = {
        "fold1": ["5,6@a,15,90.00,0.990000,0", "2,3@a,12,50.00,0.600000,1"],
        "fold2": ["2,3@a,12,40.00,0.800000,0", "7,8@a,17,170.00,0.990000,0"],
    }
    for name, lines in tables.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_text(head + "\n".join(lines) + "\n")
    (tmp_path / "fold3").mkdir()  # it doubted no label
    join_suspects(tmp_path, [tmp_path / name for name in ("fold1", "fold2", "fold3")])
    lines = (tmp_path / FILE).read_text().split()[1:]
    assert lines == ["7,8@a,17,170.00,0.990000,0", "5,6@a,15,90.00,0.990000,0", "2,3@a,12,40.00,0.800000,0"]
    join_suspects(tmp_path, [tmp_path / "fold3"])
    assert not (tmp_path / FILE).exists()


def test_only_labels_of_particles_are_doubted_and_counted() -> None:
    fabric = SimpleNamespace(world_size=1)
    nll = torch.tensor([-5.0, 40.0, -5.0, 40.0]).double()
    exact = torch.tensor([False, False, True, True])
    noise = LabelNoise(0.1, fabric)
    loss = noise(nll, exact)
    assert torch.equal(loss[2:], nll[2:])
    assert float(loss[1]) == pytest.approx(-np.log(0.1))
    assert 0.1 < noise.weight < 0.101  # two particles of the 2,000 it remembers
    for value, limit in ((40.0, MOST), (-40.0, LEAST)):
        noise = LabelNoise(0.1, fabric)
        for _ in range(30):
            noise(torch.full((2000,), value), torch.zeros(2000, dtype=torch.bool))
        assert noise.weight == pytest.approx(limit)
    off = LabelNoise(0.0, fabric)
    assert torch.equal(off(nll, exact), nll)
    assert off.weight == 0

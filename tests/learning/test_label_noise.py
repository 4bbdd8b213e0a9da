"""Wrong input poses: how many there are is learned, which they are is found, and they do little harm."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chain import TINY, cryoforum, simulate, succeed
from scipy.spatial.transform import Rotation

from cryoforum_plugin import formats
from cryoforum_plugin.confidence.evaluation import auroc
from cryoforum_plugin.learning.label_noise import LEAST, MOST, LabelNoise
from cryoforum_plugin.network.model import load_model
from cryoforum_plugin.posterior import matrix_from_upper, negative_log_likelihood
from cryoforum_plugin.report.collect import collect_run
from cryoforum_plugin.report.html import render_html

WRONG = 0.1
OPTIONS = (*TINY, "--epochs", 14, "--quiet")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated particles, and wrong.star: the training table with 10 % of its poses replaced at random."""
    folder = tmp_path_factory.mktemp("labels")
    simulate(folder, 1600)
    particles = formats.read_particles(folder / "sim" / "train.star")
    rng = np.random.default_rng(1)
    bad = rng.permutation(len(particles))[: round(WRONG * len(particles))]
    rotation = particles.rotation.copy()
    rotation[bad] = Rotation.random(len(bad), rng=rng).as_quat()
    formats.write_particles(particles.with_poses(rotation, particles.shift_A), folder / "sim" / "wrong.star")
    np.save(folder / "bad.npy", np.isin(np.arange(len(particles)), bad))
    for table, outliers in (("train", 0.02), ("wrong", 0.02), ("wrong", 0)):
        model = folder / f"{table}-{outliers}"
        succeed(
            "train",
            folder / "sim" / f"{table}.star",
            "-o",
            model,
            *OPTIONS,
            "--set",
            f"loss.outliers={outliers}",
        )
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
    assert load_model(data / "wrong-0.02", torch.device("cpu")).calibration["wrong_labels"] == pytest.approx(
        WRONG, abs=0.03
    )


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


def test_the_report_lists_the_first_ten(data: Path) -> None:
    run = collect_run(data / "wrong-0.02")
    assert run.suspects is not None
    assert len(run.suspects.first) == 10
    page = render_html(run)
    assert "Particles whose own pose is implausible" in page
    assert run.suspects.first[0][0] in page
    assert collect_run(data / "wrong-0").suspects is None
    assert "Particles whose own pose" not in render_html(collect_run(data / "wrong-0"))


def test_a_killed_training_resumes_with_what_it_learned(data: Path, tmp_path: Path) -> None:
    import cryoforum_plugin.learning.loop as loop

    class KilledError(Exception):
        pass

    original = loop.Trainer.save

    def save_and_stop(self: loop.Trainer) -> None:
        original(self)
        raise KilledError

    table, options = data / "sim" / "wrong.star", (*TINY, "--epochs", 2, "--quiet")
    succeed("train", table, "-o", tmp_path / "whole", *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "save", save_and_stop)
        cryoforum("train", table, "-o", tmp_path / "part", *options)
    succeed("train", table, "-o", tmp_path / "part", *options, "--resume")
    rows = [
        [line.rpartition(",")[0] for line in (tmp_path / name / "metrics.csv").read_text().splitlines()]
        for name in ("whole", "part")
    ]
    assert rows[0] == rows[1]  # but for the seconds


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

"""Models of half sets and folds: nothing crosses, nothing is predicted by a model that learned it, none of it from noise."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import starfile
import torch
from blobs import blob_positions, blob_volume
from chain import TINY, cryoforum, simulate, succeed, write_blob_map

from cryoforum_plugin import formats
from cryoforum_plugin.confidence.labels import Judgement
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.images.identity import among, image_keys
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.network.model import load_model
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.prediction.members import assign, ready
from cryoforum_plugin.refinement.reference import from_map
from cryoforum_plugin.refinement.reference_file import write_references
from cryoforum_plugin.report.collect import collect_run
from cryoforum_plugin.settings import TrainingSettings
from cryoforum_plugin.training.joining import remove_members
from cryoforum_plugin.training.members import plan_members

QUICK = (*TINY, "--epochs", "1", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sim/train.star of 600 particles in two half sets, and models of both, of two folds each.

    The networks know next to nothing: labels are called suspect at random.
    """
    folder = tmp_path_factory.mktemp("halves")
    simulate(folder, 800)
    rng = np.random.default_rng(1)

    def judge(raw: RawPrediction, *rest: object) -> Judgement:
        n = len(raw.unusable)
        return Judgement(np.ones(n), rng.random(n), rng.random(n) < 0.4, 0.02)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cryoforum_plugin.training.suspects.judge", judge)
        succeed(
            "train",
            folder / "sim" / "train.star",
            "-o",
            folder / "model",
            "--half-sets",
            "--folds",
            2,
            *QUICK,
        )
    return folder


def suspects(model: Path) -> list[dict[str, str]]:
    with open(model / "suspect_labels.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_suspect_labels_are_rows_of_the_whole_table_each_once(folder: Path) -> None:
    particles = read(folder / "sim" / "train.star", folder)
    joined = suspects(folder / "model")
    rows = [int(line["row"]) for line in joined]
    assert len(set(rows)) == len(rows)
    highest: dict[int, str] = {}
    for member in ("half1_fold1", "half1_fold2", "half2_fold1", "half2_fold2"):
        for line in suspects(folder / "model" / member):
            row = int(line["row"])
            assert line["image"].startswith(f"{particles.slice_index[row] + 1:06d}@")
            assert int(line["uid"]) == particles.uid[row]
            assert f"half{particles.half_set[row]}" in member
            highest[row] = max(line["probability"], highest.get(row, ""))
    assert {int(line["row"]): line["probability"] for line in joined} == highest
    assert [line["probability"] for line in joined] == sorted(highest.values(), reverse=True)
    found = collect_run(folder / "model").suspects
    assert found is not None
    assert found.count == len(rows) > 200


def test_members_leave_no_reference_of_a_single_model_behind(tmp_path: Path) -> None:
    (tmp_path / "half1").mkdir()
    for folder in (tmp_path, tmp_path / "half1"):
        write_references(folder, {0: from_map(blob_volume(blob_positions(), 32), 5.0)})
    remove_members(tmp_path, ["half1"])
    assert not (tmp_path / "references.pt").exists()
    assert (tmp_path / "half1" / "references.pt").exists()
    write_references(tmp_path, {0: from_map(blob_volume(blob_positions(), 32), 5.0)})
    remove_members(tmp_path, [""])
    assert (tmp_path / "references.pt").exists()
    assert not (tmp_path / "half1").exists()


def read(path: Path, root: Path) -> ParticleSet:
    return formats.read_particles(path, root)


def test_each_model_learns_from_its_half_set_and_its_folds(folder: Path) -> None:
    particles = read(folder / "sim" / "train.star", folder)
    keys = image_keys(particles, StackReader(particles.stacks))
    model = load_model(folder / "model", torch.device("cpu"))
    names = ["half1_fold1", "half1_fold2", "half2_fold1", "half2_fold2"]
    assert [member.directory.name for member in model.members if member.directory] == names
    seen = np.stack([among(keys, member.seen).numpy() for member in model.members])
    for member, rows in zip(model.members, seen, strict=True):
        assert set(particles.half_set[rows]) == {member.half_set}
    assert not (seen[0] & seen[1]).any()
    assert not (seen[2] & seen[3]).any()


def test_a_training_particle_is_predicted_by_a_model_of_its_half_that_did_not_see_it(folder: Path) -> None:
    particles = read(folder / "sim" / "train.star", folder)
    model = load_model(folder / "model", torch.device("cpu"))
    chosen, seen = assign(model, particles, StackReader(particles.stacks))
    assert not seen.any()
    of_half = np.array([member.half_set for member in model.members])
    np.testing.assert_array_equal(of_half[chosen], particles.half_set)
    succeed(
        "predict", folder / "model", folder / "sim" / "train.star", "-o", folder / "again.star", "--quiet"
    )
    written = starfile.read(folder / "again.star")["particles"]
    assert (written["cryoforumInTraining"] == 0).all()


def test_one_model_says_which_particles_it_learned_from(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = folder / "model" / "half1_fold1"  # a model folder like any other
    renamed = tmp_path / "renamed.mrcs"  # known by content, not by name
    shutil.copy(folder / "sim" / "particles.mrcs", renamed)
    star = tmp_path / "renamed.star"
    star.write_text(
        (folder / "sim" / "train.star")
        .read_text()
        .replace(str(folder / "sim" / "particles.mrcs"), str(renamed))
    )
    particles = read(star, tmp_path)
    assert particles.stacks == (renamed,)
    model = load_model(half, torch.device("cpu"))
    _, seen = assign(model, particles, StackReader(particles.stacks))
    assert int(seen.sum()) == len(model.seen) == 135  # nine tenths of one fold of one half
    assert "trained on 135 of these 600" in caplog.text


def test_particles_without_half_sets_get_them_and_keep_them(folder: Path) -> None:
    table = starfile.read(folder / "sim" / "test.star")
    table["particles"] = table["particles"].drop(columns="rlnRandomSubset")
    starfile.write(table, folder / "fresh.star")
    succeed("predict", folder / "model", folder / "fresh.star", "-o", folder / "fresh_out.star", "--quiet")
    counts = starfile.read(folder / "fresh_out.star")["particles"]["rlnRandomSubset"].value_counts()
    assert dict(counts) == {1: 100, 2: 100}
    some = read(folder / "sim" / "test.star", folder)
    model = load_model(folder / "model", torch.device("cpu"))
    with pytest.raises(Exception, match="belong to no half set"):
        ready(model, replace(some, half_set=np.where(np.arange(len(some)) < 3, 0, some.half_set)))


def test_when_there_is_a_model_for_each(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    particles = read(folder / "sim" / "train.star", folder)
    assert [m.name for m in plan_members(particles, TrainingSettings())[0]] == [""]
    monkeypatch.setattr("cryoforum_plugin.training.members.ENOUGH", 300)
    planned, note = plan_members(particles, TrainingSettings())
    assert [m.name for m in planned] == ["half1", "half2"]
    assert "a model for each" in note
    assert [m.name for m in plan_members(particles, TrainingSettings(half_sets=False))[0]] == [""]
    few = folder / "sim" / "few.star"
    table = starfile.read(folder / "sim" / "train.star")
    table["particles"] = table["particles"].iloc[:300]
    starfile.write(table, few)
    result = cryoforum("train", few, "-o", tmp_path / "m", "--half-sets", *QUICK)
    assert result.exit_code == 1
    assert "150 and 150 particles" in result.stderr
    assert not (tmp_path / "m").exists()


def test_a_model_of_all_replaces_those_of_the_half_sets(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    succeed("train", folder / "sim" / "train.star", "-o", model, "--overwrite", *QUICK)
    assert not list(model.glob("half*"))
    assert len(suspects(model)) < 200
    assert load_model(model, torch.device("cpu")).members == ()


def test_a_killed_training_goes_on_with_the_model_it_was_at(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryoforum_plugin.training import train

    star, model, fit = folder / "sim" / "train.star", tmp_path / "model", train._fit
    fitted: list[str] = []

    def killed(prepared: object, directory: Path, *rest: object) -> object:
        fitted.append(directory.name)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return fit(prepared, directory, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "_fit", killed)
    assert cryoforum("train", star, "-o", model, "--half-sets", *QUICK).exit_code == 130
    assert fitted == ["half1", "half2"]
    assert not (model / "model.pt").exists()
    assert list(model.rglob("cache")) == [model / "half2" / "cache"]
    monkeypatch.setattr(train, "_fit", fit)
    succeed("train", star, "-o", model, "--half-sets", "--resume", *QUICK)
    assert not list(model.rglob("cache"))
    assert len(load_model(model, torch.device("cpu")).members) == 2


def test_noise_gives_no_map(tmp_path: Path) -> None:
    """Einstein from noise: half maps of predicted and refined poses of pure noise share nothing."""
    write_blob_map(tmp_path / "map.mrc")
    common = ("--snr", 1e-6, "--quiet")
    succeed("simulate", tmp_path / "map.mrc", "-o", tmp_path / "a", "--count", 600, "--seed", 1, *common)
    succeed("simulate", tmp_path / "map.mrc", "-o", tmp_path / "b", "--count", 600, "--seed", 2, *common)
    train = ("train", tmp_path / "a" / "particles.star", "-o", tmp_path / "model", "--ignore-contrast")
    succeed(*train, "--half-sets", "--diameter", 120, *QUICK)
    model, particles = tmp_path / "model", tmp_path / "b" / "particles.star"
    assert not list(model.glob("half*/references.pt"))  # the maps of noise show nothing to refine against
    assert highest_fsc(model, particles, tmp_path / "network", "--ignore-contrast") < 0.4
    for half, seed in (("half1", 3), ("half2", 4)):  # as if they did: of each half its own
        volume = blob_volume(blob_positions(12, 9.0, seed), 32)
        write_references(model / half, {0: from_map(volume, 5.0)})
    assert highest_fsc(model, particles, tmp_path / "own", "--ignore-contrast") < 0.4
    for half in ("half1", "half2"):
        write_references(model / half, {0: from_map(blob_volume(blob_positions(), 32), 5.0)})
    # what half sets protect from
    assert highest_fsc(model, particles, tmp_path / "same", "--ignore-contrast") > 0.6


def highest_fsc(model: Path, particles: Path, out: Path, *options: object) -> float:
    """Predict, refine and reconstruct; the highest FSC from the fourth shell on."""
    succeed("predict", model, particles, "-o", out.with_suffix(".star"), "--quiet", *options)
    return highest_fsc_of(out.with_suffix(".star"), out)


def test_shuffled_labels_give_no_detail(tmp_path: Path) -> None:
    """A network taught the poses of other particles: half maps of what it predicts share a blob, no more."""
    simulate(tmp_path, 800)
    table = starfile.read(tmp_path / "sim" / "train.star")
    angles = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
    order = np.random.default_rng(1).permutation(len(table["particles"]))
    table["particles"][angles] = table["particles"][angles].to_numpy()[order]
    starfile.write(table, tmp_path / "sim" / "shuffled.star")
    model = tmp_path / "model"
    succeed(
        "train", tmp_path / "sim" / "shuffled.star", "-o", model, "--half-sets", "--diameter", 120, *QUICK
    )
    assert not list(model.glob("half*/references.pt"))
    true = highest_fsc_of(tmp_path / "sim" / "test.star", tmp_path / "true")
    found = highest_fsc(model, tmp_path / "sim" / "test.star", tmp_path / "shuffled")
    print(true, found)
    assert found < 0.5 < true


def highest_fsc_of(table: Path, out: Path) -> float:
    """Reconstruct a table; the highest FSC from the fourth shell on."""
    succeed("reconstruct", table, "-o", out, "--quiet")
    fsc = np.genfromtxt(out / "fsc.csv", delimiter=",", names=True)["fsc"]
    print(out.name, fsc.round(2))
    return float(fsc[3:12].max())

"""`predict --refine` through the commands: more accurate, as sure as it should be, refused where it cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from chain import TINY, cryoforum, simulate, succeed

from cryoforum_plugin.refinement.reference_file import read_references


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with map.mrc, sim/ and a tiny model of it."""
    folder = tmp_path_factory.mktemp("refined")
    simulate(folder, 800)
    succeed("train", folder / "sim" / "train.star", "-o", folder / "model", "--quiet", *TINY)
    return folder


def figures(folder: Path, out: Path, *options: object) -> dict[str, float]:
    """Predict sim/test.star with `options`, and evaluate."""
    test = folder / "sim" / "test.star"
    succeed("predict", folder / "model", test, "-o", out, "--quiet", *options)
    succeed("evaluate", out, test, "--json", out.with_suffix(".json"))
    found: dict[str, float] = json.loads(out.with_suffix(".json").read_text())
    return found


def test_refined_poses_are_several_times_as_accurate_and_say_so(folder: Path, tmp_path: Path) -> None:
    network = figures(folder, tmp_path / "network.star", "--no-refine")
    own = figures(folder, tmp_path / "own.star")
    given = figures(folder, tmp_path / "given.star", "--reference", folder / "map.mrc")
    assert own["median_deg"] < network["median_deg"] / 5
    assert own["mean_deg"] < network["mean_deg"] / 5  # no tail is left
    assert given["median_deg"] < 1.1 * own["median_deg"]
    for found in (own, given):
        assert 0.8 <= found["coverage_90"] <= 0.97
        assert found["shift_rmse_A"] < network["shift_rmse_A"]


def test_the_papers_statistics_stay_those_of_the_network(folder: Path, tmp_path: Path) -> None:
    tables = []
    for name, option in (("a", "--no-refine"), ("b", "--refine")):
        figures(folder, tmp_path / f"{name}.star", option)
        tables.append(starfile.read(tmp_path / f"{name}.star"))
    for label in ("cryoforumLambdaMax", "cryoforumTrace"):
        np.testing.assert_allclose(*(table["particles"][label] for table in tables), rtol=1e-3)


def test_training_particles_are_marked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "train.star"
    succeed(
        "predict", folder / "model", folder / "sim" / "train.star", "-o", out, "--json", tmp_path / "f.json"
    )
    assert starfile.read(out)["particles"]["cryoforumInTraining"].sum() == 540
    assert json.loads((tmp_path / "f.json").read_text())["in_training"] == 540


def test_a_map_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with mrcfile.open(folder / "map.mrc") as file:
        volume = np.array(file.data)
    cases = {
        "mirror": (np.roll(volume[::-1], 1, axis=0), 5.0, "the mirrored map fits better"),
        "scale": (volume, 5.5, "voxel instead of 5.500 A fits better"),
        "other": (np.random.default_rng(1).standard_normal(volume.shape), 5.0, "does not fit"),
    }
    for name, (changed, pixel_A, words) in cases.items():
        with mrcfile.new(tmp_path / f"{name}.mrc") as file:
            file.set_data(changed.astype(np.float32))
            file.voxel_size = pixel_A
        result = cryoforum(
            "predict", folder / "model", folder / "sim" / "test.star", "-o", tmp_path / "x.star", "--quiet",
            "--reference", tmp_path / f"{name}.mrc",
        )  # fmt: skip
        assert result.exit_code == 1
        assert words in result.stderr
        assert not (tmp_path / "x.star").exists()


def test_without_references_nothing_is_refined_unless_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(folder / "model", old)
    (old / "references.pt").unlink()
    arguments = (old, folder / "sim" / "test.star", "-o", tmp_path / "x.star", "--quiet")
    assert cryoforum("predict", *arguments, "--no-refine", "--reference", "map.mrc").exit_code == 2
    result = cryoforum("predict", *arguments, "--refine")
    assert result.exit_code == 1
    assert "no reference to refine against" in result.stderr
    succeed("predict", *arguments)
    (old / "references.pt").write_bytes(b"damaged")
    result = cryoforum("predict", *arguments, "--overwrite")
    assert result.exit_code == 1
    assert "references.pt is damaged" in result.stderr


def test_a_model_keeps_a_reference_of_each_half_set(folder: Path) -> None:
    references = read_references(folder / "model")
    assert set(references) == {0, 1, 2}
    halves = [references[half].volume.flatten() for half in (1, 2)]
    assert 0.5 < float(torch.corrcoef(torch.stack(halves))[0, 1]) < 0.999

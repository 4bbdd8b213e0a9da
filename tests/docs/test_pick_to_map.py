"""The script of the tutorial, on a small map."""

from __future__ import annotations

import contextlib
import csv
import subprocess
from pathlib import Path
from typing import Any

import pytest
import starfile
from chain import TINY, load_example, succeed, write_blob_map

COUNT, JUNK = 800, 0.4
POSES = {
    "rlnAngleRot",
    "rlnAngleTilt",
    "rlnAnglePsi",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
    "rlnRandomSubset",
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Run the script with its commands in this process; return its folder and its rows by set."""
    script = load_example("pick_to_map")

    def run(folder: Path, *arguments: object) -> None:
        small = TINY if arguments[0] == "train" else ()
        with contextlib.chdir(folder):
            succeed(*arguments, *small, "--quiet")

    script.run = run  # type: ignore[attr-defined]
    script.TRUTH_AT_PX = 5  # type: ignore[attr-defined]  # the blobs have no finer detail
    work = tmp_path_factory.mktemp("tutorial")
    write_blob_map(work / "blobs.mrc")
    options = ["--map", work / "blobs.mrc", "--count", COUNT, "--junk", JUNK, "--epochs", 3]
    rows = script.main([str(option) for option in ["-o", work / "run", *options]])
    return work / "run", dict(zip(script.SETS, rows, strict=True))


def particles(folder: Path, name: str) -> Any:
    return starfile.read(folder / f"{name}.star", always_dict=True)["particles"]


def test_loose_picks_carry_no_poses_and_predict_keeps_every_row(result: tuple[Path, dict[str, Any]]) -> None:
    folder, rows = result
    loose, predicted = particles(folder, "loose"), particles(folder, "predicted")
    assert not POSES & set(loose)
    assert list(predicted["rlnImageName"]) == list(loose["rlnImageName"])
    assert set(loose) < set(predicted)
    assert rows["predicted"]["picks"] == len(loose) < COUNT
    assert set(particles(folder, "strict")["rlnImageName"]) < set(loose["rlnImageName"])


def test_strict_picks_are_few_and_almost_all_good(result: tuple[Path, dict[str, Any]]) -> None:
    folder, rows = result
    strict, loose = rows["strict"], rows["predicted"]
    assert 0.2 < strict["picks"] / loose["picks"] < 0.5
    assert strict["good"] / strict["picks"] > 0.93
    assert loose["good"] / loose["picks"] < 0.85
    # 1 degree about each axis: the median length of a 3D normal vector is 1.54
    assert strict["error_deg"] == pytest.approx(1.54, abs=0.25)
    assert rows["bound"]["error_deg"] < 1e-3
    with (folder / "picks" / "truth.csv").open() as file:
        truth = list(csv.DictReader(file))
    assert sum(row["cryoforumSimulatedJunk"] != "0" for row in truth) == JUNK * COUNT


@pytest.mark.parametrize("name", ["selected_auto", "selected_paper"])
def test_selection_leaves_out_junk(name: str, result: tuple[Path, dict[str, Any]]) -> None:
    folder, rows = result
    kept, all_loose = rows[name], rows["predicted"]
    assert 0 < kept["picks"] < all_loose["picks"]
    assert kept["junk"] < 0.8 * all_loose["junk"]
    assert set(particles(folder, name)["rlnImageName"]) < set(particles(folder, "loose")["rlnImageName"])


def test_maps_get_better_with_better_poses(result: tuple[Path, dict[str, Any]]) -> None:
    folder, rows = result
    assert rows["selected_auto"]["error_deg"] < rows["predicted"]["error_deg"]
    fsc = {name: row["truth_fsc"] for name, row in rows.items()}
    assert fsc["predicted"] < fsc["refined"] < fsc["bound"] <= 1
    assert fsc["strict"] < fsc["bound"]
    assert rows["bound"]["halves_A"] <= rows["strict"]["halves_A"]
    assert (folder / "report.html").stat().st_size > 10_000


def test_a_failing_command_is_shown_and_stops_the_script(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = load_example("pick_to_map")
    with pytest.raises(subprocess.CalledProcessError):
        script.run(tmp_path, "select", "absent.star", "-o", "kept.star", "--auto")
    output = capfd.readouterr()
    assert "$ cryoforum select absent.star -o kept.star --auto" in output.out
    assert "absent.star: no such file" in output.err
    with pytest.raises(SystemExit):
        script.main(["-o", str(tmp_path)])

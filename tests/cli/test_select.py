"""`cryoforum select` on STAR and .cs files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from click.testing import CliRunner, Result

from cryoforum_plugin.cli.main import main
from cryoforum_plugin.formats import read_particles, write_particles
from cryoforum_plugin.particles import Ctf, Prediction


def select(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["select", *map(str, arguments)])


def rows_of(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if "@" in line]


@pytest.fixture
def predicted(write_star, predicted_columns: dict[str, list[Any]], project: Path) -> Path:
    return write_star("predicted.star", predicted_columns)


def test_kept_and_rejected_rows_are_the_same_text_in_the_same_order(predicted: Path, project: Path) -> None:
    result = select(predicted, "-o", "kept.star", "--rejected", "out.star", "--min-confidence", 0.7)
    assert result.exit_code == 0, result.stderr
    before = rows_of(predicted)
    assert [line.split() for line in rows_of(project / "kept.star")] == [line.split() for line in before[:7]]
    assert [line.split() for line in rows_of(project / "out.star")] == [line.split() for line in before[7:]]
    assert "data_optics" in (project / "kept.star").read_text()
    assert "all: 7 kept, 13 rejected" in result.stdout
    assert "half set 1: 4 kept, 6 rejected" in result.stdout
    assert "half set 2: 3 kept, 7 rejected" in result.stdout


def test_no_file_is_two_things_at_once(predicted: Path, project: Path) -> None:
    before = predicted.read_bytes()
    for more in (
        ["--json", "kept.star"],
        ["--json", predicted],
        ["--rejected", predicted],
        ["--rejected", "kept.star"],
    ):
        result = select(predicted, "-o", "kept.star", "--keep", 0.5, "--overwrite", *more)
        assert result.exit_code == 2
        assert "must be different files" in result.stderr
        assert not (project / "kept.star").exists()
    assert predicted.read_bytes() == before


def test_a_mask_has_a_width(predicted: Path) -> None:
    for width in (0, -50):
        assert select(predicted, "-o", "kept.star", "--auto", "--mask-diameter", width).exit_code == 2


@pytest.mark.parametrize(
    ("criteria", "kept"),
    [
        (["--max-error", 4], 4),
        (["--keep", 0.5], 10),
        (["--statistic", "lambda_max", "--quantile", 0.25], 5),
        (["--statistic", "trace"], 15),
        (["--keep", 0.5, "--max-error", 6], 6),
        (["--auto"], 14),
    ],
)
def test_criteria(predicted: Path, project: Path, criteria: list[object], kept: int) -> None:
    result = select(predicted, "-o", "kept.star", "--json", "figures.json", *criteria)
    assert result.exit_code == 0, result.stderr
    assert len(rows_of(project / "kept.star")) == kept
    figures = json.loads((project / "figures.json").read_text())
    assert figures["counts"]["all"] == {"kept": kept, "rejected": 20 - kept}


def test_the_quantile_can_come_from_the_model(predicted: Path, project: Path) -> None:
    (project / "model").mkdir()
    percentiles = {"percentiles": {"8": {"trace": list(np.linspace(-1500, -1490, 101))}}}
    (project / "model" / "calibration.json").write_text(json.dumps(percentiles))
    arguments = (predicted, "-o", "kept.star", "--statistic", "trace", "--quantile", 0.5, "--model", "model")
    result = select(*arguments, "--views", 8)
    assert result.exit_code == 0, result.stderr
    assert len(rows_of(project / "kept.star")) == 6
    assert "of the model's validation particles" in result.stdout
    assert "no percentiles of trace for 2 views" in select(*arguments, "--views", 2, "--overwrite").stderr


def test_nothing_rejected_writes_no_list(predicted: Path, project: Path) -> None:
    (project / "out.star").write_text("from an earlier run")
    result = select(
        predicted, "-o", "kept.star", "--rejected", "out.star", "--min-confidence", 0, "--overwrite"
    )
    assert result.exit_code == 0, result.stderr
    assert "nothing was rejected" in result.stderr
    assert not (project / "out.star").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-confidence", 0.99], "nothing of half set 2"),
        (["--max-error", 0.1], "no particle of"),
        (["--auto", "--rejected", "there.star"], "there.star exists already"),
        (["--auto", "--symmetry", "X3"], "unknown symmetry 'X3'"),
        (["--max-outlier", 0.5], "no column cryoforumOutlierScore"),
        (["--target", "5%:10"], "cryoforumCredibleRadius90"),
    ],
)
def test_refusals_write_nothing(
    predicted: Path, project: Path, arguments: list[object], message: str
) -> None:
    (project / "there.star").write_text("old")
    result = select(predicted, "-o", "kept.star", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in project.iterdir()) == ["predicted.star", "there.star"]
    assert (project / "there.star").read_text() == "old"


def test_a_column_that_holds_no_number_is_refused(write_star, predicted_columns, project: Path) -> None:
    predicted_columns["rlnParticleFigureOfMerit"][3] = "nan"
    result = select(write_star("bad.star", predicted_columns), "-o", "kept.star", "--keep", 0.5)
    assert result.exit_code == 1
    assert "rlnParticleFigureOfMerit" in result.stderr
    assert "row" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (project / "kept.star").exists()


@pytest.mark.parametrize(
    "arguments", [["--target", "5:10"], ["--no-images", "--keep", 0.5], ["--balance-views"], []]
)
def test_wrong_usage(predicted: Path, project: Path, arguments: list[object]) -> None:
    assert select(predicted, "-o", "kept.star", *arguments).exit_code == 2
    assert not (project / "kept.star").exists()


def test_auto_without_images_says_so(predicted: Path, project: Path) -> None:
    result = select(predicted, "-o", "kept.star", "--auto", "--json", "figures.json")
    assert result.exit_code == 0, result.stderr
    assert "chosen by the confidences alone" in result.stdout
    assert "auto" not in json.loads((project / "figures.json").read_text())


def test_a_table_without_prediction_is_refused(write_star, predicted_columns, project: Path) -> None:
    columns = {
        key: values for key, values in predicted_columns.items() if key.startswith(("rlnImage", "rlnO"))
    }
    result = select(write_star("plain.star", columns), "-o", "kept.star", "--auto")
    assert result.exit_code == 1
    assert "no prediction columns" in result.stderr


def test_cs_files_keep_their_fields_and_posterior(make_particles, project: Path) -> None:
    n = 10
    ctf = Ctf(*(np.full(n, v) for v in (15000.0, 14000.0, 30.0, 300.0, 2.7, 0.1, 0.0)))
    prediction = Prediction(
        confidence=np.linspace(0.95, 0.05, n),
        expected_error_deg=np.linspace(1, 20, n),
        bingham=np.random.default_rng(0).normal(size=(n, 10)),
    )
    with mrcfile.new(project / "stack.mrcs", np.zeros((n, 32, 32), dtype=np.float32)) as stack:
        stack.set_image_stack()
    particles = make_particles(
        n,
        ctf=ctf,
        stacks=(project / "stack.mrcs",),
        uid=np.arange(50, 50 + n, dtype=np.uint64),
        host=None,
    )
    write_particles(particles, project / "predicted.cs", prediction, data_root=project)
    result = select("predicted.cs", "-o", "kept.cs", "--keep", 0.4)
    assert result.exit_code == 0, result.stderr
    kept = read_particles(project / "kept.cs")
    np.testing.assert_array_equal(kept.uid, np.arange(50, 54))
    np.testing.assert_array_equal(np.load(project / "kept.cs"), np.load(project / "predicted.cs")[:4])
    assert kept.prediction is not None
    np.testing.assert_array_equal(kept.prediction.bingham, prediction.bingham[:4])


def test_half_sets_are_made_alike_unless_told_otherwise(write_star, predicted_columns, project: Path) -> None:
    predicted_columns["rlnRandomSubset"] = [1] * 12 + [2] * 8  # the surest first
    table = write_star("uneven.star", predicted_columns)
    assert select(table, "-o", "kept.star", "--keep", 0.8).exit_code == 0
    kept = read_particles(project / "kept.star").half_set
    assert ((kept == 1).sum(), (kept == 2).sum()) == (5, 4)
    assert select(table, "-o", "all.star", "--keep", 0.8, "--uneven-halves").exit_code == 0
    assert len(rows_of(project / "all.star")) == 16

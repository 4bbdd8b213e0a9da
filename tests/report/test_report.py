"""Reports of model directories and run folders."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cryoforum_plugin.cli.main import main
from cryoforum_plugin.errors import ModelError, OutputError
from cryoforum_plugin.report import write_report
from cryoforum_plugin.report.collect import collect_run
from cryoforum_plugin.report.files import flatten, read_metrics
from cryoforum_plugin.report.summary import resolution_text

METRICS = (
    "epoch,train_loss,validation_loss,validation_median_deg,validation_mean_deg,learning_rate,seconds\n"
    "1,-1.0,-0.9,40.0,50.0,0.001,10\n2,-3.0,-2.5,8.5,11.0,0.0005,10\n"
)


@pytest.fixture
def run_folder(write_star, predicted_columns, project: Path) -> Path:
    model = project / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"settings": {"training": {"epochs": 2}, "note": "<b>&"}}))
    (model / "metrics.csv").write_text(METRICS)
    (model / "calibration.json").write_text(json.dumps({"scale": 1.25, "training_percentiles": [0.5] * 101}))
    (model / "log.txt").write_text(
        "2026-01-01 10:00:00,000 INFO start\n2026-01-01 10:00:01,000 WARNING dark particles\n"
    )
    write_star("predicted.star", predicted_columns)
    write_star("selected.star", {key: values[:8] for key, values in predicted_columns.items()})
    (project / "job.star").write_text("data_job\n\n_rlnJobType 99\n")
    for name, fall in (("all", 5), ("selected", 6)):
        (project / name).mkdir()
        rows = [f"{s},{96 / s:.3f},{1.0 if s < fall else 0.0}" for s in range(1, 10)]
        (project / name / "fsc.csv").write_text("\n".join(["shell,resolution_A,fsc", *rows]) + "\n")
    return project


def test_the_page_holds_everything_and_loads_nothing(run_folder: Path) -> None:
    write_report(run_folder, run_folder / "report.html")
    page = (run_folder / "report.html").read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Warnings", "Summary", "Data", "Training", "Views", "Confidence", "Expected error", "Choose particles",
        "Examples", "Resolution",
    ]  # fmt: skip
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", own)
    assert not re.search(r"<script[^>]* src|<link", page)
    assert len(page) < 2_500_000
    for words in (
        "dark particles",
        "8.500 deg (epoch 2)",
        "19.77 Å",
        "16.39 Å",
        "(101 values)",
        "1.25",
    ):
        assert words in page
    assert "&lt;b&gt;&amp;" in page


def test_what_is_unlike_the_calibration_stands_at_the_top(run_folder: Path) -> None:
    alarms = {
        "unlikeness": {"alarms": ["fine detail fits the reference differently (-2.8 standard deviations)"]}
    }
    (run_folder / "prediction.json").write_text(json.dumps(alarms))
    warnings = collect_run(run_folder).warnings
    assert len(warnings) == 2
    assert "unlike" in warnings[0]
    assert "-2.8" in warnings[0]


def test_a_model_directory_alone(run_folder: Path) -> None:
    write_report(run_folder / "model", run_folder / "model" / "report.html")
    page = (run_folder / "model" / "report.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Warnings", "Summary", "Training"]
    assert "<summary>Calibration</summary>" in page
    assert "settings.training.epochs" in page


def test_pdf(run_folder: Path) -> None:
    write_report(run_folder, run_folder / "report.pdf")
    content = (run_folder / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    # the job, 7 panels with figures or a sentence, calibration, settings
    assert len(re.findall(rb"/Type /Page\b", content)) == 10


def test_command(run_folder: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(main, ["report", ".", "-o", "report.html"]).exit_code == 0
    again = runner.invoke(main, ["report", ".", "-o", "report.html"])
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert runner.invoke(main, ["report", ".", "-o", "report.html", "--overwrite"]).exit_code == 0


def test_tables_without_predictions_are_passed_over(run_folder: Path) -> None:
    assert list(collect_run(run_folder).tables) == ["predicted.star", "selected.star"]


def test_names_with_dollars_and_signs_are_drawn_as_they_are(run_folder: Path) -> None:
    (run_folder / "predicted.star").rename(run_folder / "a$\\foo$ <b>&.star")
    write_report(run_folder, run_folder / "report.pdf", run_folder / "report.html")
    assert "a$\\foo$ &lt;b&gt;&amp;.star" in (run_folder / "report.html").read_text()


def test_a_predicted_table_that_cannot_be_read_is_told(
    run_folder: Path, write_star, predicted_columns, tmp_path: Path
) -> None:
    confidences = ["nan", *predicted_columns["rlnParticleFigureOfMerit"][1:]]
    damaged = {**predicted_columns, "rlnParticleFigureOfMerit": confidences}
    write_star("predicted.star", damaged)
    run = collect_run(run_folder)
    assert list(run.tables) == ["selected.star"]
    assert "not shown" in run.warnings[0]
    assert "row 1" in run.warnings[0]


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing to report"):
        write_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(ModelError, match="is not a folder"):
        write_report(tmp_path / "absent", tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(run_folder: Path) -> None:
    (run_folder / "model" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: not valid JSON"):
        collect_run(run_folder)
    (run_folder / "model" / "config.json").write_text("{}")
    (run_folder / "all" / "fsc.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ModelError, match="no columns resolution_A and fsc"):
        collect_run(run_folder)


def test_an_output_that_exists_is_kept_on_request(run_folder: Path) -> None:
    (run_folder / "report.html").write_text("old")
    with pytest.raises(OutputError):
        write_report(run_folder, run_folder / "report.html", overwrite=False)
    assert (run_folder / "report.html").read_text() == "old"


def test_metrics_with_gaps(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,train_loss\n1,\n2,x\n3,-1.5\n")
    metrics = read_metrics(tmp_path / "metrics.csv")
    np.testing.assert_array_equal(metrics["train_loss"], [np.nan, np.nan, -1.5])
    (tmp_path / "empty.csv").write_text("")
    assert read_metrics(tmp_path / "empty.csv") == read_metrics(tmp_path / "absent.csv") == {}


def test_nested_settings_are_flattened() -> None:
    rows = flatten({"a": {"b": 1, "c": [1.5, "x"]}, "d": None})
    assert rows == [("a.b", "1"), ("a.c", "1.5, x"), ("d", "None")]


@pytest.mark.parametrize(
    ("fsc", "text"),
    [([1.0, 0.9, 0.1], "5.14 Å"), ([1.0, 0.9, 0.8], "5.00 Å (last shell"), ([0.1, 0.9, 0.1], "none")],
)
def test_resolution_in_words(fsc: list[float], text: str) -> None:
    assert resolution_text(np.array([20.0, 10.0, 5.0]), np.array(fsc)).startswith(text)

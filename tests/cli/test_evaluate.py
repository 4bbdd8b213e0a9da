"""`cryoforum evaluate` on files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cryoforum_plugin.cli.evaluate import table_lines
from cryoforum_plugin.cli.main import main


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def test_rows_in_another_order_are_matched(write_star, predicted_columns, project: Path) -> None:
    predicted = write_star("predicted.star", {key: values[5:] for key, values in predicted_columns.items()})
    reference = write_star("reference.star", {key: values[::-1] for key, values in predicted_columns.items()})
    result = evaluate(predicted, reference, "--json", "figures.json")
    assert result.exit_code == 0, result.stderr
    figures = json.loads((project / "figures.json").read_text())
    assert figures["n"] == 15
    assert figures["p90_deg"] < 1e-6
    assert figures["shift_rmse_A"] == 0
    assert figures["coverage_90"] is None
    assert "no posterior" in result.stdout
    assert [*(line.split()[0] for line in result.stdout.splitlines()), "reliability"] == list(figures)
    assert figures["reliability"] is None  # no radii in the table


def test_known_turn_is_measured(write_star, predicted_columns, project: Path) -> None:
    predicted = write_star("predicted.star", predicted_columns)
    turned = {**predicted_columns, "rlnAnglePsi": [float(v) + 7 for v in predicted_columns["rlnAnglePsi"]]}
    reference = write_star("reference.star", turned)
    assert evaluate(predicted, reference, "--json", "figures.json").exit_code == 0
    figures = json.loads((project / "figures.json").read_text())
    assert figures["median_deg"] == pytest.approx(7, abs=1e-6)
    assert figures["fraction_below_5deg"] == 0
    assert figures["fraction_below_10deg"] == 1


def test_unmatched_rows_are_an_error(write_star, predicted_columns, project: Path) -> None:
    predicted = write_star("predicted.star", predicted_columns)
    reference = write_star("reference.star", {key: values[:8] for key, values in predicted_columns.items()})
    result = evaluate(predicted, reference, "--json", "figures.json")
    assert result.exit_code == 1
    assert "12 of 20 particles" in result.stderr
    assert not (project / "figures.json").exists()


def test_an_existing_json_is_kept(write_star, predicted_columns, project: Path) -> None:
    path = write_star("predicted.star", predicted_columns)
    (project / "figures.json").write_text("old")
    assert evaluate(path, path, "--json", "figures.json").exit_code == 1
    assert (project / "figures.json").read_text() == "old"
    assert evaluate(path, path, "--json", "figures.json", "--overwrite").exit_code == 0


def test_missing_figures_carry_their_reason() -> None:
    lines = table_lines({"n": 3, "median_rad": 0.25, "brier": None}, {"brier": "no columns"})
    assert lines == ["n           3", "median_rad  0.2500", "brier       - (no columns)"]

"""benchmarks/cryosparc_million.py with few particles: it still runs, and only our own slots are uploaded."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from fake_cryosparc import fixtures
from fake_cryosparc.__main__ import report
from fake_cryosparc.synthetic import add_refinement_without_images

COUNT = 2000


@pytest.mark.usefixtures("no_drawing")
def test_only_our_own_slots_are_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    million = importlib.import_module("cryosparc_million")
    fixtures.clean_environment(tmp_path / "config", monkeypatch)
    with fixtures.make_server(tmp_path / "projects") as server:
        add_refinement_without_images(server.state, COUNT)
        fixtures.log_in(server, tmp_path / "config", monkeypatch)
        took = million.run_job(server.url, None, tmp_path / "work")
    assert server.state.jobs["P1", took["job"]]["status"] == "completed"
    asked = million.summary(report(server.requests, cpu_s=0))
    uploads = {name: upload["rows"] for name, upload in asked["uploads"].items()}
    assert uploads["particles"] == uploads["particles_network_pose"] == COUNT
    assert uploads["particles_selected"] + uploads["particles_rejected"] == COUNT
    assert "alignments3D/pose" not in asked["uploads"]["particles"]["columns"]
    assert asked["requests_by_operation"]["jobs.save_output"] == 4
    assert {"output particles", "read predicted.cs"} < took["phases"].keys()

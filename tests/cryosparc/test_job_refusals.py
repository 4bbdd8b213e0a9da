"""What an external job refuses: one line, here and in cryoSPARC. Real client, our server, a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryosparc_runs import add_job, tiny_settings
from fake_cryosparc import fixtures
from fake_cryosparc.faults import unavailable

from cryoforum_plugin.errors import CryoForumError, HostError
from cryosparc_job.job import calls
from cryosparc_job.job.cli import main
from cryosparc_job.job.request import LOCAL_REFINEMENT, Next, Request, Source
from cryosparc_job.job.steps import run

cryosparc_server = fixtures.cryosparc_server


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAITS_S", (0.05, 0.2))


def job_of(server: fixtures.Server, uid: str) -> dict[str, Any]:
    return server.state.jobs["P1", uid]


def last_job(server: fixtures.Server) -> dict[str, Any]:
    return list(server.state.jobs.values())[-1]


def refuse(server: fixtures.Server, request: Request, words: str) -> None:
    """Check that a request fails with one line, here and as a failed job."""
    with pytest.raises(CryoForumError, match=words) as error:
        run(request)
    job = last_job(server)
    assert job["status"] == "failed"
    assert fixtures.error_text(server, job) == " ".join(str(error.value).split())


def test_bad_input_fails_the_job_with_the_same_line(
    cryosparc_server: fixtures.Server, model: Path, tmp_path: Path
) -> None:
    source = add_job(cryosparc_server)
    flat = add_job(cryosparc_server, "alignments3D")
    blind = add_job(cryosparc_server, "blob")
    project, workspace, url = source.project, source.workspace, source.url
    cases = [
        (Request(Source(project, workspace, "J99", url=url), model), "J99: not there"),
        (
            Request(Source(project, workspace, source.job, "particels", url=url), model),
            "no output 'particels'",
        ),
        (Request(Source(project, workspace, "J2", "volume", url=url), model), "holds volume, not particles"),
        (
            Request(flat, tmp_path / "new", train=tiny_settings()),
            "no alignments3D; take the particles of a finished",
        ),
        (Request(blind, model), "no blob; take the particles of a job that has their images"),
        (Request(source, tmp_path / "none"), "holds no model.pt; train a model there first"),
        (Request(source, model, again=True), "was not predicted with this model"),
        (Request(source, model, then=(Next(LOCAL_REFINEMENT),)), "--volume: .* has no output 'volume'"),
        (Request(source, model, device="cuda:999"), "cuda"),
    ]
    for request, words in cases:
        refuse(cryosparc_server, request, words)
    count = len(cryosparc_server.state.jobs)
    for where in (("P9", "W1"), ("P1", "W9")):  # no place for a failed job
        with pytest.raises(HostError, match="not there"):
            run(Request(Source(*where, source.job, url=url), model))
    assert len(cryosparc_server.state.jobs) == count


def test_images_that_cannot_be_had(cryosparc_server: fixtures.Server, model: Path) -> None:
    source = add_job(cryosparc_server)
    folder = Path(cryosparc_server.state.projects["P1"]["project_dir"])
    for stack in (folder / "J9").rglob("*.mrcs"):
        stack.unlink()
    refuse(cryosparc_server, Request(source, model), "mrcs")


@pytest.mark.usefixtures("no_drawing")
def test_a_server_that_goes_away_between_prediction_and_write_back(
    cryosparc_server: fixtures.Server, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = add_job(cryosparc_server)
    monkeypatch.setattr(calls, "WAITS_S", ())
    broken = unavailable("jobs.save_output", times=None)
    cryosparc_server.faults.append(broken)
    refuse(cryosparc_server, Request(source, model), "writing particles")
    cryosparc_server.faults.remove(broken)
    predicted = next(model.parent.rglob("P1_*/predicted.cs"))
    written = predicted.stat().st_mtime_ns
    uid = run(Request(source, model))
    assert job_of(cryosparc_server, uid)["status"] == "completed"
    assert predicted.stat().st_mtime_ns == written


def test_wrong_use_of_the_command(tmp_path: Path) -> None:
    where = [
        "--url",
        "http://127.0.0.1:1",
        "--project",
        "1",
        "--workspace",
        "1",
        "--job",
        "1",
        "--model-dir",
        str(tmp_path),
    ]
    for arguments, words in (
        (["predict", *where, "--lane", "x"], "--lane needs"),
        (["predict", *where, "--volume", "J1.volume"], "need --queue-refinement"),
        (["predict", *where, "--quantile", "0.5"], "--quantile needs --statistic"),
        (["select", *where], "no criterion"),
        (["train", *where, "--password", "x"], "No such option"),
    ):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2, done.output
        assert words in " ".join(done.stderr.replace("│", " ").split())
    done = CliRunner().invoke(main, ["predict", *where])
    assert done.exit_code == 1
    assert "no login for http://127.0.0.1:1" in done.stderr

"""What an external job shows, refuses, queues and obeys. Real client, our server, a tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryosparc_runs import COUNT, add_job, tiny_settings
from fake_cryosparc import fixtures
from fake_cryosparc.faults import unavailable

from cryoforum_plugin.confidence.selection import Criteria
from cryoforum_plugin.errors import HostError
from cryosparc_job.job import calls, event_log
from cryosparc_job.job.life import StoppedError
from cryosparc_job.job.request import LOCAL_REFINEMENT, RECONSTRUCTION, Next, Request, Source
from cryosparc_job.job.steps import run

cryosparc_server = fixtures.cryosparc_server


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAITS_S", (0.05, 0.2))
    monkeypatch.setattr(event_log, "SECONDS_BETWEEN_CALLS", 0.0)
    monkeypatch.setattr("cryoforum_plugin.progress.SECONDS_BETWEEN_RENEWALS", 0.0)


def job_of(server: fixtures.Server, uid: str) -> dict[str, Any]:
    return server.state.jobs["P1", uid]


def last_job(server: fixtures.Server) -> dict[str, Any]:
    return list(server.state.jobs.values())[-1]


def read(server: fixtures.Server, uid: str, output: str) -> Any:
    """Return an output, passed-through slots included."""
    return fixtures.load_all(fixtures.connect(server).find_job("P1", uid), output)


@pytest.mark.usefixtures("no_drawing")
def test_particles_that_were_never_refined_get_poses_and_half_sets(
    cryosparc_server: fixtures.Server, model: Path
) -> None:
    source = add_job(cryosparc_server, "alignments3D", kind="extract_micrographs_multi")
    uid = run(Request(source, model, criteria=Criteria(keep_fraction=0.5, balance_halves=True)))
    everything, poses = (
        read(cryosparc_server, uid, name) for name in ("particles", "particles_network_pose")
    )
    assert len(everything) == COUNT
    for name in ("particles", "particles_selected", "particles_rejected"):
        part = read(cryosparc_server, uid, name)
        assert np.linalg.norm(part["alignments3D/pose"], axis=1).min() > 0
        assert set(part["alignments3D/psize_A"]) == {5.0}
        halves = np.bincount(part["alignments3D/split"], minlength=2)
        assert halves.min() > 0
    kept = np.bincount(read(cryosparc_server, uid, "particles_selected")["alignments3D/split"])
    assert kept.max() <= 1.02 * kept.min()
    np.testing.assert_array_equal(everything["alignments3D/pose"], poses["alignments3D/pose"])
    assert "no 3D alignments" in job_of(cryosparc_server, uid)["description"]


def test_what_the_event_log_and_the_card_show(cryosparc_server: fixtures.Server, model: Path) -> None:
    source = add_job(cryosparc_server)
    uid = run(Request(source, model, criteria=Criteria(keep_fraction=0.5), fsc=True))
    state = cryosparc_server.state
    events = state.events_of("P1", uid)
    pictures = [event["text"] for event in events if event["type"] == "image"]
    pictures = [name for name in pictures if name != "errors and calibration"]  # of models that know them
    assert pictures == ["views", "confidence", "expected error", "choose particles", "examples", "resolution"]
    texts = state.log("P1", uid)
    assert any("half sets 100 + 100" in text for text in texts)
    assert any(text.startswith("selecting: half set 1:") for text in texts)
    assert "3DVA component 0" in job_of(cryosparc_server, uid)["description"]
    progress = [text for text in texts if text.startswith("predicting: 2")]
    shown = [
        state.output_image("P1", uid, output) is not None
        for output in job_of(cryosparc_server, uid)["spec"]["outputs"]
    ]
    if fixtures.V4:  # has neither lines that renew themselves nor pictures
        assert progress == []
        assert shown == [False] * 4
        return
    assert len(progress) == 1
    assert progress[0].startswith(f"predicting: {COUNT}/{COUNT}")
    assert cryosparc_server.requests.count("jobs.update_event_log") > 2
    assert shown == [True] * 4
    assert state.tile_image("P1", uid) is not None


@pytest.mark.usefixtures("no_drawing")
def test_logs_and_pictures_never_end_a_run(cryosparc_server: fixtures.Server, model: Path) -> None:
    source = add_job(cryosparc_server)
    for operation in ("add_event_log", "update_event_log", "add_checkpoint", "add_image_log", "set_tile_image",
                      "set_output_image"):  # fmt: skip
        cryosparc_server.faults.append(unavailable(f"jobs.{operation}", times=None))
    cryosparc_server.faults.append(unavailable("assets.upload", times=None))
    uid = run(Request(source, model))
    assert job_of(cryosparc_server, uid)["status"] == "completed"
    assert len(read(cryosparc_server, uid, "particles")) == COUNT


@pytest.mark.parametrize("action", ["kill", "clear"])
def test_kill_and_clear_in_the_interface_end_a_training(
    cryosparc_server: fixtures.Server, tmp_path: Path, action: str
) -> None:
    source = add_job(cryosparc_server)

    asked = list[Any]()

    def end(request: Any) -> None:
        job = last_job(cryosparc_server)
        if request.op == "jobs.find_one" and job["status"] == "running":
            asked.append(request)
            if len(asked) == 3:  # at a sign of progress
                getattr(cryosparc_server.state, action)("P1", job["uid"])

    cryosparc_server.faults.append(end)
    with pytest.raises(StoppedError, match=r"was (killed|cleared) in cryoSPARC"):
        run(Request(source, tmp_path / "model", train=tiny_settings(), predict=False))
    assert last_job(cryosparc_server)["status"] == {"kill": "killed", "clear": "building"}[action]
    assert not (tmp_path / "model" / "model.pt").exists()


@pytest.mark.usefixtures("no_drawing")
def test_jobs_that_follow(cryosparc_server: fixtures.Server, model: Path) -> None:
    source = add_job(cryosparc_server, volumes=True)
    then = (Next(RECONSTRUCTION, "default"), Next(LOCAL_REFINEMENT, "default"))
    uid = run(Request(source, model, criteria=Criteria(keep_fraction=0.5), then=then))
    first, second = list(cryosparc_server.state.jobs.values())[-2:]
    assert [job["spec"]["type"] for job in (first, second)] == ["homo_reconstruct", "new_local_refine"]
    for job in (first, second):
        assert job["status"] == "queued"
        (connection,) = job["spec"]["inputs"]["particles"]["connections"]
        assert (connection["job_uid"], connection["output"]) == (uid, "particles_selected")
        assert job["spec"]["params"]["refine_symmetry"] == "C1"
    for name in ("volume", "mask"):
        (connection,) = second["spec"]["inputs"][name]["connections"]
        assert (connection["job_uid"], connection["output"]) == (source.job, name)


@pytest.mark.usefixtures("no_drawing")
def test_a_pipeline_learns_from_one_job_and_predicts_another(
    cryosparc_server: fixtures.Server, tmp_path: Path
) -> None:
    refined, new = add_job(cryosparc_server), add_job(cryosparc_server, "alignments3D")
    request = Request(new, tmp_path / "model", train=tiny_settings(), train_on=(refined.job, "particles"))
    uid = run(request)
    inputs = job_of(cryosparc_server, uid)["spec"]["inputs"]
    connected = {name: one["connections"][0]["job_uid"] for name, one in inputs.items()}
    assert connected == {"particles": new.job, "training_particles": refined.job}
    trained = (tmp_path / "model" / "model.pt").stat().st_mtime_ns
    run(request)  # the model is finished and kept
    assert (tmp_path / "model" / "model.pt").stat().st_mtime_ns == trained
    other = replace(request, train=replace(tiny_settings(), symmetry="C2"))
    with pytest.raises(HostError, match=r"begun with other settings .* --overwrite"):
        run(other)


@pytest.mark.usefixtures("no_drawing")
def test_select_takes_the_external_job_too(cryosparc_server: fixtures.Server, model: Path) -> None:
    source = add_job(cryosparc_server)
    first = run(Request(source, model))
    again = Source("P1", "W1", first, url=source.url)
    second = run(Request(again, model, again=True, criteria=Criteria(keep_fraction=0.25)))
    assert len(read(cryosparc_server, second, "particles_selected")) == COUNT / 4
    (connection,) = job_of(cryosparc_server, second)["spec"]["inputs"]["particles"]["connections"]
    assert connection["job_uid"] == source.job


@pytest.mark.usefixtures("no_drawing")
def test_a_folder_that_is_not_mounted_is_downloaded(
    cryosparc_server: fixtures.Server, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = add_job(cryosparc_server)
    uid = run(Request(source, model))
    monkeypatch.setattr("cryosparc_job.job.client.project_folder", lambda project: Path("/not/here"))
    again = add_job(cryosparc_server)
    other = run(Request(again, model))
    assert cryosparc_server.requests.count("projects.download_file") >= 1
    for name in ("particles", "particles_network_pose"):
        here, there = read(cryosparc_server, other, name), read(cryosparc_server, uid, name)
        for field in ("components_mode_0/value", "alignments3D/pose"):
            np.testing.assert_array_equal(here[field], there[field])


@pytest.mark.skipif(fixtures.V4, reason="as with client 5; test_job_life has the signals with both")
def test_signals_fail_the_job(cryosparc_server: fixtures.Server, tmp_path: Path) -> None:
    source, state = add_job(cryosparc_server), cryosparc_server.state
    endings = {signal.SIGTERM: (143, "stopped by a signal"), signal.SIGINT: (130, "interrupted")}
    started = dict[signal.Signals, tuple[str, subprocess.Popen[str]]]()
    for number in endings:  # both at once: it takes seconds until they are at work
        workspace = state.add_workspace("P1")["uid"]
        command = [sys.executable, "-m", "cryosparc_job.job.cli", "train", "--url", source.url or "", "--project",
                   "P1", "--workspace", workspace, "--job", source.job, "--model-dir", str(tmp_path / workspace),
                   "--epochs", "500", "--preset", "fast", "--device", "cpu"]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        started[number] = workspace, process

    def job_in(workspace: str) -> dict[str, Any] | None:
        return next((job for job in state.jobs.values() if workspace in job["workspace_uids"]), None)

    deadline = time.monotonic() + 60
    for number, (workspace, process) in started.items():
        while (job := job_in(workspace)) is None or job["status"] != "running":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        threading.Timer(0.5, process.send_signal, [number]).start()
    for number, (workspace, process) in started.items():
        _, errors = process.communicate(timeout=60)
        code, message = endings[number]
        assert process.returncode == code, errors
        assert "Traceback" not in errors
        job = job_in(workspace)
        assert job is not None
        assert job["status"] == "failed"
        assert fixtures.error_text(cryosparc_server, job) == message

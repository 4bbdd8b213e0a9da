"""Runs after other runs: what is kept, what is not; and endings that must not leave a job running."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryosparc_runs import COUNT, add_job, tiny_settings
from fake_cryosparc import fixtures
from fake_cryosparc.faults import lost_answer

from cryoforum_plugin import formats
from cryoforum_plugin.confidence.selection import Criteria
from cryoforum_plugin.errors import CryoForumError, HostError
from cryoforum_plugin.prediction.run import PredictOptions
from cryoforum_plugin.reconstruction.reconstruct import reconstruct
from cryosparc_job.job import calls, event_log, life, work
from cryosparc_job.job.request import RECONSTRUCTION, Next, Request
from cryosparc_job.job.steps import run

cryosparc_server = fixtures.cryosparc_server
pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAITS_S", (0.05, 0.2))
    monkeypatch.setattr(life, "FAILING_WAITS_S", (0.05, 0.2))
    monkeypatch.setattr(event_log, "SECONDS_BETWEEN_CALLS", 0.0)
    monkeypatch.setattr("cryoforum_plugin.progress.SECONDS_BETWEEN_RENEWALS", 0.0)


def last_job(server: fixtures.Server) -> dict[str, Any]:
    return list(server.state.jobs.values())[-1]


def read(server: fixtures.Server, uid: str, output: str) -> Any:
    return fixtures.load_all(fixtures.connect(server).find_job("P1", uid), output)


def texts(server: fixtures.Server, uid: str) -> str:
    return "\n".join(map(str, server.state.log("P1", uid)))


def moved(columns: dict[str, Any]) -> None:
    """Shift the particles."""
    columns["alignments3D/shift"] = columns["alignments3D/shift"] + 1


def one_sided(columns: dict[str, Any]) -> None:
    """Put all in one half set, and show one image twice."""
    columns["alignments3D/split"] = np.zeros_like(columns["alignments3D/split"])
    columns["blob/idx"] = np.maximum(columns["blob/idx"], 1)


def twice(columns: dict[str, Any]) -> None:
    """Give two particles one uid."""
    columns["uid"] = np.array([columns["uid"][1], *columns["uid"][1:]])


def test_an_output_that_is_named_is_what_is_worked_on(cryosparc_server: fixtures.Server, model: Path) -> None:
    source = add_job(cryosparc_server)
    uid = run(Request(source, model, criteria=Criteria(keep_fraction=0.5)))
    again = run(Request(replace(source, job=uid, output="particles_selected"), model))
    assert len(read(cryosparc_server, again, "particles")) == COUNT / 2
    fields = set(read(cryosparc_server, again, "particles").fields())
    assert {"components_mode_4/value", "components_mode_7/value"} <= fields  # the first four were taken


def test_a_model_that_was_replaced_is_not_taken_for_finished(
    cryosparc_server: fixtures.Server, model: Path, tmp_path: Path
) -> None:
    source, directory = add_job(cryosparc_server), tmp_path / "new"
    request = Request(source, directory, train=tiny_settings(), predict=False)
    run(request)
    with pytest.raises(HostError, match="weights to start from"):
        run(replace(request, init_from=model))
    assert "kept" in texts(cryosparc_server, run(request))
    other = add_job(cryosparc_server, change=moved)
    run(replace(request, source=other, overwrite=True))
    replaced = (directory / "model.pt").read_bytes()
    with pytest.raises(CryoForumError, match="overwrite"):
        run(request)
    assert (directory / "model.pt").read_bytes() == replaced


def test_a_training_that_was_cut_off_goes_on(
    cryosparc_server: fixtures.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(tiny_settings(), training=replace(tiny_settings().training, epochs=3))
    request = Request(add_job(cryosparc_server), tmp_path / "model", train=settings, predict=False)
    monkeypatch.setattr("cryoforum_plugin.learning.loop.SECONDS_BETWEEN_CHECKPOINTS", 0.0, raising=False)

    def cut(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cryoforum_plugin.training.train.calibrate", cut)
        with pytest.raises(KeyboardInterrupt):
            run(request)
    assert last_job(cryosparc_server)["status"] == "failed"
    assert not (tmp_path / "model" / "model.pt").exists()
    uid = run(request)
    assert "resumed after epoch" in texts(cryosparc_server, uid)
    assert (tmp_path / "model" / "model.pt").exists()


def test_a_prediction_that_was_cut_off_is_not_kept(
    cryosparc_server: fixtures.Server, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = add_job(cryosparc_server)
    first = read(cryosparc_server, run(Request(source, model)), "particles")

    def written(*arguments: Any, **named: Any) -> None:
        formats.write_particles(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cryoforum_plugin.host_job.steps.write_particles", written)
        with pytest.raises(KeyboardInterrupt):
            run(Request(source, model, options=PredictOptions(1)))
    again = read(cryosparc_server, run(Request(source, model)), "particles")
    for k in range(4):
        name = f"components_mode_{k}/value"
        np.testing.assert_array_equal(again[name], first[name])
    next(model.parent.rglob("predicted_posterior.npz")).unlink()
    assert len(read(cryosparc_server, run(Request(source, model)), "particles")) == COUNT


def test_two_runs_with_one_model_are_refused(cryosparc_server: fixtures.Server, model: Path) -> None:
    source = add_job(cryosparc_server)
    with work.only_run(model), pytest.raises(HostError, match="another run is at work"):
        run(Request(source, model))
    assert last_job(cryosparc_server)["status"] == "failed"
    run(Request(source, model))


def test_a_record_and_curves_are_of_the_last_run(cryosparc_server: fixtures.Server, model: Path) -> None:
    source = add_job(cryosparc_server)
    run(Request(source, model, criteria=Criteria(keep_fraction=0.5), fsc=True))
    folder = next(model.parent.rglob("predicted.cs")).parent
    assert {path.parent.name for path in folder.rglob("fsc.csv")} == {"all", "selected", "rejected"}
    uid = run(Request(source, model))
    record = json.loads((folder / "job.json").read_text())
    assert record["parameters"]["external job"] == uid
    assert "select" not in record
    assert not list(folder.rglob("fsc.csv"))


def test_one_half_set_and_copies_are_told(cryosparc_server: fixtures.Server, model: Path) -> None:
    uid = run(Request(add_job(cryosparc_server, change=one_sided), model))
    assert "all in one half set" in texts(cryosparc_server, uid)
    assert "several rows show the same image" in texts(cryosparc_server, uid)
    halves = np.bincount(read(cryosparc_server, uid, "particles_network_pose")["alignments3D/split"])
    assert halves.min() > 0.9 * halves.max()
    doubled = add_job(cryosparc_server, change=twice)
    with pytest.raises(HostError, match="holds particles twice"):
        run(Request(doubled, model))


def test_particles_that_were_learned_from_are_told(cryosparc_server: fixtures.Server, tmp_path: Path) -> None:
    source = add_job(cryosparc_server)
    uid = run(Request(source, tmp_path / "model", train=tiny_settings()))
    assert "the model was trained on" in texts(cryosparc_server, uid)


def test_pictures_and_reports_never_end_a_run(
    cryosparc_server: fixtures.Server, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise OSError("no space left")

    for name in ("panel_figure", "confidence_histogram", "prepare_report"):
        monkeypatch.setattr(work, name, broken)
    uid = run(Request(add_job(cryosparc_server), model))
    assert cryosparc_server.state.jobs["P1", uid]["status"] == "completed"
    assert "no space left" in texts(cryosparc_server, uid)


def test_a_lane_that_is_not_there_is_refused_at_once(cryosparc_server: fixtures.Server, model: Path) -> None:
    source = add_job(cryosparc_server)
    with pytest.raises(HostError, match="no lane 'nowhere'; it has default"):
        run(Request(source, model, then=(Next(RECONSTRUCTION, "nowhere"),)))
    assert last_job(cryosparc_server)["status"] == "failed"
    assert not list(model.parent.rglob("predicted.cs"))


def test_the_job_that_follows_is_told(
    cryosparc_server: fixtures.Server, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uid = run(Request(add_job(cryosparc_server), model, then=(Next(RECONSTRUCTION, "default"),)))
    queued = last_job(cryosparc_server)["uid"]
    assert f"queued {queued}: homo_reconstruct of particles" in capsys.readouterr().err
    assert cryosparc_server.state.jobs["P1", uid]["status"] == "completed"


def test_nothing_to_do(cryosparc_server: fixtures.Server, model: Path) -> None:
    with pytest.raises(HostError, match="nothing to do"):
        run(Request(add_job(cryosparc_server), model, predict=False))


@pytest.mark.parametrize("operation", ["connect", "mark_running", "save_output", "mark_completed", "enqueue"])
def test_an_answer_that_is_lost(cryosparc_server: fixtures.Server, model: Path, operation: str) -> None:
    source = add_job(cryosparc_server)
    cryosparc_server.faults.append(lost_answer(f"jobs.{operation}"))
    uid = run(Request(source, model, then=(Next(RECONSTRUCTION, "default"),)))
    job = cryosparc_server.state.jobs["P1", uid]
    assert job["status"] == "completed"
    assert len(job["spec"]["inputs"]["particles"]["connections"]) == 1
    assert last_job(cryosparc_server)["status"] == "queued"


def during(operation: str, action: Callable[[], None]) -> Callable[[Any], None]:
    """Do something once, while the server works on the first request of an operation."""
    done: list[bool] = []

    def fault(request: Any) -> None:
        if request.op == operation and not done:
            done.append(True)
            action()

    return fault


@pytest.mark.parametrize(
    ("operation", "number"),
    [
        ("jobs.add_external_output", signal.SIGINT),
        ("jobs.add_event_log", signal.SIGHUP),
        ("jobs.save_output", signal.SIGTERM),
        ("jobs.mark_failed", signal.SIGINT),
        ("jobs.mark_completed", signal.SIGTERM),
    ],
)
def test_no_signal_leaves_a_job_running(
    cryosparc_server: fixtures.Server,
    model: Path,
    operation: str,
    number: signal.Signals,
    request: pytest.FixtureRequest,
) -> None:
    source = add_job(cryosparc_server)
    if signal.getsignal(number) is signal.SIG_IGN:  # the tests run under nohup, which jobs respect
        signal.signal(number, signal.SIG_DFL)
        request.addfinalizer(lambda: signal.signal(number, signal.SIG_IGN))
    if operation == "jobs.mark_failed":  # a second Ctrl-C while the first one is dealt with
        first = during("jobs.save_output", lambda: os.kill(os.getpid(), signal.SIGINT))
        cryosparc_server.faults.append(first)
    cryosparc_server.faults.append(during(operation, lambda: os.kill(os.getpid(), number)))
    with pytest.raises((KeyboardInterrupt, SystemExit, HostError)):
        run(Request(source, model))
    expected = ("failed", "completed") if operation == "jobs.mark_completed" else ("failed",)
    assert last_job(cryosparc_server)["status"] in expected


def test_a_kill_while_an_output_is_written_stays_a_kill(
    cryosparc_server: fixtures.Server, model: Path
) -> None:
    source = add_job(cryosparc_server)

    def kill() -> None:
        cryosparc_server.state.kill("P1", last_job(cryosparc_server)["uid"])

    cryosparc_server.faults.append(during("jobs.save_output", kill))
    with pytest.raises(life.StoppedError, match="was killed in cryoSPARC"):
        run(Request(source, model))
    assert last_job(cryosparc_server)["status"] == "killed"


def test_a_failure_waits_for_a_server_that_restarts(cryosparc_server: fixtures.Server, model: Path) -> None:
    source = add_job(cryosparc_server)

    def away() -> None:
        cryosparc_server.go_away(0.15)
        raise ConnectionResetError

    cryosparc_server.faults.append(during("jobs.mark_failed", away))
    cryosparc_server.faults.append(during("jobs.save_output", lambda: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        run(Request(source, model))
    assert last_job(cryosparc_server)["status"] == "failed"


def test_a_relative_model_directory(
    cryosparc_server: fixtures.Server, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)
    uid = run(Request(add_job(cryosparc_server), Path(".")))
    assert cryosparc_server.state.jobs["P1", uid]["status"] == "completed"
    assert (model.parent / "model_cryosparc").is_dir()


def test_a_kill_during_a_reconstruction_is_not_taken_for_a_bad_set(
    cryosparc_server: fixtures.Server, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, begun = add_job(cryosparc_server), []

    def killing(*arguments: Any, **named: Any) -> Any:
        cryosparc_server.state.kill("P1", last_job(cryosparc_server)["uid"])
        begun.append(arguments)
        return reconstruct(*arguments, **named)

    monkeypatch.setattr("cryoforum_plugin.host_job.steps.reconstruct", killing)
    with pytest.raises(life.StoppedError, match="was killed in cryoSPARC"):
        run(Request(source, model, criteria=Criteria(keep_fraction=0.5), fsc=True))
    assert len(begun) == 1  # of three sets

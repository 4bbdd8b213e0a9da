"""An external job ends in cryoSPARC as what it was; calls survive what a server does. Real client, our server."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_cryosparc import fixtures
from fake_cryosparc.faults import dropped_upload, expired_token, missing_fields, slow, unavailable

from cryoforum_plugin.errors import HostError
from cryosparc_job.job import calls
from cryosparc_job.job.calls import call, quietly, upload
from cryosparc_job.job.client import slot as describe_slot
from cryosparc_job.job.life import StoppedError, check_alive, running

cryosparc_server = fixtures.cryosparc_server


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAITS_S", (0.05, 0.2, 0.5, 1.0))


def external_job(server: fixtures.Server) -> tuple[Any, Any]:
    """Return a job with J2's particles as input and one output, and the output's dataset."""
    job = fixtures.connect(server).create_external_job("P1", "W1", title="test")
    job.add_input("particle", "particles", min=1, slots=["blob"])
    job.connect("particles", "J2", "particles")
    particles = job.load_input("particles", slots=["blob"])
    slot = describe_slot("components_mode_0", "components")
    data = job.add_output("particle", "particles", slots=[slot], passthrough="particles", alloc=particles)
    data["components_mode_0/value"] = np.arange(len(data), dtype="f4")
    return job, data


def raise_error(error: BaseException) -> None:
    raise error


def status(server: fixtures.Server, job: Any) -> str:
    return str(server.state.jobs["P1", job.uid]["status"])


def test_a_job_that_does_its_work_is_completed(cryosparc_server: fixtures.Server) -> None:
    job, data = external_job(cryosparc_server)
    with running(job):
        upload("writing", job.save_output, "particles", data)
        check_alive(job)
    assert status(cryosparc_server, job) == "completed"
    written = (
        fixtures.connect(cryosparc_server)
        .find_job("P1", job.uid)
        .load_output("particles", slots=["components_mode_0"])
    )
    np.testing.assert_array_equal(written["components_mode_0/value"], data["components_mode_0/value"])


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (lambda: raise_error(KeyboardInterrupt()), KeyboardInterrupt),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), SystemExit),
        (lambda: raise_error(ValueError("x" * 100_000)), ValueError),
        (lambda: raise_error(HostError("no blob; connect particles with images")), HostError),
    ],
)
def test_a_job_that_is_interrupted_or_breaks_is_failed(
    cryosparc_server: fixtures.Server, ending: Callable[[], None], expected: type[BaseException]
) -> None:
    job, _ = external_job(cryosparc_server)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(expected), running(job):
        ending()
    assert status(cryosparc_server, job) == "failed"
    assert signal.getsignal(signal.SIGTERM) == before
    message = fixtures.error_text(cryosparc_server, cryosparc_server.state.jobs["P1", job.uid])
    assert len(message) <= 1500
    if expected is HostError:
        assert message == "no blob; connect particles with images"


def test_a_job_fails_where_its_log_cannot_be_written(cryosparc_server: fixtures.Server) -> None:
    job, _ = external_job(cryosparc_server)
    cryosparc_server.faults.append(unavailable("jobs.add_event_log", times=None))
    with pytest.raises(HostError), running(job):
        raise_error(HostError("no blob; connect particles with images"))
    assert status(cryosparc_server, job) == "failed"


def test_a_job_killed_or_cleared_in_the_interface_is_left_as_it_is(cryosparc_server: fixtures.Server) -> None:
    for action, left in (("kill", "killed"), ("clear", "building")):
        job, _ = external_job(cryosparc_server)
        with pytest.raises(StoppedError, match=f"{job.uid} was"), running(job):
            getattr(cryosparc_server.state, action)("P1", job.uid)
        assert status(cryosparc_server, job) == left


def test_calls_wait_for_a_server_that_is_busy_or_restarts(cryosparc_server: fixtures.Server) -> None:
    cryosparc = fixtures.connect(cryosparc_server)
    cryosparc_server.faults += [unavailable("jobs.find_one")]
    assert call("finding J2", cryosparc.find_job, "P1", "J2").uid == "J2"
    away = cryosparc_server.go_away(0.3)
    assert call("finding J2", cryosparc.find_job, "P1", "J2").uid == "J2"
    away.join()


def test_an_upload_that_was_cut_is_sent_again(cryosparc_server: fixtures.Server) -> None:
    job, data = external_job(cryosparc_server)
    with running(job):
        cryosparc_server.faults += [dropped_upload(after_bytes=100)]
        upload("writing", job.save_output, "particles", data)
    assert status(cryosparc_server, job) == "completed"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda: expired_token("jobs.find_one"), "login"),
        (lambda: missing_fields("alignments3D/pose"), "alignments3D/pose"),
    ],
)
def test_what_a_person_must_mend_is_said_in_one_line(
    cryosparc_server: fixtures.Server, fault: Callable[[], Any], words: str
) -> None:
    job, data = external_job(cryosparc_server)

    def work() -> None:
        cryosparc_server.faults += [fault()]
        call("finding J2", fixtures.connect(cryosparc_server).find_job, "P1", "J2")
        upload("writing", job.save_output, "particles", data)

    with pytest.raises(HostError, match=words) as error, running(job):
        work()
    assert "\n" not in str(error.value)


def test_what_is_not_there(cryosparc_server: fixtures.Server) -> None:
    with pytest.raises(HostError, match="finding J99: not there"):
        call("finding J99", fixtures.connect(cryosparc_server).find_job, "P1", "J99")


def test_a_log_line_that_fails_or_is_slow_does_no_harm(
    cryosparc_server: fixtures.Server, caplog: pytest.LogCaptureFixture
) -> None:
    job, _ = external_job(cryosparc_server)
    with running(job):
        cryosparc_server.faults += [unavailable("jobs.add_event_log"), slow(0.3, "jobs.add_event_log")]
        assert quietly("writing to the log", job.log, "lost") is None
        assert quietly("writing to the log", job.log, "late") is not None
    assert "writing to the log" in caplog.text
    assert status(cryosparc_server, job) == "completed"

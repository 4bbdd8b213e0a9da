"""The cryoSPARC for tests, seen by the unmodified client: an external job, faults, restarts, the log."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import matplotlib.pyplot as plt
import numpy as np
import pytest
from fake_cryosparc import Drop, FakeCryoSPARC, HTTPError, fixtures
from fake_cryosparc.faults import (
    On,
    dropped_upload,
    expired_token,
    lost_answer,
    missing_fields,
    slow,
    unavailable,
)
from fake_cryosparc.synthetic import synthetic_particles
from scipy.spatial.transform import Rotation

from cryosparc_job.job import calls
from cryosparc_job.job.calls import upload

cryosparc_server = fixtures.cryosparc_server
UNCERTAINTY = {"name": "components_mode_0", "dtype": "components"}


def connect(server: FakeCryoSPARC) -> Any:
    """Return a client of the logged-in user."""
    from cryosparc.tools import CryoSPARC

    return CryoSPARC(server.url)


def make_job(client: Any, **output: Any) -> tuple[Any, Any]:
    """Return an external job of J2's particles with one output, and the output's dataset."""
    job = client.create_external_job("P1", "W1", title="test")
    job.add_input("particle", "particles", min=1, slots=["blob", "ctf", "alignments3D"])
    job.connect("particles", "J2", "particles")
    particles = client.find_job("P1", "J2").load_output("particles", slots=["alignments3D"])
    described = {"slots": [UNCERTAINTY], "passthrough": "particles", "alloc": particles} | output
    return job, job.add_output("particle", "particles", **described)


def api_error(code: int, match: str = "") -> Any:
    """Expect the client's error with a code."""
    from cryosparc.errors import APIError

    return pytest.raises(APIError, match=rf"(?s)code {code}\).*{match}")


def plot() -> Any:
    """Return a small figure."""
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.hist([1, 2, 2])
    plt.close(figure)
    return figure


def test_login_command(cryosparc_server: FakeCryoSPARC, tmp_path: Path) -> None:
    """`login` stores what the client's command stores, and the command's own is accepted."""
    file = tmp_path / "config" / "cryosparc-tools" / "auth.json"
    ours = json.loads(file.read_text())
    command = [sys.executable, "-m", "cryosparc.tools", "login", "--url", cryosparc_server.url]
    command += ["--email", "user@example.com", "--password"]
    assert subprocess.run([*command, "wrong"], capture_output=True, check=False).returncode != 0
    assert json.loads(file.read_text()) == ours
    subprocess.run([*command, "secret"], capture_output=True, check=True)
    theirs = json.loads(file.read_text())
    session, other = (found[cryosparc_server.url]["user@example.com"] for found in (ours, theirs))
    assert session.keys() == other.keys()
    assert session["token"]["access_token"] != other["token"]["access_token"]
    assert connect(cryosparc_server).test_connection()
    fixtures.login(cryosparc_server, tmp_path / "config", days=-1)
    with pytest.raises(ValueError, match="not provided or expired"):
        connect(cryosparc_server)


@pytest.mark.parametrize("stream_status", [200, 201])
def test_external_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream_status: int) -> None:
    """Input, outputs with passthrough, logs, plots, files, read back, reconstruction and local refinement."""
    fixtures.clean_environment(tmp_path / "config", monkeypatch)
    with FakeCryoSPARC(tmp_path / "projects", stream_status) as server:
        fixtures.add_refinement(server.state)
        fixtures.login(server, tmp_path / "config")
        client = connect(server)
        job, output = make_job(client)
        for name in ("particles_selected", "particles_rejected"):
            job.add_output("particle", name, slots=[UNCERTAINTY], passthrough="particles")
        value = np.random.default_rng(0).gamma(2, 5, len(output)).astype(np.float32)
        keep = value < np.median(value)
        with job.run():
            for epoch in range(3):
                job.log(f"epoch {epoch}", name="progress")
            job.log_checkpoint({"stage": "trained"})
            job.log_plot(plot(), "uncertainty", raw_data="uid,value\n", raw_data_format="csv")
            inside = job.load_input("particles", slots=["blob", "alignments3D"])
            assert set(inside.prefixes()) == {"blob", "alignments3D"}
            output["components_mode_0/value"] = value
            job.save_output("particles", output, image=plot())
            job.save_output("particles_selected", output.mask(keep))
            job.save_output("particles_rejected", output.mask(~keep))
            job.set_tile_image(plot())
            job.set_title("cryoforum")
            job.upload("model/config.json", b"{}")
        check_finished(client, server, job, value, keep)
        check_downstream(client, server, job.uid)


def check_finished(client: Any, server: FakeCryoSPARC, job: Any, value: Any, keep: Any) -> None:
    """Compare what a job left with what was saved."""
    state = server.state
    assert (job.status, job.title) == ("completed", "cryoforum")
    assert state.log("P1", job.uid)[0] == "epoch 2"
    assert [event["type"] for event in state.events_of("P1", job.uid)] == ["text", "checkpoint", "image"]
    for picture in (state.tile_image("P1", job.uid), state.output_image("P1", job.uid, "particles")):
        assert picture is not None
        assert picture.startswith(b"\x89PNG")
    assert state.output_image("P1", job.uid, "particles_selected") is None
    assert "model/config.json" in job.list_files(recursive=True)
    selected = client.find_job("P1", job.uid).load_output("particles_selected", slots="all")
    np.testing.assert_array_equal(selected["components_mode_0/value"], value[keep])
    refined = client.find_job("P1", "J2").load_output("particles")
    np.testing.assert_array_equal(selected["alignments3D/pose"], refined["alignments3D/pose"][keep])
    own = client.find_job("P1", job.uid).load_output("particles_selected", slots="default")
    assert set(own.prefixes()) == {"components_mode_0"}
    results = job.outputs["particles_selected"].results
    assert {result.name: result.passthrough for result in results}["location"]
    _, stack = client.download_mrc("P1", refined["blob/path"][1])
    assert stack.shape == (100, 32, 32)


def check_downstream(client: Any, server: FakeCryoSPARC, uid: str) -> None:
    """Queue a reconstruction and a local refinement, and let one run."""
    particles = {"particles": (uid, "particles_selected")}
    params = {"refine_symmetry": "C4"}
    reconstruction = client.create_job("P1", "W1", "homo_reconstruct", connections=particles, params=params)
    with api_error(422, "Lane away does not exist"):
        reconstruction.queue("away")
    reconstruction.queue("default")
    assert reconstruction.status == "queued"
    server.state.advance("P1", reconstruction.uid)
    server.state.finish("P1", reconstruction.uid, {})
    assert reconstruction.wait_for_done() == "completed"
    local = client.create_job("P1", "W1", "new_local_refine", connections=particles)
    with api_error(422, "Input volume needs at least 1"):
        local.queue("default")
    local.connect("volume", "J2", "volume")
    with api_error(422, "takes a mask"):
        local.connect("mask", "J2", "volume")
    local.connect("mask", "J2", "mask")
    local.queue("default")
    assert server.state.job("P1", local.uid)["queued_to_lane"] == "default"
    assert server.state.job("P1", reconstruction.uid)["spec"]["params"] == params


def test_slots_and_required_fields(cryosparc_server: FakeCryoSPARC) -> None:
    """Unknown dtypes, missing columns, foreign types and outputs of a job that does not run are refused."""
    client = connect(cryosparc_server)
    job, output = make_job(client)
    with api_error(422, "cryoforum_uncertainty"):
        job.add_output("particle", "bad", slots=[{"name": "u", "dtype": "cryoforum_uncertainty"}])
    with pytest.raises(ValueError, match="at least one slot"):
        job.add_output("particle", "bad", slots=[])
    with api_error(422, "is a volume, its passthrough a particle"):
        job.add_output("volume", "bad", slots=["map"], passthrough="particles")
    with api_error(422, "has status building"):
        job.save_output("particles", output)
    job.start("running")
    with api_error(422, "components_mode_0/value"):
        job.save_output("particles", output.filter_fields(["components_mode_0/component"], copy=True))
    job.stop()
    with api_error(422, "has status completed"):
        job.save_output("particles", output)
    one_shot = client.save_external_result(
        "P1", "W1", output, "particle", slots=[UNCERTAINTY], passthrough=("J2", "particles")
    )
    assert client.find_job("P1", one_shot).status == "completed"


def test_life(cryosparc_server: FakeCryoSPARC) -> None:
    """A killed job takes no outputs but can be completed; a cleared one starts again with its inputs."""
    client = connect(cryosparc_server)
    job, output = make_job(client)
    job.start("running")
    job.save_output("particles", output)
    cryosparc_server.state.kill("P1", job.uid)
    job.refresh()
    assert job.status == "killed"
    with api_error(422, "has status killed"):
        job.save_output("particles", output)
    job.clear()
    assert job.status == "building"
    assert job.inputs["particles"].connections
    with pytest.raises(KeyboardInterrupt), job.run():
        raise KeyboardInterrupt
    assert job.status == "completed"  # the client's own trap
    job.clear()
    with pytest.raises(RuntimeError), job.run():
        raise RuntimeError("out of memory")
    assert job.status == "failed"
    assert "out of memory" in cryosparc_server.state.log("P1", job.uid)[-1]


def test_refused(cryosparc_server: FakeCryoSPARC) -> None:
    """Error answers reach the client with their code, once, and are counted."""
    client = connect(cryosparc_server)
    job, output = make_job(client)
    job.start("running")
    saved, logged = "jobs.save_output", "jobs.add_event_log"
    cryosparc_server.faults += [expired_token(logged), missing_fields("ctf/type"), unavailable(logged)]
    with api_error(401, "validate credentials"):
        job.log("one")
    with api_error(503):
        job.log("two")
    job.log("three")
    with api_error(422, "ctf/type"):
        job.save_output("particles", output)
    job.save_output("particles", output)
    requests = cryosparc_server.requests
    assert [request.status for request in requests.of(logged)] == [401, 503, 200]
    assert (requests.count(saved), requests.count(saved, status=422)) == (2, 1)
    assert cryosparc_server.state.log("P1", job.uid) == ["three"]
    cryosparc_server.state.tokens.clear()
    with api_error(401):
        job.refresh()


def test_dropped_upload(cryosparc_server: FakeCryoSPARC) -> None:
    """After a break the client sends what was left of the body, which is refused; saving again works."""
    client = connect(cryosparc_server)
    job, output = make_job(client)
    job.start("running")
    cryosparc_server.faults.append(dropped_upload(after_bytes=1000))
    with api_error(422, "bytes that are no dataset"), pytest.warns(UserWarning, match=r"attempt \d/3"):
        job.save_output("particles", output)
    job.save_output("particles", output)
    sizes = [request.bytes_received for request in cryosparc_server.requests.of("jobs.save_output")]
    assert sizes[0] >= 1000
    assert sizes[1] <= sizes[2] - 1000
    (upload,) = cryosparc_server.requests.uploads()
    assert (upload.output, upload.rows, upload.num_bytes) == ("particles", len(output), sizes[2])
    assert set(upload.fields) == {"uid", "components_mode_0/component", "components_mode_0/value"}


def test_lost_and_late_answers(cryosparc_server: FakeCryoSPARC) -> None:
    """A request whose answer is lost is sent again by the client, and done twice."""
    client = connect(cryosparc_server)
    cryosparc_server.faults.append(lost_answer("jobs.create"))
    with pytest.warns(UserWarning, match=r"attempt \d/3"):
        job = client.create_external_job("P1", "W1", title="twice")
    assert [one["title"] for one in cryosparc_server.state.jobs.values()].count("twice") == 2
    assert job.uid == "J4"
    cryosparc_server.faults[:] = [slow(0.2, "jobs.add_event_log", times=1)]
    job.log("late")
    assert cryosparc_server.requests[-1].duration_s >= 0.2
    cryosparc_server.faults[:] = [
        lambda request: HTTPError(418, request.method) if "title" in request.query else None
    ]
    with api_error(418, "POST"):
        job.set_title("new")
    cryosparc_server.faults[:] = [On("", Drop(), times=None)]
    with pytest.raises(httpx.TransportError), pytest.warns(UserWarning, match=r"attempt \d/3"):
        job.refresh()


def test_server_gone_and_back(cryosparc_server: FakeCryoSPARC) -> None:
    """The client fails at once while the port is closed, and works on with its token afterwards."""
    client = connect(cryosparc_server)
    job, output = make_job(client)
    job.start("running")
    cryosparc_server.restart()
    job.log("still here")
    back = cryosparc_server.go_away(0.5)
    began = time.monotonic()
    with pytest.raises(httpx.TransportError), pytest.warns(UserWarning, match=r"attempt \d/3"):
        job.log("lost")
    assert time.monotonic() - began < 0.4
    back.join()
    job.save_output("particles", output)
    job.stop()
    assert job.status == "completed"
    assert cryosparc_server.state.log("P1", job.uid) == ["still here"]


def test_restart_during_an_upload(cryosparc_server: FakeCryoSPARC, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault may restart the server itself."""
    client = connect(cryosparc_server)
    job, output = make_job(client)
    job.start("running")
    once = On("jobs.save_output", None)

    def restart(request: Any) -> None:
        once(request)
        if once.hits == 1 and request.op == once.op:
            once.hits += 1
            cryosparc_server.restart()

    cryosparc_server.faults.append(restart)
    # the client tries three times at once, while the port is closed or with the rest of the bytes only
    monkeypatch.setattr(calls, "WAITS_S", (0.2, 1.0))
    upload("writing", job.save_output, "particles", output)
    assert once.hits == 2
    job.stop()
    assert job.status == "completed"


def test_replaced_result(cryosparc_server: FakeCryoSPARC) -> None:
    """connect_result takes one slot from elsewhere: the images at another size."""
    state = cryosparc_server.state
    binned = synthetic_particles(400, box=16, blob_psize_A=3.0, slots=("blob",))
    state.add_finished_job("P1", "W1", "downsample_particles", {"particles": binned})
    client = connect(cryosparc_server)
    job, _ = make_job(client)
    job.connect_result("particles", 0, "blob", "J3", "particles", "blob")
    inside = job.load_input("particles", slots=["blob", "alignments3D"])
    assert set(inside["blob/psize_A"]) == {3.0}
    assert set(inside["alignments3D/psize_A"]) == {1.5}


def test_request_log(cryosparc_server: FakeCryoSPARC) -> None:
    """Requests are counted by operation and namespace, with their bytes."""
    client = connect(cryosparc_server)
    requests = cryosparc_server.requests
    assert requests.operations() == {"openapi": 1, "users.me": 1, "config.get_version": 1}
    requests.clear()
    client.find_job("P1", "J2").load_output("particles", slots=["blob"])
    client.upload("P1", "J1/file.bin", b"x" * 1000)
    assert (requests.count("jobs."), requests.count("projects.upload_file"), len(requests)) == (2, 1, 3)
    assert requests.bytes_received("projects.upload_file") == 1000
    assert requests.of("jobs.load_output")[0].bytes_sent > 400 * 8
    assert all(request.user_agent.startswith("cryosparc-tools/5") for request in requests)


def test_synthetic_particles(tmp_path: Path) -> None:
    """Symmetry copies share an image and an origin; dark images are the light ones times blob/sign."""
    from cryosparc import mrc

    images = np.random.default_rng(1).normal(size=(10, 8, 8))
    options: dict[str, Any] = {"copies": 3, "sign": -1, "path_prefix": ">", "components": 2, "stacks": 2}
    made = synthetic_particles(30, tmp_path, box=8, images=images, symlinked=True, **options)
    assert {"components_mode_1", "sym_expand", "pick_stats"} <= set(made.prefixes())
    assert len(np.unique(made["uid"])) == 30
    assert len(np.unique(made["sym_expand/src_uid"])) == 10
    rotation = Rotation.from_rotvec(made["alignments3D/pose"])
    turn = rotation[1] * rotation[0].inv()
    np.testing.assert_allclose(turn.as_rotvec(), [0, 0, 2 * np.pi / 3], atol=1e-5)
    path, row = made["blob/path"][4], int(made["blob/idx"][4])
    stored = mrc.read(tmp_path / path.removeprefix(">"))[1][row]
    np.testing.assert_allclose(stored * made["blob/sign"][4], images[1], atol=2e-3)

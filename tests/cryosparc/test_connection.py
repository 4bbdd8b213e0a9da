"""Connecting, finding and reading particles, with the real client and our server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cryosparc import FakeCryoSPARC, fixtures
from fake_cryosparc.faults import Cut, HTTPError, On, unavailable
from fake_cryosparc.server_v4 import FakeCryoSPARC4
from fake_cryosparc.synthetic import synthetic_particles

from cryoforum_plugin import formats
from cryoforum_plugin.errors import HostError
from cryosparc_job.job import calls
from cryosparc_job.job.client import answer, client_version, is_away, is_v4, project_folder, slot_names
from cryosparc_job.job.connection import connect, find_particles, save_particles

cryosparc_server = fixtures.cryosparc_server


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAITS_S", (0.05,))


def test_particles_come_with_what_is_needed_and_no_more(
    cryosparc_server: fixtures.Server, tmp_path: Path
) -> None:
    client = connect(cryosparc_server.url)
    job = find_particles(client, "1", "2", "particles")
    path = save_particles(job, "particles", tmp_path / "read" / "particles.cs")
    root = project_folder(client.find_project("P1"))
    particles = formats.read_particles(path, root)
    whole = fixtures.load_all(job, "particles")
    assert len(particles) == len(whole)
    np.testing.assert_array_equal(particles.uid, whole["uid"])
    np.testing.assert_array_equal(particles.half_set, whole["alignments3D/split"] + 1)
    shift_A = whole["alignments3D/shift"] * whole["alignments3D/psize_A"][:, None]
    np.testing.assert_allclose(particles.shift_A, shift_A, rtol=1e-6)
    assert all(stack.is_file() for stack in particles.stacks)
    fields = {name.split("/")[0] for name in np.load(path, allow_pickle=False).dtype.names}
    assert fields == {"uid", "blob", "ctf", "alignments3D", "location"}


@pytest.mark.parametrize(("count", "after_bytes"), [(400, 5000), (8000, 1_200_000)])
def test_particles_whose_transfer_breaks_off_are_read_again(
    cryosparc_server: fixtures.Server, tmp_path: Path, count: int, after_bytes: int
) -> None:
    particles = {"particles": synthetic_particles(count)}
    uid = cryosparc_server.state.add_finished_job("P1", "W1", "homo_refine_new", particles)["uid"]
    job = find_particles(connect(cryosparc_server.url), "P1", uid, "particles")
    fault = On("jobs.load_output", Cut(after_bytes))
    cryosparc_server.faults.append(fault)
    path = save_particles(job, "particles", tmp_path / "particles.cs")
    assert fault.hits == 1
    np.testing.assert_array_equal(np.load(path)["uid"], particles["particles"]["uid"])


def test_taken_components_are_known(cryosparc_server: fixtures.Server, tmp_path: Path) -> None:
    state = cryosparc_server.state
    uid = state.add_finished_job("P1", "W1", "var_3D", {"particles": synthetic_particles(20, components=2)})[
        "uid"
    ]
    job = find_particles(connect(cryosparc_server.url), "P1", uid, "particles")
    assert {"components_mode_0", "components_mode_1"} <= set(slot_names(job, "particles"))
    path = save_particles(job, "particles", tmp_path / "particles.cs")
    assert "components_mode_1/value" in np.load(path, allow_pickle=False).dtype.names


def job_with(server: fixtures.Server, *slots: str) -> str:
    """Add a finished job whose particles have these slots only; return its name."""
    data = synthetic_particles(10, slots=slots)
    return str(server.state.add_finished_job("P1", "W1", "select_2D", {"particles": data})["uid"])


def test_what_is_missing_is_named(cryosparc_server: fixtures.Server) -> None:
    client = connect(cryosparc_server.url)
    flat = job_with(cryosparc_server, "blob", "ctf", "alignments2D")
    cases: list[tuple[tuple[str, str, str], str]] = [
        (("P1", "J2", "particels"), "J2 has no output 'particels'; it has"),
        (("P1", "J2", "volume"), "J2.volume holds volume, not particles"),
        (("P1", "J77", "particles"), "finding P1 J77: not there"),
        (("P9", "J2", "particles"), "finding P9 J2: not there"),
        (("P1", flat, "particles"), f"{flat}.particles has no alignments3D"),
    ]
    for where, words in cases:
        with pytest.raises(HostError) as error:
            find_particles(client, *where)
        assert words in str(error.value)


def test_addresses(cryosparc_server: fixtures.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match="no address of cryoSPARC; give --url"):
        connect()
    url = cryosparc_server.url
    monkeypatch.setenv("CRYOSPARC_MASTER_HOSTNAME", "127.0.0.1")
    monkeypatch.setenv("CRYOSPARC_BASE_PORT", url.rpartition(":")[2])
    assert connect().find_job("P1", "J2").uid == "J2"
    monkeypatch.setenv("CRYOSPARC_BASE_URL", url)
    assert connect().find_job("P1", "J2").uid == "J2"
    cryosparc_server.stop()
    with pytest.raises(HostError, match=f"connecting to {url}: cryoSPARC does not answer"):
        connect(url)


def test_a_busy_proxy_is_asked_again(cryosparc_server: fixtures.Server) -> None:
    cryosparc_server.faults.append(unavailable("openapi"))
    assert connect(cryosparc_server.url).find_job("P1", "J2").uid == "J2"


@pytest.mark.skipif(fixtures.V4, reason="client 4.7 stores no login")
def test_a_login_that_is_missing_or_over(cryosparc_server: fixtures.Server, tmp_path: Path) -> None:
    with pytest.raises(
        HostError, match=r"no login for http://127.0.0.1:1, .* login --url http://127.0.0.1:1$"
    ):
        connect("http://127.0.0.1:1")
    with pytest.raises(HostError, match="no login for"):
        connect(cryosparc_server.url, email="other@example.com")
    cryosparc_server.state.tokens.clear()
    with pytest.raises(HostError, match=f"login --url {cryosparc_server.url}$"):
        connect(cryosparc_server.url)
    fixtures.login(cryosparc_server, tmp_path / "config", days=-1)
    with pytest.raises(HostError, match=r"no login for .* has expired"):
        connect(cryosparc_server.url)


@pytest.mark.skipif(not fixtures.V4, reason="of client 4.7")
@pytest.mark.parametrize("name", ["CRYOSPARC_LICENSE_ID", "CRYOSPARC_EMAIL", "CRYOSPARC_PASSWORD"])
def test_a_login_in_the_environment_that_is_missing_or_wrong(
    cryosparc_server: fixtures.Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect(cryosparc_server.url).user_id
    for value in ("", "11111111-1111-1111-1111-111111111111"):
        monkeypatch.setenv(name, value)
        with pytest.raises(
            HostError, match=f"no login for {cryosparc_server.url}, .*{name}.* from the environment"
        ):
            connect(cryosparc_server.url)


@pytest.mark.parametrize("logged_in", [True, False])
def test_a_server_of_the_other_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged_in: bool
) -> None:
    fixtures.clean_environment(tmp_path / "config", monkeypatch)
    with (FakeCryoSPARC if fixtures.V4 else FakeCryoSPARC4)(tmp_path / "other") as server:
        if logged_in:
            fixtures.log_in(server, tmp_path / "config", monkeypatch)
        with pytest.raises(HostError) as error:
            connect(server.url)
    there, here, install = ("5", "4.7.1", "5.0.0") if fixtures.V4 else ("4", client_version(), "4.7.0")
    assert str(error.value) == (
        f"{server.url} is cryoSPARC {there}, which cryosparc-tools {here} does not understand; run: "
        f"pip install 'cryosparc-tools~={install}'"
    )


def test_a_server_of_another_minor_version(
    cryosparc_server: fixtures.Server, caplog: pytest.LogCaptureFixture
) -> None:
    connect(cryosparc_server.url)
    assert not caplog.text
    cryosparc_server.state.version, install = ("v4.6.2", "4.6.0") if fixtures.V4 else ("v5.1.0", "5.1.0")
    assert connect(cryosparc_server.url).find_job("P1", "J2").uid == "J2"
    assert caplog.messages == [
        f"{cryosparc_server.url} is of another version than cryosparc-tools {client_version()}; run: "
        f"pip install 'cryosparc-tools~={install}'"
    ]


def test_an_address_of_something_else(
    cryosparc_server: fixtures.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cryosparc_server.faults.append(On("openapi", HTTPError(404, "Not Found"), times=None))
    with pytest.raises(HostError, match=r"does not answer as cryosparc-tools .* check the address"):
        connect(cryosparc_server.url)


@pytest.mark.skipif(not fixtures.V4, reason="errors of client 4.7")
def test_what_a_server_of_version_4_says() -> None:
    from cryosparc.errors import CommandError

    failed = (
        "Encountered ServerError from JSONRPC function \"get_job\" with params ('P1', 'J9'):\nServerError: no J9\n"
        "Traceback (most recent call last):\n  File ..."
    )
    text = b"Invalid dataset; missing the following required fields: {('blob/idx', '<u4')}"
    page = b"<!DOCTYPE HTML><title>500</title><p>The server\nencountered an error</p>"
    assert answer(CommandError(failed, code=500)) == (None, "ServerError: no J9")
    assert answer(CommandError(failed, code=422)) == (422, "ServerError: no J9")
    assert answer(CommandError("HTTP Error 422 UNPROCESSABLE", code=422, data=text)) == (422, text.decode())
    assert answer(CommandError("HTTP Error 500", code=500, data=page)) == (
        500,
        "500 The server encountered an error",
    )
    for lost in ("URL Error [Errno 111] Connection refused", "Timeout Error"):
        assert is_away(CommandError(lost, code=500))
    tries = list[str]()

    def get_job() -> None:
        tries.append("")
        raise CommandError(failed, code=500)

    with pytest.raises(HostError, match=r"^finding J9: ServerError: no J9$"):
        calls.call("finding J9", get_job)
    assert len(tries) == 1


@pytest.mark.skipif(not fixtures.V4, reason="of client 4.7")
def test_the_client_does_not_wait_by_itself() -> None:
    code = (
        "from cryosparc_job.job.client import client_version\n"
        "client_version()\n"
        "from cryosparc.command import RETRY_INTERVAL\n"
        "assert RETRY_INTERVAL == 0\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRYOSPARC_")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_the_client_is_the_one_that_was_asked_for() -> None:
    wanted = os.environ.get("CRYOFORUM_CRYOSPARC_CLIENT", "5")  # the Makefile asks for 4.7 too
    assert client_version().startswith(f"{wanted}.")
    assert is_v4() == fixtures.V4 == wanted.startswith("4.")


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "cryosparc.tools", missing)
    with pytest.raises(HostError, match=r"pip install 'cryoforum\[cryosparc\]'"):
        connect("http://127.0.0.1:1")

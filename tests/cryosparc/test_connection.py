"""Connecting, finding and reading particles, with the real client and our server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cryosparc import FakeCryoSPARC, fixtures
from fake_cryosparc.synthetic import synthetic_particles

from cryoforum_plugin import formats
from cryoforum_plugin.errors import HostError
from cryosparc_job.job import calls
from cryosparc_job.job.client import project_folder, slot_names
from cryosparc_job.job.connection import connect, find_particles, save_particles

cryosparc_server = fixtures.cryosparc_server


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAITS_S", (0.05,))


def test_particles_come_with_what_is_needed_and_no_more(
    cryosparc_server: FakeCryoSPARC, tmp_path: Path
) -> None:
    client = connect(cryosparc_server.url)
    job = find_particles(client, "1", "2", "particles")
    path = save_particles(job, "particles", tmp_path / "read" / "particles.cs")
    root = project_folder(client.find_project("P1"))
    particles = formats.read_particles(path, root)
    whole = job.load_output("particles", slots="all")
    assert len(particles) == len(whole)
    np.testing.assert_array_equal(particles.uid, whole["uid"])
    np.testing.assert_array_equal(particles.half_set, whole["alignments3D/split"] + 1)
    shift_A = whole["alignments3D/shift"] * whole["alignments3D/psize_A"][:, None]
    np.testing.assert_allclose(particles.shift_A, shift_A, rtol=1e-6)
    assert all(stack.is_file() for stack in particles.stacks)
    fields = {name.split("/")[0] for name in np.load(path, allow_pickle=False).dtype.names}
    assert fields == {"uid", "blob", "ctf", "alignments3D", "location"}


def test_taken_components_are_known(cryosparc_server: FakeCryoSPARC, tmp_path: Path) -> None:
    state = cryosparc_server.state
    uid = state.add_finished_job("P1", "W1", "var_3D", {"particles": synthetic_particles(20, components=2)})[
        "uid"
    ]
    job = find_particles(connect(cryosparc_server.url), "P1", uid, "particles")
    assert {"components_mode_0", "components_mode_1"} <= set(slot_names(job, "particles"))
    path = save_particles(job, "particles", tmp_path / "particles.cs")
    assert "components_mode_1/value" in np.load(path, allow_pickle=False).dtype.names


def job_with(server: FakeCryoSPARC, *slots: str) -> str:
    """Add a finished job whose particles have these slots only; return its name."""
    data = synthetic_particles(10, slots=slots)
    return str(server.state.add_finished_job("P1", "W1", "select_2D", {"particles": data})["uid"])


def test_what_is_missing_is_named(cryosparc_server: FakeCryoSPARC) -> None:
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


def test_addresses_and_logins(cryosparc_server: FakeCryoSPARC, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match="no address of cryoSPARC"):
        connect()
    with pytest.raises(
        HostError, match=r"no login for http://127\.0\.0\.1:1, .* cryosparc\.tools login --url"
    ):
        connect("http://127.0.0.1:1")
    with pytest.raises(HostError, match="no login for"):
        connect(cryosparc_server.url, email="other@example.com")
    url = cryosparc_server.url
    cryosparc_server.stop()
    with pytest.raises(HostError, match="does not answer"):
        connect(url)


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    missing: Any = None
    monkeypatch.setitem(sys.modules, "cryosparc.tools", missing)
    with pytest.raises(HostError, match=r"pip install 'cryoforum\[cryosparc\]'"):
        connect("http://127.0.0.1:1")

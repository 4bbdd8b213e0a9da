"""The cryoSPARC 4.7 for tests, by HTTP and seen by the unmodified client 4.7."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cryosparc import fixtures
from fake_cryosparc.faults import missing_fields
from fake_cryosparc.server_v4 import FakeCryoSPARC4

cryosparc_server = fixtures.cryosparc_server
UNCERTAINTY = {"prefix": "components_mode_0", "dtype": "components", "required": True}


def test_the_three_services(tmp_path: Path) -> None:
    """They describe themselves and give the same job as v5 in their own form."""
    with FakeCryoSPARC4(tmp_path) as server:
        server.state.add_project()
        server.state.add_job("P1", "W1", "snowflake", title="test")

        def call(port: int, method: str, *params: Any) -> Any:
            message = json.dumps({"jsonrpc": "2.0", "id": "1", "method": method, "params": params}).encode()
            url = f"http://127.0.0.1:{server.base_port + port}/api"
            request = urllib.request.Request(url, message, {"License-ID": server.license})
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)

        for port, name in ((2, "get_job"), (3, "create_external_job")):
            described = call(port, "system.describe")["result"]["procs"]
            assert name in [one["name"] for one in described]
        assert call(5, "system.describe")["result"] == {"procs": []}
        assert call(2, "get_job", "P1", "J1")["result"]["job_type"] == "snowflake"
        assert call(2, "get_job", "P1", "J2")["error"]["code"] == 404
        assert server.requests.count("jobs.find_one") == 2


@pytest.mark.skipif(not fixtures.V4, reason="of client 4.7")
def test_an_external_job(cryosparc_server: FakeCryoSPARC4) -> None:
    """It saves an output after a refusal and a restart, and is passed on to a reconstruction."""
    from cryosparc.errors import CommandError, InvalidSlotsError

    server, client = cryosparc_server, fixtures.connect(cryosparc_server)
    assert client.test_connection()
    project = client.find_project("P1")
    particles = project.find_job("J2").load_output("particles")
    job = project.create_external_job("W1", title="test")
    job.add_input("particle", "particles", min=1, slots=["blob", "alignments3D"])
    job.connect("particles", "J2", "particles")
    with pytest.raises(InvalidSlotsError):
        job.add_output("particle", "bad", slots=[{**UNCERTAINTY, "dtype": "cryoforum"}])
    output = job.add_output(
        "particle", "particles", slots=[UNCERTAINTY], passthrough="particles", alloc=particles
    )
    output["components_mode_0/value"] = value = np.arange(len(output))
    server.faults.append(missing_fields())
    with job.run():
        job.log("started")
        assert job.load_input("particles", slots=["blob"]).prefixes() == ["blob"]
        with pytest.raises(CommandError, match="code 422"), pytest.warns(UserWarning, match="missing"):
            job.save_output("particles", output)
        server.restart()
        job.save_output("particles", output)
        job.upload("model.json", b"{}")
    assert job.doc["status"] == "completed"
    saved = fixtures.load_all(client.find_job("P1", job.uid), "particles")
    assert set(saved.prefixes()) == {*particles.prefixes(), "components_mode_0"}
    np.testing.assert_array_equal(saved["components_mode_0/value"], value)
    assert server.requests.count("jobs.save_output") == 2
    assert [upload.rows for upload in server.requests.uploads()] == [400]
    next_job = project.create_job("W1", "homo_reconstruct", connections={"particles": (job.uid, "particles")})
    next_job.queue("default")
    assert next_job.doc["status"] == "queued"
    next_job.kill()
    assert server.state.job("P1", next_job.uid)["status"] == "killed"

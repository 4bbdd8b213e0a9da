"""An external job with the real 4.7 client: `PYTHONPATH=tests python -m fake_cryosparc.check_v4 FOLDER`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fake_cryosparc.faults import missing_fields
from fake_cryosparc.server_v4 import FakeCryoSPARC4
from fake_cryosparc.synthetic import add_refinement

UNCERTAINTY = {"prefix": "components_mode_0", "dtype": "components", "required": True}


def main(folder: Path) -> None:
    """Run the job; AssertionError or the client's own error if something is wrong."""
    for name in [name for name in os.environ if name.startswith("CRYOSPARC_")]:
        del os.environ[name]
    os.environ["CRYOSPARC_COMMAND_RETRY_SECONDS"] = "1"
    from cryosparc.tools import CryoSPARC

    with FakeCryoSPARC4(folder) as server:
        add_refinement(server.state)
        login = {"email": server.state.email, "password": server.state.password}
        client = CryoSPARC(server.license, "127.0.0.1", server.base_port, **login)
        assert client.test_connection()
        run_job(client, server)
        assert server.requests.count("vis.save_output") == 2
        assert [upload.rows for upload in server.requests.uploads()] == [400]


def run_job(client: Any, server: FakeCryoSPARC4) -> None:
    """Save an output after a refusal and a restart; queue a reconstruction."""
    from cryosparc.errors import CommandError, InvalidSlotsError

    project = client.find_project("P1")
    particles = project.find_job("J2").load_output("particles")
    job = project.create_external_job("W1", title="test")
    job.add_input("particle", "particles", min=1, slots=["blob", "alignments3D"])
    job.connect("particles", "J2", "particles")
    try:
        job.add_output("particle", "bad", slots=[{**UNCERTAINTY, "dtype": "cryoforum"}])
    except InvalidSlotsError:
        pass
    else:
        raise AssertionError("an unknown dtype was accepted")
    output = job.add_output(
        "particle", "particles", slots=[UNCERTAINTY], passthrough="particles", alloc=particles
    )
    output["components_mode_0/value"] = value = np.arange(len(output))
    server.faults.append(missing_fields(op="vis.save_output"))
    with job.run():
        job.log("started")
        assert job.load_input("particles", slots=["blob"]).prefixes() == ["blob"]
        try:
            job.save_output("particles", output)
        except CommandError as error:
            if error.code != 422:
                raise
        server.restart()
        job.save_output("particles", output)
        job.upload("model.json", b"{}")
    saved = client.find_job("P1", job.uid).load_output("particles")
    assert job.doc["status"] == "completed"
    assert set(saved.prefixes()) == {*particles.prefixes(), "components_mode_0"}
    assert (saved["components_mode_0/value"] == value).all()
    next_job = project.create_job("W1", "homo_reconstruct", connections={"particles": (job.uid, "particles")})
    next_job.queue("default")
    assert next_job.doc["status"] == "queued"
    next_job.kill()
    assert server.state.job("P1", next_job.uid)["status"] == "killed"


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Stacks through the real 4.7 client: `PYTHONPATH=tests:. python -m fake_cryosparc.check_stacks_v4 FOLDER`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cryoforum_plugin.errors import HostError
from cryosparc_job.job import calls
from cryosparc_job.job.stacks import data_root, named_stacks
from fake_cryosparc.faults import dropped_download
from fake_cryosparc.server_v4 import FakeCryoSPARC4
from fake_cryosparc.synthetic import synthetic_particles

DOWNLOAD = "vis.get_project_file"


def main(folder: Path) -> None:
    """Download, over a break; AssertionError if something is wrong."""
    for name in [name for name in os.environ if name.startswith("CRYOSPARC_")]:
        del os.environ[name]
    os.environ["CRYOSPARC_COMMAND_RETRY_SECONDS"] = "1"
    from cryosparc.tools import CryoSPARC

    calls.WAITS_S = (0.02, 0.05)
    with FakeCryoSPARC4(folder / "projects") as server:
        project = server.state.add_project("P1")
        table, cache = folder / "particles.cs", folder / "cache"
        synthetic_particles(100, project).save(table)
        login = {"email": server.state.email, "password": server.state.password}
        client = CryoSPARC(server.license, "127.0.0.1", server.base_port, **login)
        server.faults.append(dropped_download(DOWNLOAD))
        assert data_root(client, "P1", folder / "absent", table, cache) == cache
        assert server.requests.count(DOWNLOAD) == 5
        names = [stack.name for stack in named_stacks(table)]
        assert all((cache / name).read_bytes() == (project / name).read_bytes() for name in names)
        (project / names[0]).unlink()
        message = ""
        try:
            data_root(client, "P1", folder / "absent", table, folder / "other")
        except HostError as error:
            message = str(error)
        assert message.startswith(f"cryoSPARC has no image stack {names[0]}"), message


if __name__ == "__main__":
    main(Path(sys.argv[1]))

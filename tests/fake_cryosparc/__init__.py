"""A cryoSPARC master on this machine, for the real cryosparc-tools client: no cryoSPARC, no licence, no GPU.

Stand-in for a server nobody may ship: it shows that we use the *client* correctly, never that a real server
accepts what we send. Lifecycle, slot registry, passthrough and error texts follow the client's own API stub
and Structura's documentation; URLs, verbs and file names are this package's own.

    with FakeCryoSPARC(tmp_path) as server:
        server.state.add_project("P1")
        client = CryoSPARC(server.url, email=server.state.email, password=server.state.password)

`server.state` is what the master knows, `server.requests` what it was asked, `server.faults` what goes wrong.
`fixtures` holds the pytest fixtures; `server_v4` the three services of cryoSPARC 4.7.
"""

from fake_cryosparc.faults import Cut, Delay, Drop, HTTPError
from fake_cryosparc.server import FakeCryoSPARC
from fake_cryosparc.state import State

__all__ = ["Cut", "Delay", "Drop", "FakeCryoSPARC", "HTTPError", "State"]

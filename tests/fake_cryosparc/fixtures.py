"""pytest fixtures and what they are made of; a conftest or test module takes the fixture by name:

    from fake_cryosparc import fixtures
    cryosparc_server = fixtures.cryosparc_server

The server is of the generation of the client that is installed; `V4` tells which one, for what cannot be the same.
Importing this takes every CRYOSPARC_* variable away: the client reads them once, when it is imported itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cryosparc
import pytest

from fake_cryosparc.server import FakeCryoSPARC
from fake_cryosparc.server_v4 import FakeCryoSPARC4
from fake_cryosparc.synthetic import add_refinement

__all__ = [
    "V4",
    "Server",
    "add_refinement",
    "clean_environment",
    "closed_clients",
    "connect",
    "cryosparc_server",
    "error_text",
    "load_all",
    "log_in",
    "login",
    "make_server",
]

V4 = cryosparc.__version__.startswith("4.")
Server = FakeCryoSPARC | FakeCryoSPARC4

for _name in [name for name in os.environ if name.startswith("CRYOSPARC_")]:
    del os.environ[_name]
os.environ["CRYOSPARC_COMMAND_RETRY_SECONDS"] = "0"  # 4.7 waits between its attempts


def make_server(root: Path) -> Server:
    """Return a server for the client that is installed."""
    return FakeCryoSPARC4(root) if V4 else FakeCryoSPARC(root)


def connect(server: Server) -> Any:
    """Return a client of the logged-in user."""
    from cryosparc.tools import CryoSPARC

    if isinstance(server, FakeCryoSPARC):
        return CryoSPARC(server.url)
    state = server.state
    return CryoSPARC(server.license, "127.0.0.1", server.base_port, state.email, state.password)


def load_all(job: Any, output: str) -> Any:
    """Return an output with all its slots, passed through or not."""
    return job.load_output(output) if V4 else job.load_output(output, slots="all")


def error_text(server: Server, job: dict[str, Any]) -> str:
    """Return the line that a job failed with; 4.7 has it in the event log only, and other lines after it."""
    if not V4:
        return str(job["errors_run"][0]["message"])
    events = server.state.events_of(job["project_uid"], job["uid"])
    before = [event for event in events if event["created_at"] <= job["failed_at"]]
    return str([event["text"] for event in before if event["type"] == "error"][-1])


def log_in(server: Server, config_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the user be logged in: a stored token, or with 4.7 the environment."""
    if not V4:
        login(server, config_home)
        return
    monkeypatch.setenv("CRYOSPARC_LICENSE_ID", FakeCryoSPARC4.license)
    monkeypatch.setenv("CRYOSPARC_EMAIL", server.state.email)
    monkeypatch.setenv("CRYOSPARC_PASSWORD", server.state.password)


def login(server: Server, config_home: Path, days: float = 14) -> Path:
    """Store a token as `python -m cryosparc.tools login` does; return the file. Negative days are over."""
    from cryosparc.auth import InstanceAuthSessions
    from cryosparc.models.auth import Token

    file = config_home / "cryosparc-tools" / "auth.json"
    sessions = InstanceAuthSessions.load(file) if file.exists() else InstanceAuthSessions({})
    token = Token(access_token=server.state.new_token(), token_type="bearer")
    expires = (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    sessions.insert(server.url, server.state.email, token, expires)
    sessions.save(file)
    return file


def clean_environment(config_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's own instance and login away, also from the client's cache."""
    for name in [name for name in os.environ if name.startswith("CRYOSPARC_")]:
        if "RETRY" not in name:
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config_home))
    _forget_login()


def _forget_login() -> None:
    if not V4:
        from cryosparc.auth import get_default_auth_config_path

        get_default_auth_config_path.cache_clear()


@contextmanager
def closed_clients() -> Iterator[None]:
    """Close the connections of every client made in the block: left to the garbage collector they warn."""
    if V4:  # keeps none
        yield
        return
    import httpx

    opened: list[httpx.Client] = []
    make = httpx.Client.__init__

    def remember(self: httpx.Client, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        opened.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.Client, "__init__", remember)
        yield
    for client in opened:
        client.close()


@pytest.fixture
def cryosparc_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve an instance with one refined project; the user is logged in."""
    config_home = tmp_path / "config"
    clean_environment(config_home, monkeypatch)
    with make_server(tmp_path / "projects") as server:
        add_refinement(server.state)
        log_in(server, config_home, monkeypatch)
        yield server
    _forget_login()

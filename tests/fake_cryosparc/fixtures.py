"""pytest fixtures and what they are made of; a conftest or test module takes the fixture by name:

    from fake_cryosparc import fixtures
    cryosparc_server = fixtures.cryosparc_server

Importing this takes every CRYOSPARC_* variable away: the client reads them once, when it is imported itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fake_cryosparc.server import FakeCryoSPARC
from fake_cryosparc.synthetic import add_refinement

__all__ = ["add_refinement", "clean_environment", "closed_clients", "cryosparc_server", "login"]

for _name in [name for name in os.environ if name.startswith("CRYOSPARC_")]:
    del os.environ[_name]


def login(server: FakeCryoSPARC, config_home: Path, days: float = 14) -> Path:
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
    from cryosparc.auth import get_default_auth_config_path

    for name in [name for name in os.environ if name.startswith("CRYOSPARC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config_home))
    get_default_auth_config_path.cache_clear()


@contextmanager
def closed_clients() -> Iterator[None]:
    """Close the connections of every client made in the block: left to the garbage collector they warn."""
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
def cryosparc_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCryoSPARC]:
    """Serve an instance with one refined project; the user is logged in."""
    config_home = tmp_path / "config"
    clean_environment(config_home, monkeypatch)
    with FakeCryoSPARC(tmp_path / "projects") as server:
        add_refinement(server.state)
        login(server, config_home)
        yield server
    from cryosparc.auth import get_default_auth_config_path

    get_default_auth_config_path.cache_clear()

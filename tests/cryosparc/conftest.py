"""What the cryoSPARC tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_cryosparc import fixtures


@pytest.fixture(autouse=True)
def _closed_clients() -> Iterator[None]:
    with fixtures.closed_clients():
        yield

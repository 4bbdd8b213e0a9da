"""A tiny model and sixty particles it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chain import TINY, quick_networks, simulate, succeed
from watch_bench import COUNT, Bench


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    with quick_networks():
        simulate(folder, 4 * COUNT)
        succeed(
            "train", folder / "sim" / "train.star", "-o", folder / "model", "--quiet", *TINY, "--epochs", 1
        )
    return folder


@pytest.fixture
def bench(_made: Path, tmp_path: Path) -> Iterator[Bench]:
    """Return a bench in a fresh folder."""
    with quick_networks():
        yield Bench(_made, tmp_path)

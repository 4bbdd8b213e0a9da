"""What the cryoSPARC tests share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryosparc_runs import quick_training, train_tiny_model
from fake_cryosparc import fixtures
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def _closed_clients() -> Iterator[None]:
    with fixtures.closed_clients():
        yield


@pytest.fixture(scope="module", autouse=True)
def _quick_training() -> Iterator[None]:
    with quick_training():
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model that was trained on simulated particles."""
    with quick_training():
        return train_tiny_model(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained model, with nothing predicted beside it."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save every figure as the same few bytes: drawing takes most of the time of a job this small."""

    def save(figure: Figure, file: Any, **named: Any) -> None:
        (Path(file).write_bytes if isinstance(file, str | Path) else file.write)(b"\x89PNG")

    monkeypatch.setattr(Figure, "savefig", save)

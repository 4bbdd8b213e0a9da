"""cryoSPARC's names of point groups: there and back, and what has no counterpart."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.spatial.transform import Rotation

from cryoforum_plugin.geometry import symmetry_group
from cryosparc_job.job import cli
from cryosparc_job.symmetry import from_cryosparc, to_cryosparc


@pytest.mark.parametrize("name", ["C1", "C7", "D2", "D3", "D4", "D7", "T", "O", "I1", "I2"])
def test_names_come_back(name: str) -> None:
    assert to_cryosparc(from_cryosparc(name)) == name


@pytest.mark.parametrize("n", range(1, 10))
def test_cryosparcs_dn_has_a_2_fold_on_y(n: int) -> None:
    half_turn = Rotation.from_rotvec([0, np.pi, 0])
    group = Rotation.from_quat(symmetry_group(from_cryosparc(f"d{n} ")))
    assert (group * half_turn.inv()).magnitude().min() < 1e-9


@pytest.mark.parametrize(
    ("ours", "theirs"), [("I", "I2"), ("D4Y", "D4"), ("D7", None), ("I3", None), ("i4", None)]
)
def test_our_names_for_cryosparc(ours: str, theirs: str | None) -> None:
    assert to_cryosparc(ours) == theirs


def test_the_jobs_option_takes_cryosparcs_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("cryosparc_job.job.steps.run", lambda request: seen.append(request) or "J1")
    arguments = [
        "--project",
        "P1",
        "--workspace",
        "W1",
        "--job",
        "J1",
        "--model-dir",
        "model",
        "--symmetry",
        "D7",
    ]
    done = CliRunner().invoke(cli.main, ["train", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert seen[0].train.symmetry == "D7Y"

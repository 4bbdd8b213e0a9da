"""Which processes start here, and where they meet."""

from __future__ import annotations

from pathlib import Path

import pytest
from chain import cryoforum

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.launch.by_srun import srun_here
from cryoforum_plugin.launch.place import Devices, Place, arrange

# of a job script that did not use srun, as SLURM sets them
SCRIPT = {
    "SLURM_JOB_ID": "200505",
    "SLURM_JOB_NODELIST": "gpu[10,20]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


def step(tasks: int, node: int = 0, local: int = 0) -> dict[str, str]:
    """Environment of a process that srun started."""
    return SCRIPT | {
        "SLURM_STEP_ID": "3",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NODELIST": "gpu[10,20]",
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
    }


def ranks(devices: Devices, environment: dict[str, str]) -> list[tuple[int, int, int]]:
    return [(place.rank, place.local_rank, place.node) for place in arrange(devices, environment).places]


@pytest.mark.parametrize("environment", [{}, SCRIPT, step(1)])
def test_one_machine_starts_all(environment: dict[str, str]) -> None:
    assert ranks(Devices("cpu", 2), environment) == [(0, 0, 0), (1, 1, 0)]
    meeting = arrange(Devices("cpu", 2), environment)
    assert meeting.address == "127.0.0.1"
    assert meeting.port != arrange(Devices("cpu", 2), environment).port


def test_srun_starts_one_for_each_device() -> None:
    found = [ranks(Devices("cpu", 2, 2), step(4, node, local)) for node in (0, 1) for local in (0, 1)]
    assert found == [[(0, 0, 0)], [(1, 1, 0)], [(2, 0, 1)], [(3, 1, 1)]]


def test_srun_starts_one_for_each_machine() -> None:
    assert ranks(Devices("cpu", 2, 2), step(2, 1)) == [(2, 0, 1), (3, 1, 1)]


def test_all_that_srun_started_meet_at_the_same_place() -> None:
    meetings = {
        (m.address, m.port)
        for m in (arrange(Devices("cpu", 2, 2), step(4, n, local)) for n in (0, 1) for local in (0, 1))
    }
    ((address, port),) = meetings
    assert address == "gpu10"
    assert 15_000 <= port < 30_000
    chosen = step(2, 1) | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    meeting = arrange(Devices("cpu", 2, 2), chosen)
    assert (meeting.address, meeting.port) == ("10.0.0.1", 1234)


@pytest.mark.parametrize("devices", [Devices(), Devices("cpu", 3), Devices("cpu", 2, 3)])
def test_srun_with_other_numbers_is_refused(devices: Devices) -> None:
    with pytest.raises(SettingsError, match="srun started 4 processes"):
        arrange(devices, step(4))


@pytest.mark.parametrize("name", ["train", "predict"])
def test_commands_that_srun_started_too_often_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in step(4).items():
        monkeypatch.setenv(variable, value)
    (tmp_path / "p.star").touch()
    inputs = [tmp_path] * (name == "predict") + [tmp_path / "p.star"]
    result = cryoforum(name, *map(str, inputs), "-o", str(tmp_path / "o.star"), "--device", "cpu")
    assert result.exit_code == 1
    assert "srun started 4 processes of this command, but --devices 1 --num-nodes 1" in result.stderr


def test_two_devices_on_each_machine_of_which_one_has_three_are_refused() -> None:
    with pytest.raises(SettingsError, match="as many processes on every machine"):
        arrange(Devices("cpu", 2, 2), step(4, 0, 2))


def test_machines_by_hand() -> None:
    by_hand = {"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "5000"}
    meeting = arrange(Devices("cpu", 2, 2), by_hand)
    assert [place.rank for place in meeting.places] == [2, 3]
    assert (meeting.address, meeting.port) == ("first", 5000)
    with pytest.raises(SettingsError, match="NODE_RANK and MASTER_ADDR and MASTER_PORT"):
        arrange(Devices("cpu", 2, 2), {})


def test_a_job_script_starts_other_machines_by_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert srun_here(Devices("cpu", 2, 2), SCRIPT)
    assert not srun_here(Devices("cpu", 2, 1), SCRIPT)
    assert not srun_here(Devices("cpu", 2, 2), step(4))
    assert not srun_here(Devices("cpu", 2, 2), SCRIPT | {"NODE_RANK": "0"})
    assert not srun_here(Devices("cpu", 2, 2), {})


def test_a_place_says_what_it_is() -> None:
    assert str(Place(1, 4, 1, 0, "gpu10")) == "process 2 of 4 on gpu10"

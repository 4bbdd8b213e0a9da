"""Train, predict, select and queue on particles in cryoSPARC: real client, our server, real images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chain import TINY
from click.testing import CliRunner
from cryosparc_runs import add_job, tiny_settings
from fake_cryosparc import fixtures
from fake_cryosparc.faults import dropped_upload

from cryoforum_plugin.confidence.selection import Criteria
from cryoforum_plugin.errors import HostError
from cryosparc_job.job import calls
from cryosparc_job.job.cli import main
from cryosparc_job.job.client import output_types
from cryosparc_job.job.outputs import free_slots
from cryosparc_job.job.request import RECONSTRUCTION, Next, Request, Source
from cryosparc_job.job.steps import run

cryosparc_server = fixtures.cryosparc_server


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAITS_S", (0.05, 0.2))


@pytest.fixture
def source(cryosparc_server: fixtures.Server) -> Source:
    """Return refined particles with real images as the output of a finished job."""
    return add_job(cryosparc_server)


@pytest.mark.usefixtures("no_drawing")
def test_the_whole_flow(cryosparc_server: fixtures.Server, source: Source, tmp_path: Path) -> None:
    model, criteria = tmp_path / "model", Criteria(keep_fraction=0.5, balance_halves=True)
    uid = run(
        Request(
            source,
            model,
            train=tiny_settings(),
            criteria=criteria,
            fsc=True,
            then=(Next(RECONSTRUCTION, "default"),),
        )
    )
    job = cryosparc_server.state.jobs["P1", uid]
    assert job["status"] == "completed"
    client = fixtures.connect(cryosparc_server)
    given = fixtures.load_all(client.find_job("P1", source.job), "particles")
    made = client.find_job("P1", uid)
    got = {name: fixtures.load_all(made, name) for name in output_types(made)}
    assert set(got) == {"particles", "particles_selected", "particles_rejected", "particles_network_pose"}
    for name in ("uid", "alignments3D/pose", "alignments3D/split", "blob/idx", "ctf/exp_group_id"):
        np.testing.assert_array_equal(got["particles"][name], given[name])
    poses = got["particles_network_pose"]
    np.testing.assert_array_equal(poses["alignments3D/split"], given["alignments3D/split"])
    np.testing.assert_array_equal(poses["alignments3D/error"], given["alignments3D/error"])
    assert not np.allclose(poses["alignments3D/pose"], given["alignments3D/pose"])
    kept, rejected = got["particles_selected"], got["particles_rejected"]
    assert sorted([*kept["uid"], *rejected["uid"]]) == sorted(given["uid"])
    halves = np.bincount(kept["alignments3D/split"], minlength=2)
    assert halves.max() <= 1.02 * halves.min()
    confidence = got["particles"]["components_mode_0/value"]
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert kept["components_mode_0/value"].min() >= np.median(confidence) - 1e-6
    for upload in cryosparc_server.requests.uploads("particles"):
        assert all(field == "uid" or field.startswith("components_mode_") for field in upload.fields)
    others = [j for j in cryosparc_server.state.jobs.values() if j["spec"]["type"] == "homo_reconstruct"]
    assert [j["status"] for j in others] == ["queued"]


@pytest.mark.usefixtures("no_drawing")
def test_a_second_run_writes_without_predicting_again(
    cryosparc_server: fixtures.Server, source: Source, model: Path
) -> None:
    cryosparc_server.faults += [dropped_upload(after_bytes=100)]
    first = run(Request(source, model))
    assert cryosparc_server.state.jobs["P1", first]["status"] == "completed"
    predicted = next(model.parent.rglob("predicted.cs"))
    written = predicted.stat().st_mtime_ns
    second = run(Request(source, model, criteria=Criteria(min_confidence=0.0)))
    assert cryosparc_server.state.jobs["P1", second]["status"] == "completed"
    assert predicted.stat().st_mtime_ns == written


def test_a_run_without_a_model_fails_in_cryosparc_too(
    cryosparc_server: fixtures.Server, source: Source, tmp_path: Path
) -> None:
    with pytest.raises(HostError, match="train a model there first"):
        run(Request(source, tmp_path / "absent"))
    last = list(cryosparc_server.state.jobs.values())[-1]
    assert last["status"] == "failed"
    assert "train a model there first" in fixtures.error_text(cryosparc_server, last)


def test_our_components_take_the_first_free_numbers() -> None:
    assert list(free_slots(["blob"]).values()) == [0, 1, 2, 3]
    assert list(free_slots(["components_mode_0", "components_mode_2"]).values()) == [1, 3, 4, 5]


@pytest.mark.usefixtures("no_drawing")
def test_the_commands(cryosparc_server: fixtures.Server, source: Source, tmp_path: Path) -> None:
    where = ["--url", source.url, "--project", "1", "--workspace", "1", "--job", source.job.removeprefix("J"),
             "--model-dir", str(tmp_path / "model")]  # fmt: skip
    small = [*(text for text in TINY if "=" in text), "training.epochs=1"]
    assigned = [part for text in small for part in ("--set", text)]
    done = CliRunner().invoke(main, ["pipeline", *where, *assigned, "--keep", "0.5"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("done: J")
    again = CliRunner().invoke(main, ["select", *where, "--keep", "0.25"])
    assert again.exit_code == 0, again.output
    first, second = (
        cryosparc_server.state.datasets["P1", run.stdout.split()[1], "particles_selected"]
        for run in (done, again)
    )
    assert set(second["uid"]) < set(first["uid"])
    assert CliRunner().invoke(main, ["select", *where]).exit_code == 2
    for command in ("train", "predict", "select", "pipeline"):
        page = CliRunner().invoke(main, [command, "--help"])
        assert "--model-dir" in page.output
        assert "password" not in page.output


@pytest.mark.usefixtures("no_drawing")
def test_two_processes_share_the_training_and_one_talks_to_cryosparc(
    cryosparc_server: fixtures.Server, source: Source, tmp_path: Path
) -> None:
    request = Request(
        source, tmp_path / "model", train=tiny_settings(), predict=False, device="cpu", devices=2
    )
    uid = run(request)
    assert cryosparc_server.state.jobs["P1", uid]["status"] == "completed"
    assert json.loads((tmp_path / "model" / "config.json").read_text())["processes"] == 2
    assert "epoch 1/1" in (tmp_path / "model" / "log.txt").read_text()

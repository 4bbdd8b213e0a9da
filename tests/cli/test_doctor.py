"""`cryoforum doctor`: the report, and the exit code when a convention fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cryoforum_plugin import selftest
from cryoforum_plugin.cli.main import main


def test_everything_is_reported(project: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", "--json", "doctor.json"])
    assert result.exit_code == 0, result.output
    report = json.loads((project / "doctor.json").read_text())
    assert report["versions"]["torch"]
    assert report["devices"]["cpu cores"] >= 1
    assert "relion_refine" in report["programs"]
    assert [check["passed"] for check in report["conventions"]] == [True] * len(selftest.CHECKS)


def test_relion_is_found(project: Path, relion) -> None:
    CliRunner().invoke(main, ["doctor", "--json", "doctor.json"])
    version = json.loads((project / "doctor.json").read_text())["programs"]["RELION version"]
    assert version[0].isdigit()


def test_a_failed_check_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> selftest.Check:
        raise ValueError("library changed")

    monkeypatch.setattr(selftest, "CHECKS", (selftest.CHECKS[0], explode))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "FAILED  explode (ValueError: library changed)" in result.stdout
    assert "1 of 2 convention checks failed" in result.stderr


def test_a_wrong_convention_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = selftest.relion_euler_to_quaternion
    monkeypatch.setattr(selftest, "relion_euler_to_quaternion", lambda a: forward(a) * [-1, -1, -1, 1])
    assert not selftest.CHECKS[0]().passed

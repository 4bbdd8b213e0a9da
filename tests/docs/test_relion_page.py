"""The page for RELION users names every parameter and every output."""

from __future__ import annotations

from pathlib import Path

from relion_external.job.parameters import FREE_PARAMETERS, JOBS
from relion_external.job.supervisor import ABORTED, FAILURE, SUCCESS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "relion.md").read_text()


def test_every_parameter_has_its_row() -> None:
    for option in FREE_PARAMETERS:
        assert f"| `{option.name}` |" in PAGE, option.name


def test_every_job_flag_and_output_is_named() -> None:
    for job in JOBS:
        assert f"### {job}\n" in PAGE
    for flag in (SUCCESS, FAILURE, ABORTED):
        assert f"`{flag.rsplit('_', 1)[1]}`" in PAGE
    for output in (
        "predicted.star",
        "selected.star",
        "rejected.star",
        "half1.mrc",
        "logfile.pdf",
        "job.json",
    ):
        assert f"`{output}`" in PAGE

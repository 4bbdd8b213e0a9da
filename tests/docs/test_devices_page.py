"""The scripts of the page on devices are complete, and RELION would fill in all of its template."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
FILLED_IN = {  # RELION's variables (pipeline_jobs.cpp) and the two fields that the page adds
    "name": "External/job001/", "queue": "gpu", "threads": "8", "outfile": "External/job001/run.out",
    "errfile": "External/job001/run.err", "extra1": "4", "extra2": "2", "command": "cryoforum-relion --o External/job001/",
}  # fmt: skip


@pytest.mark.parametrize("script", ["slurm_train.sh", "relion_queue.sh"])
def test_scripts_are_correct_shell(script: str) -> None:
    subprocess.run(["bash", "-n", EXAMPLES / script], check=True)


def test_relion_fills_in_everything() -> None:
    text = (EXAMPLES / "relion_queue.sh").read_text().replace("XXX...XXX", "")
    for name, value in FILLED_IN.items():
        assert f"XXX{name}XXX" in text
        text = text.replace(f"XXX{name}XXX", value)
    assert "XXX" not in text
    assert re.search(r"^#SBATCH --gpus-per-node=4$", text, re.MULTILINE)
    assert text.rstrip().endswith("\ncryoforum-relion --o External/job001/")

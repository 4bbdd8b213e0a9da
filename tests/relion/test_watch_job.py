"""docs/examples/predict_new.sh: an External job that predicts what is new, run again and again by the real RELION."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import starfile
from chain import TINY, quick_networks, simulate, succeed
from relion_project import EXTERNAL, Project
from watch_bench import COUNT, Bench

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(
    tmp_path_factory: pytest.TempPathFactory, project: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """A RELION project in the current folder, a tiny model elsewhere, and a `cryoforum` on PATH that can load it."""
    folder = tmp_path_factory.mktemp("watched")
    programs = tmp_path_factory.mktemp("bin")
    program = programs / "cryoforum"
    code = "import sys; from chain import quick_networks; from cryoforum_plugin.cli.main import main\nwith quick_networks(): main(sys.argv[1:])"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY / 'tests'}:{REPOSITORY}")
    with quick_networks():
        simulate(folder, 4 * COUNT)
        succeed(
            "train", folder / "sim" / "train.star", "-o", folder / "model", "--quiet", *TINY, "--epochs", 1
        )
        yield Bench(folder, project)


@pytest.mark.usefixtures("relion")
def test_a_job_that_is_run_again_predicts_what_is_new(bench: Bench) -> None:
    script = bench.here / "predict_new.sh"
    shutil.copy(REPOSITORY / "docs" / "examples" / script.name, script)
    made = Project(bench.here)
    (bench.here / "default_pipeline.star").write_text("data_pipeline_general\n\n_rlnPipeLineJobCounter 1\n\n")
    bench.table(range(10))
    options = made.external("particles.star", model=bench.folder / "model") | {"fn_exe": script}
    name = made.job(EXTERNAL, options)
    for count in (10, 25):
        bench.table(range(count))
        if count > 10:
            made.start(name)
        assert made.jobs()[name] == "succeeded", made.read(f"{name}run.err")
        assert len(starfile.read(bench.here / name / "predicted.star")["particles"]) == count
    assert made.nodes()[f"{name}predicted.star"] == "3"
    (bench.here / "particles.star").write_text("data_particles\n\nloop_\n_rlnMicrographName #1\nm.mrc\n")
    made.start(name)
    assert made.jobs()[name] == "failed"
    assert "no column _rlnImageName" in made.read(f"{name}run.err")

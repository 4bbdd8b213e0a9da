"""However a job ends, RELION knows: abort, crash, signals, the memory killer, Continue, queues."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import starfile
from relion_project import EXTERNAL, IMPORT, Project, image_names

if TYPE_CHECKING:
    from relion.conftest import Run

FLAGS = ("RELION_JOB_EXIT_SUCCESS", "RELION_JOB_EXIT_FAILURE", "RELION_JOB_EXIT_ABORTED")


def flags(project: Project, job: str) -> list[str]:
    """Words of the exit flags in a job folder."""
    return [flag.rsplit("_", 1)[1] for flag in FLAGS if (project.folder / job / flag).exists()]


def worker_of(project: Project, job: str) -> int:
    """Process number of the worker of a running job."""
    marks = f"relion_external.job.worker --o {job} "
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if marks in command and os.readlink(entry / "cwd") == str(project.folder):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"no worker of {job}")


def parent_of(process: int) -> int:
    """Process number of the parent: the supervisor."""
    return int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{process}/status").read_text()).group(1))


QUICK_TRAINING = "images.size_px=24 network.channels=8 network.features=16 network.hidden=32"


def run_until(project: Project, name: str, words: str) -> threading.Thread:
    """Let RELION run a job, and return when its run.out holds `words`, while it goes on."""
    thread = threading.Thread(target=project.start, args=(name,))
    thread.start()
    project.wait_for(f"{name}run.out", words)
    return thread


def ended(project: Project, name: str, thread: threading.Thread) -> tuple[str, list[str]]:
    """Wait for the end; return RELION's status and the exit flags."""
    thread.join(90)
    return project.jobs()[name], flags(project, name)


def test_a_training_that_is_aborted_stopped_killed_and_continued(relion_run: Run) -> None:
    project = relion_run.project
    options = project.external(relion_run.train_star, job="train", epochs=5, set=QUICK_TRAINING)
    name = project.schedule(EXTERNAL, options)
    abort = project.folder / name / "RELION_JOB_ABORT_NOW"

    thread = run_until(project, name, "epoch 1/5")
    abort.touch()  # what the GUI's Abort does
    start = time.monotonic()
    assert ended(project, name, thread) == ("aborted", ["ABORTED"])
    assert time.monotonic() - start < 15  # RELION itself looks once a second, and waits another
    assert not abort.exists()
    assert "epoch 5/5" not in project.read(f"{name}run.out")
    assert not [path for path in (project.folder / name).rglob(".*") if path.suffix != ".star"]

    abort.touch()  # left over: of the past, as its time says
    os.utime(abort, (0, 0))
    thread = run_until(project, name, "resumed after epoch")
    os.kill(parent_of(worker_of(project, name)), signal.SIGTERM)  # a queue's time limit
    assert ended(project, name, thread) == ("failed", ["FAILURE"])
    assert "stopped by SIGTERM" in project.read(f"{name}run.err").splitlines()[-1]
    with pytest.raises(AssertionError, match="no worker"):
        worker_of(project, name)

    thread = run_until(project, name, "resumed after epoch")
    project.wait_for(f"{name}run.out", "resumed after epoch", count=2)
    os.kill(worker_of(project, name), signal.SIGKILL)  # as the kernel does when memory is short
    assert ended(project, name, thread) == ("failed", ["FAILURE"])
    assert "lack of memory" in project.read(f"{name}run.err").splitlines()[-1]

    project.start(name)
    assert (project.jobs()[name], flags(project, name)) == ("succeeded", ["SUCCESS"])
    assert project.read(f"{name}run.out").count("epoch 1/5") == 1
    assert project.nodes()[f"{name}model/reference.mrc"] == "6"


def test_continue_selects_again_without_predicting_again(relion_run: Run) -> None:
    project = relion_run.project
    options = project.external(
        relion_run.new_star, job="predict", model=relion_run.train, min_confidence=0, reconstruct="yes"
    )
    name = project.job(EXTERNAL, options)
    folder = project.folder / name
    predicted = (folder / "predicted.star").stat().st_mtime_ns
    assert not (folder / "rejected.star").exists()
    confidence = starfile.read(folder / "predicted.star")["particles"]["rlnParticleFigureOfMerit"]
    star = project.read(f"{name}job.star")
    assert "_rlnJobIsContinue                       0" in star
    (folder / "job.star").write_text(
        re.sub(r"(min_confidence\s+param\d_value\s+)\S+", rf"\g<1>{confidence.median()}", star)
        .replace("_rlnJobIsContinue                       0", "_rlnJobIsContinue                       1")
    )  # fmt: skip
    project.start(name)
    assert project.jobs()[name] == "succeeded"
    assert flags(project, name) == ["SUCCESS"]
    assert (folder / "predicted.star").stat().st_mtime_ns == predicted
    kept, rejected = (image_names(folder / f"{part}.star") for part in ("selected", "rejected"))
    assert len(kept) == (confidence >= confidence.median()).sum()
    assert len(kept) + len(rejected) == 300
    assert project.nodes()[f"{name}rejected.star"] == "3"
    assert project.nodes()[f"{name}half1.mrc"] == "10"
    project.run(
        "relion_mask_create", "--i", "ref.mrc", "--o", "mask.mrc", "--ini_threshold", 0.05, "--angpix", 6
    )
    project.run("relion_postprocess", "--i", f"{name}half1.mrc", "--mask", "mask.mrc", "--o", f"{name}post",
                "--angpix", 6)  # fmt: skip


def test_bad_input_fails_with_one_line(relion_run: Run) -> None:
    project = relion_run.project
    text = (project.folder / relion_run.new_star).read_text()
    (project.folder / "bare.star").write_text(re.sub(r"_rlnAngle(Rot|Tilt|Psi)", r"_cryoforumNot\1", text))
    name = project.job(EXTERNAL, project.external("bare.star", job="train"))
    assert project.jobs()[name] == "failed"
    (line,) = project.read(f"{name}run.err").strip().splitlines()
    assert "no orientations" in line


def test_queue_with_the_sites_template(relion_run: Run) -> None:
    project = relion_run.project
    (project.folder / "template.sh").write_text(
        "#!/bin/bash\n#SBATCH -n XXXmpinodesXXX -c XXXthreadsXXX -p XXXqueueXXX\n#SBATCH -e XXXerrfileXXX\n"
        "mpirun -n XXXmpinodesXXX XXXcommandXXX\n"
    )
    options = project.external(f"{relion_run.predict}predicted.star", job="select", keep=0.5)
    options |= {
        "do_queue": "Yes",
        "queuename": "gpu",
        "qsub": "bash",
        "qsubscript": "template.sh",
        "min_dedicated": 1,
    }
    name = project.job(EXTERNAL, options)
    assert project.jobs()[name] == "succeeded"
    script = project.read(f"{name}run_submit.script")
    assert "-p gpu" in script
    assert "mpirun" not in script
    assert len(image_names(project.folder / name / "selected.star")) == 150


def test_a_schedule_runs_our_job_on_what_an_earlier_job_made(relion_run: Run) -> None:
    project = relion_run.project
    importing = {"do_other": "Yes", "do_raw": "No", "fn_in_other": f"{relion_run.predict}predicted.star",
                 "node_type": "Particles STAR file (.star)", "optics_group_particles": "", "do_queue": "No"}  # fmt: skip
    project.write_job("first.star", IMPORT, importing)
    selecting = project.external("Schedules/chain/first.star/predicted.star", job="select", keep=0.5)
    project.write_job("second.star", EXTERNAL, selecting)
    scheduler = ("relion_scheduler", "--schedule", "chain")
    project.run(*scheduler, "--add", "variable", "--name", "unused", "--value", 1)
    for file in ("first.star", "second.star"):
        project.run(*scheduler, "--add", "job", "--i", file, "--mode", "new")
    project.run(*scheduler, "--add", "operator", "--type", "exit")
    for start, end in (("first.star", "second.star"), ("second.star", "EXIT")):
        project.run(*scheduler, "--add", "edge", "--i", start, "--o", end)
    project.run(*scheduler, "--set_current_node", "first.star")
    before = project.jobs()
    project.run(*scheduler, "--run")
    new = {name: status for name, status in project.jobs().items() if name not in before}
    assert [name.split("/")[0] for name in new] == ["Import", "External"]
    assert set(new.values()) == {"succeeded"}
    assert len(image_names(project.folder / list(new)[1] / "selected.star")) == 150

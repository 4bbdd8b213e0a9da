"""The External-job contract without RELION: flags in every ending, Continue, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from chain import TINY, simulate
from conftest import build_particles

from cryoforum_plugin import formats
from cryoforum_plugin.errors import CryoForumError
from relion_external.job import supervisor
from relion_external.job.command_line import parse_job
from relion_external.job.learning import warn_of_one_half
from relion_external.job.steps import run_job
from relion_external.job.supervisor import Supervisor, supervise
from relion_external.job.worker import in_gui_words

FLAGS = {"RELION_JOB_EXIT_SUCCESS", "RELION_JOB_EXIT_FAILURE", "RELION_JOB_EXIT_ABORTED"}
SET = " ".join(value for value in TINY if "=" in value)


def flags(folder: Path) -> set[str]:
    """Last words of the flags that are there."""
    return {path.name.rsplit("_", 1)[1] for path in folder.iterdir() if path.name in FLAGS}


def run_python(folder: Path, code: str) -> tuple[int, set[str]]:
    """Supervise a worker that runs `code`; return the exit code and the flags."""
    folder.mkdir(exist_ok=True)
    exit_code = Supervisor(folder, [sys.executable, "-c", code], dict(os.environ)).run()
    return exit_code, flags(folder)


def test_success_and_failure(tmp_path: Path) -> None:
    (tmp_path / "RELION_JOB_EXIT_ABORTED").touch()
    assert run_python(tmp_path, "") == (0, {"SUCCESS"})
    assert run_python(tmp_path, "raise SystemExit(1)") == (1, {"FAILURE"})


@pytest.mark.parametrize(
    ("number", "words"),
    [(9, "lack of memory"), (6, "crashed (Aborted)"), (15, "SIGTERM"), (40, "crashed")],
)
def test_crashes_leave_a_flag_and_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], number: int, words: str
) -> None:
    assert run_python(tmp_path, f"import os; os.kill(os.getpid(), {number})") == (1, {"FAILURE"})
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert words in line


def test_a_worker_that_cannot_be_started(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert Supervisor(tmp_path, [str(tmp_path / "absent")], {}).run() == 1
    assert flags(tmp_path) == {"FAILURE"}
    assert "No such file" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2", "SIGXCPU"])
def test_signals_of_queues_and_a_full_disk_under_run_err(tmp_path: Path, name: str) -> None:
    code = (
        "import os, sys; from pathlib import Path; from relion_external.job.supervisor import Supervisor;"
        f"sleep = [sys.executable, '-c', 'import time; time.sleep(60)'];"
        f"sys.exit(Supervisor(Path({str(tmp_path)!r}), sleep, dict(os.environ)).run())"
    )
    with open("/dev/full" if Path("/dev/full").exists() else os.devnull, "w") as full:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=full)
    time.sleep(1.5)
    process.send_signal(getattr(signal, name))
    assert process.wait(30) == 1
    assert flags(tmp_path) == {"FAILURE"}


def test_abort_of_a_worker_that_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE_S", 1.0)
    (tmp_path / "note.txt").touch()
    os.utime(tmp_path / "note.txt", (1, 1))
    (tmp_path / "RELION_JOB_ABORT_NOW").touch()  # while the job was waiting in a queue
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    start = time.monotonic()
    assert run_python(tmp_path, deaf) == (1, {"ABORTED"})
    assert time.monotonic() - start < 30
    assert not (tmp_path / "RELION_JOB_ABORT_NOW").exists()


def test_an_abort_from_before_the_submission_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "RELION_JOB_ABORT_NOW").touch()
    os.utime(tmp_path / "RELION_JOB_ABORT_NOW", (1, 1))
    (tmp_path / "note.txt").touch()
    assert run_python(tmp_path, "import time; time.sleep(1)") == (0, {"SUCCESS"})


def start_job(folder: Path, *arguments: object, job: str = "External/job001/") -> subprocess.Popen[str]:
    """Start `cryoforum-relion` in `folder`, in a process group of its own."""
    command = [sys.executable, "-m", "relion_external.job.cli", "--o", job, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip


def refusal(folder: Path, *arguments: object) -> str:
    """Run a job in this process, in the current folder, that must refuse its input; return the message."""
    (folder / "External/job001").mkdir(parents=True, exist_ok=True)
    with pytest.raises(CryoForumError) as error:
        run_job(parse_job(["--o", "External/job001/", *map(str, arguments)]))
    return in_gui_words(str(error.value))


def waiting_job(folder: Path) -> subprocess.Popen[str]:
    """Start a job that waits for its input, a pipe that nobody writes to."""
    os.mkfifo(folder / "pipe.star")
    process = start_job(folder, "--in_parts", "pipe.star", "--job", "train")
    end = time.monotonic() + 60
    while not (folder / "External/job001/log.txt").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    time.sleep(3)  # it imports torch, then waits
    return process


def test_ctrl_c_reaches_the_whole_group(tmp_path: Path) -> None:
    process = waiting_job(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, flags(tmp_path / "External/job001")) == (130, {"ABORTED"})
    assert err == "cryoforum: error: interrupted\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_a_killed_supervisor_leaves_no_worker_and_a_flag(tmp_path: Path) -> None:
    process = waiting_job(tmp_path)
    process.kill()
    process.communicate(timeout=60)  # ends when the worker has closed its ends
    assert flags(tmp_path / "External/job001") == {"FAILURE"}


def test_bad_input_from_a_shell(tmp_path: Path) -> None:
    process = start_job(tmp_path, "--in_parts", "absent.star", "--job", "train")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == (
        "cryoforum: error: cannot read absent.star: No such file or directory; check the name and the project folder\n"
    )
    assert flags(tmp_path / "External/job001") == {"FAILURE"}
    assert "cannot read absent.star" in (tmp_path / "External/job001/log.txt").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "relion_external.job.cli", "select", "--o", "External/job001/", "--in_parts", "p.star"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "'select' stands before any label" in done.stderr
    assert flags(tmp_path / "External/job001") == {"FAILURE"}


def test_a_job_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "External").write_text("a file in the way")
    assert supervise(tmp_path / "External" / "job001", []) == 1
    assert "cannot write into the job folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished pipeline job, External/job001, and its output in out.txt."""
    folder = tmp_path_factory.mktemp("pipeline")
    simulate(folder, 300)
    process = start_job(
        folder, "--in_parts", "sim/test.star", "--job", "pipeline", "--train_particles", "sim/train.star", "--keep",
        0.5, "--epochs", 2, "--set", SET, "--j", 1, "--pipeline_control", "External/job001/",
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0
    assert err == ""  # a tiny network, but its poses are refined
    (folder / "out.txt").write_text(out, newline="")
    return folder


def test_a_whole_pipeline_without_relion(finished: Path) -> None:
    folder = finished / "External" / "job001"
    nodes = starfile.read(folder / "RELION_OUTPUT_NODES.star")
    names = [Path(name).relative_to("External/job001").as_posix() for name in nodes["rlnPipeLineNodeName"]]
    assert names == [
        "model/reference.mrc", "predicted.star", "selected.star", "rejected.star", "half1.mrc", "half2.mrc",
        "logfile.pdf",
    ]  # fmt: skip
    assert all((folder / name).stat().st_size > 1000 for name in names)
    assert (folder / "report.html").exists()
    record = json.loads((folder / "job.json").read_text())
    assert record["select"]["counts"]["all"] == {"kept": 38, "rejected": 37}
    assert json.loads((folder / "selection.json").read_text())["counts"] == record["select"]["counts"]
    assert record["predict"]["model"] == "External/job001/model"
    page = (folder / "report.html").read_text()
    assert "cryoforum select External/job001/predicted.star -o External/job001/selected_" in page
    with open(finished / "out.txt", newline="") as file:
        shown = [line.rpartition("\r")[2] for line in file.read().split("\n")]  # as RELION's GUI shows it
    assert any(line.startswith("epoch 2/2: train loss") for line in shown)
    assert any(line.startswith("predicting: 75/75") for line in shown)
    assert {path.name for path in (folder / "fsc").iterdir()} == {"all", "selected", "rejected"}
    assert not list(folder.rglob(".*"))


@pytest.fixture
def predicted(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a project of one's own with the finished job as External/job000."""
    shutil.copytree(finished / "sim", tmp_path / "sim")
    shutil.copytree(finished / "External" / "job001", tmp_path / "External" / "job000")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_continue_leaves_nothing_of_the_run_before(predicted: Path) -> None:
    common = ("--in_parts", "External/job000/predicted.star", "--job", "select")
    first = start_job(predicted, *common, "--keep", 0.5, "--reconstruct", "yes", "--views", 4)
    _, err = first.communicate(timeout=120)
    assert err == "cryoforum: warning: parameter 'views' on the Params tab is not used by a select job\n"
    folder = predicted / "External" / "job001"
    assert (folder / "half1.mrc").exists()
    assert "FSC 0.143, rejected" in (folder / "report.html").read_text()
    assert "not used by a select job" in (folder / "report.html").read_text()
    again = start_job(predicted, *common, "--keep", 1)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0
    assert "rejected.star of an earlier run of this job is removed" in err
    left = {path.name for path in folder.iterdir()}
    assert not left & {"half1.mrc", "half2.mrc", "rejected.star", "fsc"}
    page = (folder / "report.html").read_text()
    assert "FSC 0.143" not in page
    assert "not used by a select job" not in page
    assert json.loads((folder / "job.json").read_text())["symmetry"] == "C1"


SELECT = ("--in_parts", "External/job000/predicted.star", "--job", "select", "--keep", 0.5)


def test_selecting_needs_no_images(predicted: Path) -> None:
    table = predicted / "External/job000/predicted.star"
    table.write_text(table.read_text().replace("particles.mrcs", "of_another_project.mrcs"))
    assert "image stacks are missing" in refusal(predicted, *SELECT, "--reconstruct", "yes")
    run_job(parse_job(["--o", "External/job001/", *map(str, SELECT)]))
    assert len(starfile.read(predicted / "External/job001/selected.star")["particles"]) == 38


def test_input_that_does_not_fit_is_refused_before_the_work(predicted: Path) -> None:
    assert "'symmetry' on the Params tab is D2, but" in refusal(predicted, *SELECT, "--symmetry", "D2")
    assert refusal(predicted, *SELECT, "--symmetry", "X7").startswith(
        "parameter 'symmetry' on the Params tab:"
    )
    assert refusal(predicted, *SELECT, "--device", "cuda:77").startswith(
        "parameter 'device' on the Params tab:"
    )
    absent = refusal(predicted, *SELECT, "--in_mask", "absent.mrc")
    assert "'Input 3D mask' on the Input tab: absent.mrc is not there" in absent
    predict = ("--in_parts", "sim/test.star", "--job", "predict")
    assert "typo holds no model.pt" in refusal(predicted, *predict, "--model", "External/job000/model/typo")
    assert "is not in a model's folder" in refusal(predicted, *predict, "--in_3dref", "map.mrc")
    (predicted / "External/job000/model/model.pt").write_bytes(b"no model")
    assert "damaged" in refusal(predicted, *predict, "--model", "External/job000")
    assert "run a predict job first" in refusal(predicted, "--in_parts", "sim/test.star", *SELECT[2:])
    assert not list((predicted / "External/job001").glob("*.star"))


def test_a_mask_of_another_box_is_refused(predicted: Path) -> None:
    with mrcfile.new(predicted / "mask.mrc") as file:
        file.set_data(np.ones((16, 16, 16), dtype=np.float32))
        file.voxel_size = 5.0
    line = refusal(predicted, *SELECT, "--in_mask", "mask.mrc", "--reconstruct", "yes")
    assert "has 16 voxels of 5 A a side, the particles 32 px of 5 A" in line


def test_half_sets_are_demanded_only_where_half_maps_were_asked_for(predicted: Path) -> None:
    particles = formats.read_particles(predicted / "External/job000/predicted.star")
    formats.write_particles(particles[particles.half_set == 1], predicted / "one_half.star")
    one = ("--in_parts", "one_half.star", "--job", "select", "--keep", 0.5, "--reconstruct", "yes")
    assert "half set 2 is empty" in refusal(predicted, *one)


def test_changed_settings_of_a_training_are_named(predicted: Path) -> None:
    shutil.copytree(predicted / "External/job000", predicted / "External/job001")
    pipeline = (
        "--in_parts",
        "sim/test.star",
        "--job",
        "pipeline",
        "--train_particles",
        "sim/train.star",
        "--set",
        SET,
    )
    assert "training.epochs 2 -> 4" in refusal(predicted, *pipeline, "--epochs", 4)


def test_out_of_memory_is_recognised(tmp_path: Path) -> None:
    code = (
        "import torch, sys; from relion_external.job import worker; worker.parse_job = lambda a: None\n"
        "def work(job): torch.empty(2**48)\n"
        "worker._work = work; sys.exit(worker.main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.startswith("cryoforum: error: out of memory;")


def test_a_table_with_one_half_set_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    particles = build_particles(4)
    warn_of_one_half(particles, "a.star")
    warn_of_one_half(particles[[0, 2]], "b.star")
    warn_of_one_half(build_particles(2, half_set=np.zeros(2, dtype=np.int64)), "c.star")
    assert [record.getMessage()[:6] for record in caplog.records] == ["b.star"]

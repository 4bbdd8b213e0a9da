"""Processes that work together are seen as one run: one result, one error, nothing left behind, no hang."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cryoforum_plugin.errors import CryoForumError, ModelError, ProcessError, SettingsError
from cryoforum_plugin.launch import Devices
from cryoforum_plugin.launch.run import run_in_processes
from cryoforum_plugin.progress import show_progress_in

TWO = Devices("cpu", 2)
LONGEST_S = 15.0  # from a failure to the end of all, on a busy machine; about 3 as a rule


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary folders of the runs are seen."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "made").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))


def check_nothing_is_left(folder: Path) -> None:
    """No process, no temporary file, no temporary folder."""
    for file in (folder / "made").glob("pid-*"):
        limit_s = time.monotonic() + 5
        while Path(f"/proc/{file.read_text()}").exists() and time.monotonic() < limit_s:
            time.sleep(0.05)
        assert not Path(f"/proc/{file.read_text()}").exists()
    left = [path.name for path in (folder / "made").iterdir() if not path.name.startswith(("pid-", "begun-"))]
    assert left == []
    assert list((folder / "temporary").iterdir()) == []


def test_they_know_their_place_and_the_first_one_speaks(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    shown = []

    class Log:
        def line(self, text: str) -> None:
            shown.append(text)

        renew = line

    show_progress_in(Log())
    try:
        found = run_in_processes("process_work:tell_place", {}, TWO)
    finally:
        show_progress_in(None)
    assert (found["rank"], found["world"], found["LOCAL_RANK"], found["OMP_NUM_THREADS"]) == (0, 2, "0", "3")
    assert caplog.messages == ["warning of 0"]
    assert len(shown) == 1
    assert shown[0].startswith("working: 3/3")
    assert "printed" not in "".join(capfd.readouterr())


def test_one_device_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    assert run_in_processes("process_work:sum_ranks", {"devices": Devices("cpu")}, Devices("cpu")) == 0


@pytest.mark.parametrize("rank", [0, 1, -1])
def test_an_error_is_raised_once_here(tmp_path: Path, rank: int) -> None:
    arguments = {"how": "error", "rank": rank, "folder": tmp_path / "made"}
    with pytest.raises(ModelError, match=r"^the model is bad\n") as raised:
        run_in_processes("process_work:fail", arguments, TWO)
    assert str(raised.value) == "the model is bad"
    assert "process_work.py" in raised.value.__notes__[0]  # for --debug
    check_nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [("unexpected", ValueError, r"^odd value\n"), ("unsendable", RuntimeError, r"^LocalError: odd class\n")],
)
def test_unexpected_errors_keep_their_kind(
    tmp_path: Path, how: str, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        run_in_processes("process_work:fail", {"how": how, "rank": 1, "folder": tmp_path / "made"}, TWO)
    check_nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("how", "rank", "text"),
    [
        ("SIGKILL", 0, r"process 1 of 2 on .* was killed \(SIGKILL\), most likely for lack of memory: .*; press it"),
        ("SIGKILL", 1, r"process 2 of 2 on .* was killed \(SIGKILL\)"),
        ("SIGSEGV", 1, r"process 2 of 2 on .* was ended by SIGSEGV"),
        ("exit", 1, r"process 2 of 2 on .* ended with code 3 \(its last words: words of a library\); press it"),
    ],
)  # fmt: skip
def test_a_lost_process_ends_all(tmp_path: Path, how: str, rank: int, text: str) -> None:
    start_s = time.monotonic()
    with pytest.raises(ProcessError, match=text):
        run_in_processes(
            "process_work:fail",
            {"how": how, "rank": rank, "folder": tmp_path / "made"},
            TWO,
            "press it again",
        )
    assert time.monotonic() - start_s < LONGEST_S
    check_nothing_is_left(tmp_path)


def test_a_process_lost_while_the_others_wait_for_it_is_the_one_named() -> None:
    with pytest.raises(ProcessError, match=r"process 2 of 2 on .* was killed"):
        run_in_processes("process_work:lose_one", {"devices": TWO}, TWO)


SCRIPT = """
import sys
from pathlib import Path
from cryoforum_plugin.cli.common import user_errors
from cryoforum_plugin.launch import Devices
from cryoforum_plugin.launch.run import run_in_processes
with user_errors(False):
    run_in_processes(
        "process_work:fail", {"how": "never", "rank": 9, "folder": Path(sys.argv[1])}, Devices("cpu", 2), "run it again"
    )
"""


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, 130, r"cryoforum: interrupted"),
        (signal.SIGTERM, 143, ""),
        (signal.SIGKILL, -9, r"cryoforum: error: the program that started this run was killed on .*; run it again"),
    ],
)  # fmt: skip
def test_all_end_with_the_one_that_watches(
    tmp_path: Path, number: signal.Signals, code: int, message: str
) -> None:
    made = tmp_path / "made"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with open(tmp_path / "stderr", "wb") as stderr:
        watching = subprocess.Popen([sys.executable, "-c", SCRIPT, made], stderr=stderr, env=environment)
    try:
        limit_s = time.monotonic() + 60
        while len(list(made.glob("begun-*"))) < 2 and time.monotonic() < limit_s:
            time.sleep(0.05)
        watching.send_signal(number)
        assert watching.wait(LONGEST_S) == code
    finally:
        watching.kill()
        watching.wait()
    check_nothing_is_left(tmp_path)
    text = (tmp_path / "stderr").read_text()
    assert text.count("\n") == bool(message)
    assert re.fullmatch(message, text.strip())


def test_processes_started_as_srun_does_form_one_run(tmp_path: Path) -> None:
    """Two processes that nobody here started, with the environment that SLURM gives them."""
    script = (
        "from cryoforum_plugin.launch import Devices\n"
        "from cryoforum_plugin.launch.run import run_in_processes\n"
        "devices = Devices('cpu', 2)\n"
        "print(run_in_processes('process_work:sum_ranks', {'devices': devices}, devices))\n"
    )
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NODEID": "0",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
            )
        )
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert said == ["1.0\n", "None\n"]


SRUN = """#!{python}
# What srun does, on one machine that stands for several.
import os, socket, subprocess, sys
options = dict(a[2:].split("=") for a in sys.argv[1:] if a.startswith("--"))
command = sys.argv[1 + len(options):]
tasks, each = int(options["ntasks"]), int(options["ntasks-per-node"])
tasks -= "CRYOFORUM_TEST_SHORT" in os.environ
strangers = []
if "CRYOFORUM_TEST_STRANGERS" in os.environ:
    host, port = sys.argv[-1].split(":")
    strangers = [socket.create_connection((host, int(port))) for _ in range(3)]
    strangers[0].sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
    strangers.pop(1).close()
processes = [
    subprocess.Popen(command, env=os.environ | {{
        "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_PROCID": str(i), "SLURM_NODEID": str(i // each),
        "SLURM_LOCALID": str(i % each),
    }})
    for i in range(tasks)
]
if tasks < int(options["ntasks"]):
    print("srun: error: Unable to create step", file=sys.stderr)
    sys.exit(1)
sys.exit(max(abs(process.wait()) for process in processes))
"""


@pytest.fixture
def _slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job on two machines, whose srun starts everything on this one."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "1")


@pytest.mark.usefixtures("_slurm_job")
def test_a_job_on_several_machines_starts_them_by_itself(tmp_path: Path) -> None:
    devices = Devices("cpu", 1, 2)
    found = run_in_processes("process_work:tell_place", {}, devices)
    assert (found["rank"], found["world"], found["NODE_RANK"]) == (0, 2, "0")
    assert run_in_processes("process_work:sum_ranks", {"devices": devices}, devices) == 1.0
    with pytest.raises(ModelError, match=r"^the model is bad\n"):
        run_in_processes(
            "process_work:fail", {"how": "error", "rank": 1, "folder": tmp_path / "made"}, devices
        )
    check_nothing_is_left(tmp_path)


@pytest.mark.usefixtures("_slurm_job")
def test_they_meet_where_the_first_of_them_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And not where the program that starts them runs; strangers that call in between are passed over."""
    monkeypatch.setattr("socket.gethostname", lambda: "127.0.0.1")  # here; the processes have their own
    monkeypatch.setenv("CRYOFORUM_TEST_STRANGERS", "1")
    found = run_in_processes("process_work:tell_place", {}, Devices("cpu", 1, 2))
    assert found["MASTER_ADDR"] == os.uname().nodename
    assert int(found["MASTER_PORT"]) > 0


@pytest.mark.usefixtures("_slurm_job")
def test_machines_that_srun_cannot_have_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYOFORUM_TEST_SHORT", "1")
    with pytest.raises(
        CryoForumError, match="of 2 processes on 2 machines: srun: error: Unable to create step"
    ):
        run_in_processes("process_work:tell_place", {}, Devices("cpu", 1, 2))


def test_missing_devices_are_told_before_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryoforum_plugin.launch.devices import check_devices, parent_device

    assert check_devices(Devices("cpu", 64)).type == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert parent_device(Devices("cuda")).type == "cuda"
    assert parent_device(Devices("cuda", 1, 2)).type == "cpu"  # it only watches
    for name in ("cuda", "auto"):
        with pytest.raises(SettingsError, match="--devices 4: torch sees 1 CUDA device here"):
            check_devices(Devices(name, 4))
    with pytest.raises(SettingsError, match="cuda:0 is one device"):
        check_devices(Devices("cuda:0", 2))

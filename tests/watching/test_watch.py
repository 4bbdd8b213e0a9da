"""`cryoforum watch` on tables that grow: every particle once, as `predict` would have it, whatever happens between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import starfile
from chain import cryoforum
from watch_bench import Bench, assert_same_predictions

from cryoforum_plugin import formats
from cryoforum_plugin.errors import DeviceError, OutputError
from cryoforum_plugin.images.stacks import write_stack
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.watching import rounds
from cryoforum_plugin.watching.claim import claimed
from cryoforum_plugin.watching.rounds import Watcher


def meanwhile(*steps: tuple[float, Callable[[], object]]) -> threading.Thread:
    """Do each step so many seconds after the one before it."""

    def run() -> None:
        for wait_s, step in steps:
            time.sleep(wait_s)
            step()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_table_that_grows_equals_one_prediction_of_all(bench: Bench) -> None:
    table = bench.table(range(20))
    whole = bench.predicted(bench.folder / "sim" / "test.star")
    thread = meanwhile((0.8, lambda: bench.table(range(33))), (0.8, lambda: bench.table(range(60))))
    result = bench.watch(table, "out.star", "--until-idle", 1.5)
    thread.join()
    assert_same_predictions(bench.here / "out.star", whole)
    rounds = [line for line in result.stdout.splitlines() if "new particles" in line]
    assert [line.split("  ")[1].split(";")[0] for line in rounds] == [
        "20 new particles, 20 in all", "13 new particles, 33 in all", "27 new particles, 60 in all",
    ]  # fmt: skip
    assert "median expected error" in rounds[0]
    assert result.stdout.splitlines()[-1] == f"60 particles in {bench.here / 'out.star'}"


def test_a_restart_goes_on_whatever_the_order(bench: Bench) -> None:
    table = bench.table([0, 1, 2, 3, 4])
    bench.watch(table, "out.star", "--once")
    first = (bench.here / "out.star").read_text()
    order = [7, 4, 3, 6, 2, 1, 0, 5]
    bench.table(order)
    bench.watch(table, "out.star", "--once")
    after = (bench.here / "out.star").read_text()
    assert after.startswith(first.rstrip("\n"))  # what was done is not touched
    whole = bench.predicted(bench.folder / "sim" / "test.star")
    assert_same_predictions(bench.here / "out.star", whole, [0, 1, 2, 3, 4, 7, 6, 5])
    before = (bench.here / "out.star").stat().st_mtime_ns
    bench.watch(table, "out.star", "--once")
    assert (bench.here / "out.star").stat().st_mtime_ns == before  # nothing new, nothing written


def test_a_particle_listed_twice_is_predicted_once(bench: Bench) -> None:
    bench.watch(bench.table([3, 3, 5, 3]), "out.star", "--once")
    assert len(formats.read_particles(bench.here / "out.star")) == 2


def test_a_half_written_table_is_waited_for(bench: Bench) -> None:
    table = bench.table(range(12))
    text = table.read_text()
    cut = text.rindex(".") + 2  # the last number lacks digits, but is one
    table.write_text(text[:cut])
    thread = meanwhile((0.35, lambda: table.write_text(text)))
    result = bench.watch(table, "out.star", "--until-idle", 1.0)
    thread.join()
    assert "12 new particles, 12 in all" in result.stdout
    columns = starfile.read(bench.here / "out.star")["particles"]
    assert columns["rlnDefocusV"].tolist() == starfile.read(table)["particles"]["rlnDefocusV"].tolist()


def test_a_table_without_particles_yet_is_waited_for(bench: Bench) -> None:
    table = bench.table(range(5))
    text = table.read_text()
    table.write_text("\n".join(line for line in text.split("\n") if "@" not in line))
    thread = meanwhile((0.5, lambda: table.write_text(text)))
    result = bench.watch(table, "out.star", "--until-idle", 1.0)
    thread.join()
    assert "5 new particles" in result.stdout
    assert result.stderr.count("holds no particles; tried again") == 1


def test_particles_wait_for_their_images(bench: Bench) -> None:
    stack = bench.here / "own.mrcs"
    table = bench.table_of_stack(range(10), stack)
    thread = meanwhile((0.5, lambda: bench.stack(6)), (0.6, lambda: bench.stack(10)))
    result = bench.watch(table, "out.star", "--until-idle", 1.2, "--patience", 0.2)
    thread.join()
    assert "6 new particles, 6 in all" in result.stdout
    assert "4 waiting for images" in result.stdout
    assert "4 new particles, 10 in all" in result.stdout
    assert "10 particles wait for their images" in result.stderr
    assert str(stack) in result.stderr
    whole = bench.predicted(table)
    assert_same_predictions(bench.here / "out.star", whole)


def test_once_tells_which_images_are_missing(bench: Bench) -> None:
    table = bench.table_of_stack(range(10), bench.stack(7))
    result = bench.watch(table, "out.star", "--once", "--json", bench.here / "f.json")
    assert "7 new particles, 7 in all" in result.stdout
    assert "3 particles wait for their images" in result.stderr
    assert "image 8 is asked for, 7 are there" in result.stderr
    assert '"waiting": 3' in (bench.here / "f.json").read_text()


def test_a_copy_that_is_still_short_waits(bench: Bench) -> None:
    stack = bench.stack(10)
    data = stack.read_bytes()
    stack.write_bytes(data[: len(data) // 2])
    table = bench.table_of_stack(range(10), stack)
    assert "no particles yet" in bench.watch(table, "out.star", "--once").stdout
    stack.write_bytes(data)
    assert "10 new particles" in bench.watch(table, "out.star", "--once").stdout


def test_it_ends_when_nothing_comes(bench: Bench) -> None:
    start = time.monotonic()
    message = bench.refused(bench.here / "later.star", "out.star", "--until-idle", 0.3)
    assert time.monotonic() - start < 5
    assert "no such file or folder" in message
    assert not (bench.here / "out.star").exists()
    assert "no such file" in bench.refused(bench.here / "later.star", "out.star", "--once")


def test_cryosparc_tables_grow_with_their_side_file(bench: Bench) -> None:
    everything = bench.here / "all.cs"
    formats.write_particles(bench.particles, everything)
    table, out = bench.here / "particles.cs", bench.here / "out.cs"
    for rows in (range(15), [*range(40), 2][::-1], range(60)):
        whole = formats.read_particles(everything)
        formats.write_particles(whole[np.array(rows)], table, overwrite=True)
        bench.watch(table, "out.cs", "--once")
    order = [*range(15), *range(39, 14, -1), *range(40, 60)]
    assert_same_predictions(out, bench.predicted(everything, "whole.cs"), order)
    grown = np.load(out)
    assert grown["uid"].tolist() == np.load(everything)["uid"][order].tolist()


def test_a_group_of_cryosparc_grows(bench: Bench) -> None:
    everything = bench.here / "all.cs"
    formats.write_particles(bench.particles, everything)
    for count in (10, 25):
        formats.write_particles(
            formats.read_particles(everything)[:count], bench.here / "p.csg", overwrite=True
        )
        bench.watch(bench.here / "p.csg", "out.csg", "--once")
        assert len(formats.read_particles(bench.here / "out.csg")) == count


def killed(bench: Bench, table: Path, where: str) -> int:
    """Run a watch that kills itself when it is to rename a file whose name ends in `where`."""
    code = (
        "import os, pathlib, sys\n"
        "rename = pathlib.Path.replace\n"
        "def dying(path, target):\n"
        f"    if str(target).endswith({where!r}):\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return rename(path, target)\n"
        "pathlib.Path.replace = dying\n"
        "from chain import quick_networks\n"
        "from cryoforum_plugin.cli.main import main\n"
        "with quick_networks():\n"
        "    main(sys.argv[1:])\n"
    )
    out = f"out{table.suffix}"
    return subprocess.run(
        [sys.executable, "-c", code, *bench.arguments(table, out, "--once")], env=environment()
    ).returncode


def environment() -> dict[str, str]:
    """Environment of a subprocess that finds the tests' modules."""
    tests = Path(__file__).resolve().parents[1]
    paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("where", ["out.cs", "out_posterior.npz"])
def test_a_kill_while_writing_leaves_the_old_table_whole(bench: Bench, where: str) -> None:
    everything, table = bench.here / "all.cs", bench.here / "particles.cs"
    formats.write_particles(bench.particles, everything)
    whole = formats.read_particles(everything)
    formats.write_particles(whole[:8], table)
    bench.watch(table, "out.cs", "--once")
    before = (bench.here / "out.cs").read_bytes()
    formats.write_particles(whole[:20], table, overwrite=True)
    assert killed(bench, table, where) == -signal.SIGKILL
    assert (bench.here / "out.cs").read_bytes() == before
    assert formats.read_particles(bench.here / "out.cs").prediction is not None
    bench.watch(table, "out.cs", "--once")
    assert_same_predictions(bench.here / "out.cs", bench.predicted(everything, "whole.cs"), range(20))


def test_a_second_watcher_is_refused(bench: Bench) -> None:
    table = bench.table(range(5))
    with claimed(bench.here / "out.star"):
        assert "another `cryoforum watch` writes" in bench.refused(table, "out.star", "--once")
    bench.watch(table, "out.star", "--once")


def test_an_output_of_something_else_is_refused(bench: Bench) -> None:
    table = bench.table(range(5))
    bench.predicted(table, "out.star")
    assert "is not of `cryoforum watch`" in bench.refused(table, "out.star", "--once")
    bench.watch(table, "out.star", "--once", "--overwrite")
    message = bench.refused(table, "out.star", "--once", "--views", 1)
    assert "other options (views 2, now 1)" in message
    side = bench.here / "out.star.watch.json"
    side.write_text(side.read_text().replace('"model": "', '"model": "0'))
    assert "is of another model" in bench.refused(table, "out.star", "--once")
    bench.watch(table, "out.star", "--once", "--views", 1, "--overwrite")
    bench.watch(table, "out.star", "--once", "--views", 1)


def test_what_cannot_be_meant_is_refused(bench: Bench) -> None:
    table = bench.table(range(5))
    assert "another kind" in bench.refused(table, "out.cs", "--once")
    for arguments in (
        bench.arguments(table, "particles.star"),
        bench.arguments(table, "o.star", "--pattern", "*"),
    ):
        assert cryoforum(*arguments).exit_code == 2


def test_errors_that_do_not_pass_end_it(bench: Bench) -> None:
    small = bench.table(range(40))
    small.write_text(small.read_text().replace(" 5.000000 32 2", " 1.000000 32 2"))
    assert "trained on another particle or box" in bench.refused(small)
    dark = bench.table_of_stack(range(60), bench.stack(60, gain=-1.0))
    assert "protein is dark" in bench.refused(dark)
    lines = bench.table(range(40)).read_text().split("\n")
    bench.table(range(40)).write_text("\n".join(line.replace("_rlnDefocus", "_rlnOther") for line in lines))
    assert "no CTF parameters" in bench.refused(bench.here / "particles.star")


def test_junk_in_a_later_round_does_not_end_it(bench: Bench) -> None:
    table = bench.table(range(5))
    bench.watch(table, "out.star", "--once")
    blank = bench.here / "blank.mrcs"
    write_stack(blank, np.zeros((8, 32, 32), np.float32), 5.0)
    other = bench.table_of_stack([5, 6], blank, "other.star")
    result = bench.watch(other, "out.star", "--once")
    assert "2 unusable" in result.stdout
    columns = starfile.read(bench.here / "out.star")["particles"]
    assert columns["rlnAccuracyRotations"].tolist()[-2:] == [180.0, 180.0]
    assert columns["rlnParticleFigureOfMerit"].tolist()[-2:] == [0.0, 0.0]


def test_a_full_disk_may_pass(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    table, adapter = bench.table(range(5)), formats.adapter_for(Path("x.star"))
    write, failures = adapter.write_particles, iter(range(2))

    def failing(*arguments: object, **options: object) -> None:
        if next(failures, None) is not None:
            raise OutputError("cannot write out.star: No space left on device")
        write(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(adapter, "write_particles", failing)
    result = bench.watch(table, "out.star", "--until-idle", 1)
    assert result.stderr.count("No space left") == 1  # told once
    assert "5 new particles, 5 in all" in result.stdout


def test_a_full_gpu_may_pass(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    table = bench.table(range(5))
    predict, failures = rounds.predict_particles, iter(range(2))

    def failing(*arguments: object, **options: object) -> object:
        if next(failures, None) is not None:
            raise DeviceError("cuda:0 is full")
        return predict(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds, "predict_particles", failing)
    assert "cuda:0 is full" in bench.refused(table, "once.star", "--once")  # does not wait
    failures = iter(range(2))
    result = bench.watch(table, "out.star", "--until-idle", 1)
    assert result.stderr.count("cuda:0 is full; tried again") == 1  # told once
    assert "5 new particles, 5 in all" in result.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_everything_written(bench: Bench, number: int, code: int) -> None:
    table, out = bench.table(range(12)), bench.here / "out.star"
    run = "import sys; from chain import quick_networks; from cryoforum_plugin.cli.main import main\nwith quick_networks(): main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", run, *bench.arguments(table)], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        try:
            first = process.stdout.readline()
            assert "12 new particles" in first
            assert len(formats.read_particles(out)) == 12
            process.send_signal(number)
            errors = process.communicate(timeout=20)[1]
        finally:
            process.kill()
    assert process.returncode == code
    assert "Traceback" not in errors
    assert ("interrupted" if number == signal.SIGINT else "stopped by SIGTERM") in errors
    bench.table(range(20))
    assert "8 new particles, 20 in all" in bench.watch(table, "out.star", "--once").stdout


def test_half_sets_stay_equally_large_over_rounds(make_particles: Callable[..., ParticleSet]) -> None:
    def dealt(done: list[int], count: int) -> list[int]:
        watcher = Watcher.__new__(Watcher)
        watcher.model = SimpleNamespace(members=[SimpleNamespace(half_set=1), SimpleNamespace(half_set=2)])  # type: ignore[assignment]
        before = make_particles(len(done), half_set=np.array(done))
        watcher.output = SimpleNamespace(done=before)  # type: ignore[assignment]
        new = make_particles(count, half_set=np.zeros(count, dtype=np.int64))
        found: list[int] = watcher._with_half_sets(new).half_set.tolist()
        return found

    assert dealt([1, 2], 3) == [1, 2, 1]
    assert dealt([1, 2, 1], 3) == [2, 1, 2]

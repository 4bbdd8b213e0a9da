"""Preprocessed images on disk: the right pixels, each read once, whatever happens to the folder, the stacks or the process."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chain import TINY, cryoforum, quick_networks, simulate, succeed
from particle_tables import BOX, make_particles

from cryoforum_plugin import formats
from cryoforum_plugin.errors import ImageStackError, OutputError
from cryoforum_plugin.images import block_file, cache
from cryoforum_plugin.images.block_file import BlockFile
from cryoforum_plugin.images.cache import cached_images
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.settings import preset, with_values
from cryoforum_plugin.training.preparation import prepare

COUNT = 23
ROWS = np.random.default_rng(0).permutation(COUNT)[:20]


@pytest.fixture
def particles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ParticleSet:
    """Particles in two stacks; 20 of them make five blocks, made one after the other."""
    monkeypatch.setattr(block_file, "BLOCK_IMAGES", 4)
    return make_particles(tmp_path, COUNT)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the reader gave."""
    calls: list[int] = []
    original = StackReader.read

    def counted(self: StackReader, stack_index: Any, slice_index: Any) -> Any:
        calls.append(len(slice_index))
        return original(self, stack_index, slice_index)

    monkeypatch.setattr(StackReader, "read", counted)
    return calls


def pipeline(particles: ParticleSet, **changes: Any) -> ImagePipeline:
    values: dict[str, Any] = {"box": WorkingBox(9.0, 6), "ctf_mode": "flip", "contrast": 1.0} | changes
    reader = StackReader(particles.stacks)
    return ImagePipeline(particles=particles, reader=reader, box_px=BOX, device=torch.device("cpu"), **values)


def images(particles: ParticleSet, folder: Path, recentred: bool = True, **changes: Any) -> torch.Tensor:
    """Cached working images of ROWS."""
    advanced: list[int] = []
    shift_A = particles.shift_A if recentred else None
    made = cached_images(
        pipeline(particles, **changes), ROWS, shift_A, folder, lambda n, _: advanced.append(n)
    )
    assert sum(advanced) == len(ROWS)
    return made


def expected(particles: ParticleSet) -> torch.Tensor:
    source = pipeline(particles)
    return source.working(ROWS, particles.shift_A[ROWS], source.read(ROWS)).half()


def only(folder: Path, name: str) -> Path:
    (path,) = folder.glob(f"*/{name}")
    return path


def test_pixels_are_those_of_the_pipeline_and_come_from_the_file_the_second_time(
    particles: ParticleSet, tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = images(particles, tmp_path / "c")
    np.testing.assert_allclose(found.float(), expected(particles).float(), atol=2e-3)
    read.clear()
    monkeypatch.setattr(BlockFile, "_opened", None)  # nothing is written: the folder may be read-only
    assert torch.equal(images(particles, tmp_path / "c"), found)
    assert read == []


def test_a_memory_map_is_as_good_and_never_changes_the_file(
    particles: ParticleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = images(particles, tmp_path / "c")
    monkeypatch.setattr(cache, "_free_bytes", lambda device: 0)
    mapped = images(particles, tmp_path / "c")
    assert torch.equal(mapped, found)
    mapped.zero_()
    assert torch.equal(images(particles, tmp_path / "c"), found)


def test_images_too_large_for_half_precision_stay_finite(
    particles: ParticleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = ImagePipeline.working
    monkeypatch.setattr(ImagePipeline, "working", lambda *arguments: 1e6 * working(*arguments))
    found = images(particles, tmp_path / "c")
    assert found.abs().max() > 6e4
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_build_that_died_goes_on_where_it_was(
    particles: ParticleSet, tmp_path: Path, threads: int, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    usable = ImagePipeline.read_usable

    def dies(self: ImagePipeline, rows: np.ndarray) -> torch.Tensor:
        if rows[0] == ROWS[12]:  # the first of the fourth block
            raise KeyboardInterrupt
        return usable(self, rows)

    monkeypatch.setattr(ImagePipeline, "read_usable", dies)
    with pytest.raises(KeyboardInterrupt):
        images(particles, tmp_path / "c")
    monkeypatch.setattr(ImagePipeline, "read_usable", usable)
    there = sum(read)
    assert 12 <= there <= 16
    read.clear()
    np.testing.assert_allclose(
        images(particles, tmp_path / "c").float(), expected(particles).float(), atol=2e-3
    )
    assert sum(read[:-1]) == len(ROWS) - there  # the last call is that of `expected`


@pytest.mark.parametrize("damage", ["byte", "cut", "gone", "checksums cut"])
def test_damaged_blocks_are_made_again(
    particles: ParticleSet, tmp_path: Path, read: list[int], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    found = images(particles, tmp_path / "c")
    file, checksums = only(tmp_path / "c", "images.f16"), only(tmp_path / "c", "checksums")
    content = bytearray(file.read_bytes())
    if damage == "byte":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        file.unlink()
    else:
        os.truncate(checksums, 20)
    read.clear()
    with caplog.at_level(logging.WARNING, "cryoforum"):
        assert torch.equal(images(particles, tmp_path / "c"), found)
    assert sum(read) == {"byte": 4, "cut": 12, "gone": 20, "checksums cut": 12}[damage]
    assert ("damaged" in caplog.text and str(file) in caplog.text) == (damage != "checksums cut")


def changed_stack(particles: ParticleSet) -> ParticleSet:
    status = particles.stacks[0].stat()
    os.utime(particles.stacks[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    return particles


def other_ctf(particles: ParticleSet) -> ParticleSet:
    assert particles.ctf is not None
    return replace(particles, ctf=replace(particles.ctf, voltage_kV=particles.ctf.voltage_kV + 1))


@pytest.mark.parametrize(
    "change",
    [
        changed_stack,
        other_ctf,
        lambda p: replace(p, shift_A=p.shift_A + 1),
        lambda p: replace(p, pixel_size_A=p.pixel_size_A * 1.01),
        lambda p: replace(p, contrast_sign=-p.contrast_sign),
        lambda p: replace(p, slice_index=p.slice_index[::-1].copy()),
        lambda p: replace(p, stack_index=1 - p.stack_index, slice_index=np.minimum(p.slice_index, 10)),
    ],
)
def test_changed_inputs_are_read_anew(
    particles: ParticleSet, tmp_path: Path, read: list[int], change: Any
) -> None:
    images(particles, tmp_path / "c")
    read.clear()
    images(change(particles), tmp_path / "c")
    assert sum(read) == len(ROWS)


def test_other_settings_are_read_anew_and_what_does_not_matter_is_not(
    particles: ParticleSet, tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images(particles, tmp_path / "c")
    images(particles, tmp_path / "c", recentred=False)
    images(particles, tmp_path / "c", ctf_mode="multiply")
    images(particles, tmp_path / "c", ctf_mode="keep")
    images(particles, tmp_path / "c", contrast=-1.0)
    images(particles, tmp_path / "c", box=WorkingBox(9.1, 6))
    assert sum(read) == 6 * len(ROWS)
    monkeypatch.chdir(tmp_path)
    relative = tuple(stack.relative_to(tmp_path) for stack in particles.stacks)
    images(replace(particles, stacks=relative, rotation=None, half_set=particles.half_set * 0), Path("c"))
    images(other_ctf(particles), tmp_path / "c", ctf_mode="keep")
    assert sum(read) == 6 * len(ROWS)


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(
    particles: ParticleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError) as caught:
        images(particles, tmp_path / "c")
    line = str(caught.value)
    assert "\n" not in line
    assert f"{tmp_path / 'c'}" in line
    assert "No space left on device; they need 0.0 MB" in line
    assert "free; choose another folder with --cache-dir" in line
    assert not list((tmp_path / "c").glob("*/images.f16"))


def test_a_disk_that_fills_while_writing_and_a_file_in_the_way(
    particles: ParticleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot keep preprocessed images in .*file.*Not a directory"):
        images(particles, tmp_path / "file")

    def full(*arguments: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="quota exceeded"):
        images(particles, tmp_path / "c")
    monkeypatch.undo()
    np.testing.assert_allclose(
        images(particles, tmp_path / "c").float(), expected(particles).float(), atol=2e-3
    )


def test_an_unusable_image_and_a_stack_that_is_gone(particles: ParticleSet, tmp_path: Path) -> None:
    with open(particles.stacks[0], "r+b") as file:
        file.seek(1024 + 4)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(ImageStackError, match=r"a\.mrcs: image 1 .*NaN"):
        images(particles, tmp_path / "c")
    particles.stacks[1].unlink()
    with pytest.raises(ImageStackError, match=r"cannot read .*b\.mrcs"):
        images(particles, tmp_path / "c")


BUILDER = """
import sys, time
from pathlib import Path
import numpy as np
from cryoforum_plugin.images import block_file
block_file.BLOCK_IMAGES, block_file.POLL_S = 2, 0.01
folder, log, seconds, workers = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
def make(part):
    with open(log, "a") as file:
        file.write(f"{part.start}\\n")
    time.sleep(seconds)
    return np.arange(part.start, part.stop, dtype=np.float16)[:, None, None] * np.ones((3, 3), np.float16)
block_file.BlockFile(folder, (40, 3, 3)).complete(make, workers, lambda count, note: None)
"""


def start(folder: Path, log: Path, seconds: float, workers: int = 2) -> subprocess.Popen[bytes]:
    arguments = [str(folder), str(log), str(seconds), str(workers)]
    return subprocess.Popen([sys.executable, "-c", BUILDER, *arguments])


def numbered(part: slice) -> np.ndarray:
    return np.arange(part.start, part.stop, dtype=np.float16)[:, None, None] * np.ones((3, 3), np.float16)


def complete(folder: Path, make: Any = numbered) -> np.ndarray:
    whole = BlockFile(folder, (40, 3, 3))
    whole.complete(make, 2, lambda count, note: None)
    return np.fromfile(whole.path, np.float16).reshape(whole.shape)


def lines(log: Path, at_least: int) -> list[str]:
    """Lines of a log, once there are so many."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = log.read_text().splitlines() if log.exists() else []
        if len(found) >= at_least:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{log} has too few lines")


def test_processes_share_the_work_and_make_no_block_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_file, "BLOCK_IMAGES", 2)
    logs = [tmp_path / "1.log", tmp_path / "2.log"]
    running = [start(tmp_path / "c", log, 0.05) for log in logs]
    assert [process.wait(60) for process in running] == [0, 0]
    made = [log.read_text().splitlines() for log in logs if log.exists()]
    assert sorted(int(line) for log in made for line in log) == list(range(0, 40, 2))
    again: list[slice] = []
    np.testing.assert_array_equal(complete(tmp_path / "c", again.append)[:, 0, 0], np.arange(40))
    assert again == []


def test_a_process_that_was_killed_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_file, "BLOCK_IMAGES", 2)
    process = start(tmp_path / "c", tmp_path / "log", 0.02, 1)
    begun = len(lines(tmp_path / "log", 5))
    process.kill()
    process.wait(60)
    again: list[slice] = []

    def make(part: slice) -> np.ndarray:
        again.append(part)
        return numbered(part)

    np.testing.assert_array_equal(complete(tmp_path / "c", make)[:, 0, 0], np.arange(40))
    assert len(again) <= 20 - (begun - 1)  # the one it was at is lost


def test_another_process_that_does_not_get_on_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"BLOCK_IMAGES": 2, "PATIENCE_S": 0.3, "POLL_S": 0.05}.items():
        monkeypatch.setattr(block_file, name, value)
    process = start(tmp_path / "c", tmp_path / "log", 60, 1)
    try:
        lines(tmp_path / "log", 1)
        with caplog.at_level(logging.INFO, "cryoforum"):
            found = complete(tmp_path / "c")
    finally:
        process.kill()
        process.wait(60)
    np.testing.assert_array_equal(found[:, 0, 0], np.arange(40))
    assert "waiting for another process, which makes 1 blocks" in caplog.text


def test_without_locks_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(block_file.fcntl, "lockf", no_locks)
    np.testing.assert_array_equal(complete(tmp_path / "c")[:, 0, 0], np.arange(40))
    assert "no locks" in caplog.text


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("cache"), 200) / "train.star"


def test_a_second_preparation_reads_no_image(
    table: Path, tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_values(preset("default"), {"images.contrast": "ignore"})

    def prepared(device: str = "cpu") -> Any:
        return prepare(formats.read_particles(table), settings, tmp_path, torch.device(device), True)

    first = prepared()
    assert sum(read) > 0
    read.clear()
    again = prepared()
    assert read == []
    assert again.settings == first.settings
    assert again.pipeline.box == first.pipeline.box
    assert torch.equal(again.training.images, first.training.images)
    assert torch.equal(again.validation_images, first.validation_images)
    diameter = next(tmp_path.glob("*/diameter.json"))
    diameter.write_text("12")  # not whole
    assert prepared().settings == first.settings
    assert diameter.read_text().endswith("\n")


def test_cache_dir_serves_other_trainings_and_without_it_none_is_left(table: Path, tmp_path: Path) -> None:
    with quick_networks():
        for name in ("a", "b"):
            succeed(
                "train", table, "-o", tmp_path / name, "--cache-dir", tmp_path / "kept", "--quiet", *TINY, "--epochs", 1,
                "--set", f"training.learning_rate={0.01 if name == 'a' else 0.005}",
            )  # fmt: skip
        logs = [(tmp_path / name / "log.txt").read_text() for name in ("a", "b")]
        assert "135 of them made now" in logs[0]
        assert logs[1].count(" 0 of them made now") == 2
        assert len(list((tmp_path / "kept").glob("*/images.f16"))) == 2
        succeed("train", table, "-o", tmp_path / "c", "--quiet", *TINY, "--epochs", 1)
    for name in ("a", "b", "c"):
        assert not (tmp_path / name / "cache").exists()


def test_a_training_killed_while_reading_goes_on_by_the_same_command(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", table, "-o", tmp_path / "new" / "model", "--quiet", *TINY, "--epochs", 1)
    build = cached_images

    def dies(*arguments: Any) -> Any:
        build(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("cryoforum_plugin.training.preparation.cached_images", dies)
    assert cryoforum(*command).exit_code == 130
    assert {entry.name for entry in (tmp_path / "new" / "model").iterdir()} == {"cache"}
    monkeypatch.setattr("cryoforum_plugin.training.preparation.cached_images", build)
    with quick_networks():
        succeed(*command)
    log = (tmp_path / "new" / "model" / "log.txt").read_text()
    assert "135 preprocessed images, 0.2 MB, 0 of them made now" in log
    assert not (tmp_path / "new" / "model" / "cache").exists()


def test_what_is_refused_while_reading_leaves_no_folder(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    refused = cryoforum("train", table, "-o", tmp_path / "new" / "model", "--quiet", *TINY)
    assert refused.exit_code == 1
    assert "No space left on device" in refused.stderr
    assert refused.stderr.strip().count("\n") == 0
    assert not (tmp_path / "new").exists()
